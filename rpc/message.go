package rpc

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/gzip" // clients may compress
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// prefixBytes stand before each message: whether it is compressed, and its
// length.
const prefixBytes = 5

func messageLength(b []byte) int     { return int(binary.BigEndian.Uint32(b[1:])) }
func putLength(b []byte, length int) { binary.BigEndian.PutUint32(b[1:], uint32(length)) }

// checkPrefix tells how many bytes follow the prefix that b begins with, or
// why they are not wanted. b is at least a prefix.
func (s *stream) checkPrefix(b []byte) (length int, err error) {
	n := messageLength(b)
	if uint64(n) > uint64(s.c.options.ReceiveBytesMax) {
		return 0, status.Errorf(codes.ResourceExhausted, "grpc: received message larger than max (%d vs. %d)", n, s.c.options.ReceiveBytesMax)
	}
	return n, nil
}

var (
	errNoMessage    = status.Error(codes.Internal, "cardinality violation: received no request message from non-client-streaming RPC")
	errManyMessages = status.Error(codes.Internal, "cardinality violation: received multiple request messages for non-client-streaming RPC")
	errTruncated    = status.Error(codes.Internal, io.ErrUnexpectedEOF.Error())
)

// onlyMessage checks that b, all that a client sent, is one message.
func (s *stream) onlyMessage(b []byte) error {
	if len(b) == 0 {
		return errNoMessage
	}
	if len(b) < prefixBytes {
		return errTruncated
	}
	n, err := s.checkPrefix(b)
	switch {
	case err != nil:
		return err
	case len(b) < prefixBytes+n:
		return errTruncated
	case len(b) > prefixBytes+n:
		return errManyMessages
	}
	return nil
}

// plain returns the message in b, which begins with its prefix, decompressed.
func (s *stream) plain(b []byte) ([]byte, error) {
	body := b[prefixBytes:]
	switch b[0] {
	case 0:
		return body, nil
	case 1:
	default:
		return nil, status.Errorf(codes.Internal, "grpc: received unexpected payload format %d", b[0])
	}
	if s.head.encoding == "" || s.head.encoding == encoding.Identity {
		return nil, status.Error(codes.Internal, "grpc: compressed flag set with identity or empty encoding")
	}
	r, err := s.head.compressor.Decompress(bytes.NewReader(body))
	if err != nil {
		return nil, status.Errorf(codes.Internal, "grpc: failed to decompress the message: %v", err)
	}
	if c, ok := r.(io.Closer); ok {
		defer c.Close()
	}
	most := int64(s.c.options.ReceiveBytesMax)
	out, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, status.Errorf(codes.Internal, "grpc: failed to read decompressed data: %v", err)
	}
	if int64(len(out)) > most {
		return nil, status.Errorf(codes.ResourceExhausted, "grpc: received message after decompression larger than max %d", most)
	}
	return out, nil
}

// decode makes v of a message that begins with its prefix.
func (s *stream) decode(b []byte, v any) error {
	b, err := s.plain(b)
	if err != nil {
		return err
	}
	if m, ok := v.(proto.Message); ok && s.head.codec == nil {
		err = proto.Unmarshal(b, m)
	} else {
		err = s.head.otherCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(bytes.Clone(b))}, v) // it may keep them
	}
	if err != nil {
		return status.Errorf(codes.Internal, "grpc: failed to unmarshal the received message: %v", err)
	}
	return nil
}

// encode makes a message of v, with its prefix.
func (s *stream) encode(v any) (*buffer, error) {
	buf := newBuffer()
	buf.b = append(buf.b, make([]byte, prefixBytes)...)
	if err := s.encodeTo(buf, v); err != nil {
		buf.free()
		return nil, err
	}
	return buf, nil
}

func (s *stream) encodeTo(buf *buffer, v any) (err error) {
	if m, ok := v.(proto.Message); ok && s.head.codec == nil {
		buf.b, err = proto.MarshalOptions{}.MarshalAppend(buf.b, m)
	} else if v != nil {
		var parts mem.BufferSlice
		if parts, err = s.head.otherCodec().Marshal(v); err == nil {
			for _, part := range parts {
				buf.b = append(buf.b, part.ReadOnlyData()...)
			}
			parts.Free()
		}
	}
	if err != nil {
		return status.Errorf(codes.Internal, "grpc: error while marshaling: %v", err)
	}
	return s.seal(buf)
}

// seal compresses the message behind the prefix, if the client does so too,
// and fills the prefix in.
func (s *stream) seal(buf *buffer) error {
	if s.head.compressor != nil && len(buf.b) > prefixBytes {
		if err := s.compress(buf); err != nil {
			return status.Errorf(codes.Internal, "grpc: error while compressing: %v", err)
		}
		buf.b[0] = 1
	}
	return s.prefix(buf.b)
}

// prefix fills in what stands before the message in b.
func (s *stream) prefix(b []byte) error {
	n := len(b) - prefixBytes
	if n > math.MaxUint32 {
		return status.Errorf(codes.ResourceExhausted, "grpc: message too large (%d bytes)", n)
	}
	if n > s.c.options.SendBytesMax {
		return status.Errorf(codes.ResourceExhausted, "trying to send message larger than max (%d vs. %d)", n, s.c.options.SendBytesMax)
	}
	putLength(b, n)
	return nil
}

func (s *stream) compress(buf *buffer) error {
	var out bytes.Buffer
	out.Write(buf.b[:prefixBytes])
	w, err := s.head.compressor.Compress(&out)
	if err != nil {
		return err
	}
	if _, err := w.Write(buf.b[prefixBytes:]); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	buf.b = append(buf.b[:0], out.Bytes()...)
	return nil
}

// otherCodec encodes what is not protobuf of the present kind.
func (h *head) otherCodec() encoding.CodecV2 {
	if h.codec != nil {
		return h.codec
	}
	return encoding.GetCodecV2(grpcproto.Name)
}
