package rpc

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	grpcContentType = "application/grpc"
	detailsHeader   = "grpc-status-details-bin"
)

// block is what was read of the header block of one request.
type block struct {
	open     bool // its last frame was not read yet
	stream   uint32
	end      bool // no message follows
	size     uint32
	bytes    int // as they came
	tooLarge bool

	path, timeout string
	pathSeen      bool
	malformed     bool                // as far as can be known without the others
	fields        []hpack.HeaderField // all others, in order
	head          *head               // what they say; nil: it was not looked at
}

// knownBlock is a header block that refers to the tables of headers in all its
// fields. As long as these do not change, the same bytes say the same again: most
// requests of a client that sets no deadlines are told by the same ten bytes.
type knownBlock struct {
	bytes         []byte
	path, timeout string
	head          *head
}

// knownMax is how many of them a connection knows, and knownBytes how long they
// are at most.
const (
	knownMax   = 4
	knownBytes = 32
)

// refers tells whether a header block is nothing but references to the tables,
// of a byte each, and so leaves these as they are.
func refers(b []byte) bool {
	const indexed, longer = 0x80, 0x7f
	for _, c := range b {
		if c&indexed == 0 || c&longer == longer {
			return false
		}
	}
	return true
}

// recall makes a block of one that came before in the same bytes.
func (c *conn) recall(f *http2.HeadersFrame) (*block, bool) {
	if !f.HeadersEnded() || f.HasPriority() {
		return nil, false
	}
	for i := range c.known {
		if k := &c.known[i]; bytes.Equal(k.bytes, f.HeaderBlockFragment()) {
			c.in.recalled = block{stream: f.StreamID, end: f.StreamEnded(), path: k.path, pathSeen: true, timeout: k.timeout, fields: k.head.fields, head: k.head}
			return &c.in.recalled, true
		}
	}
	return nil, false
}

// remember is told of each block that was not recalled, and of its last piece.
func (c *conn) remember(raw []byte, b *block) {
	switch {
	case len(raw) != b.bytes || !refers(raw):
		c.known = c.known[:0] // the tables may have changed
	case len(raw) <= knownBytes && len(c.known) < knownMax && b.pathSeen && !b.malformed && !b.tooLarge && c.head.says(b.fields):
		c.known = append(c.known, knownBlock{bytes.Clone(raw), b.path, b.timeout, c.head})
	}
}

// add takes in one field. It returns false when the headers have become larger
// than max.
func (b *block) add(f hpack.HeaderField, max uint32) bool {
	if b.size += f.Size(); b.size > max {
		b.tooLarge = true
		return false
	}
	switch f.Name {
	case ":path":
		b.malformed = b.malformed || b.pathSeen || b.regular()
		b.path, b.pathSeen = f.Value, true
	case "grpc-timeout":
		b.timeout = f.Value
	default:
		b.fields = append(b.fields, f)
	}
	return true
}

// regular tells whether the part for pseudo header fields is over.
func (b *block) regular() bool {
	return b.timeout != "" || len(b.fields) > 0 && !b.fields[len(b.fields)-1].IsPseudo()
}

// head is what a request's headers say, but for path and timeout: the rest is
// mostly the same in all requests of a connection, and then it is shared by
// them. It is immutable.
type head struct {
	fields      []hpack.HeaderField
	md          metadata.MD
	contentType string
	codec       encoding.CodecV2    // nil: protobuf
	encoding    string              // of compressed messages
	compressor  encoding.Compressor // nil: none, or encoding is not known

	contentLength int64 // below 0: not told

	malformed bool // as HTTP/2
	refused   *refusal
}

// refusal ends a call before its method is known.
type refusal struct {
	httpStatus int
	status     *status.Status
}

func refuse(httpStatus int, code codes.Code, format string, args ...any) *refusal {
	return &refusal{httpStatus, status.Newf(code, format, args...)}
}

// says tells whether h was made of the same fields.
func (h *head) says(fields []hpack.HeaderField) bool {
	return h != nil && slices.Equal(h.fields, fields)
}

// heads are what connections have begun with of late: many clients say the same.
type heads struct {
	mu     sync.Mutex
	recent [16]*head
	next   int // to be overwritten
}

// read is readHead for the first request of a connection.
func (h *heads) read(fields []hpack.HeaderField) *head {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, known := range h.recent {
		if known.says(fields) {
			return known
		}
	}
	first := readHead(fields)
	h.recent[h.next] = first
	h.next = (h.next + 1) % len(h.recent)
	return first
}

// readHead makes sense of all fields but path and timeout.
func readHead(fields []hpack.HeaderField) *head {
	h := &head{
		fields:        slices.Clone(fields),
		md:            make(metadata.MD, len(fields)),
		contentType:   grpcContentType,
		contentLength: -1,
	}
	var contentType, httpMethod string
	var isGRPC, regular bool
	var methods, schemes int
	for _, f := range fields {
		if !wellFormed(f) {
			h.malformed = true
			return h
		}
		if f.IsPseudo() {
			h.malformed = h.malformed || regular
			switch f.Name {
			case ":method":
				httpMethod = f.Value
				methods++
			case ":scheme":
				schemes++
			case ":authority":
				h.md[f.Name] = append(h.md[f.Name], f.Value)
			default:
				h.malformed = true
			}
			continue
		}
		regular = true
		switch f.Name {
		case "content-length":
			n, err := strconv.ParseUint(f.Value, 10, 63)
			h.malformed = h.malformed || err != nil || h.contentLength >= 0 && h.contentLength != int64(n)
			h.contentLength = int64(n)
			h.readMetadata(f.Name, f.Value)
		case "content-type":
			if contentType = f.Value; h.readContentType(f.Value) {
				isGRPC = true
				h.md[f.Name] = append(h.md[f.Name], f.Value)
			}
		case "grpc-encoding":
			h.encoding = f.Value
		case "grpc-message-type", "grpc-message", "grpc-status":
			// not for handlers
		default:
			h.readMetadata(f.Name, f.Value)
		}
	}
	h.malformed = h.malformed || methods != 1 || schemes != 1

	authorities, hosts := h.md[":authority"], h.md["host"]
	switch {
	case len(authorities) > 1 || len(hosts) > 1:
		h.refused = refuse(http.StatusBadRequest, codes.Internal,
			"num values of :authority: %v, num values of host: %v, both must only have 1 value as per HTTP/2 spec", len(authorities), len(hosts))
	case !isGRPC:
		h.refused = refuse(http.StatusUnsupportedMediaType, codes.InvalidArgument, "invalid gRPC request content-type %q", contentType)
	case h.refused != nil: // by readMetadata
	case len(authorities)+len(hosts) == 0:
		h.refused = refuse(http.StatusBadRequest, codes.Internal, "no host or :authority header present")
	case httpMethod != http.MethodPost:
		h.refused = refuse(http.StatusMethodNotAllowed, codes.Internal, "Received a HEADERS frame with :method %q which should be POST", httpMethod)
	}
	if len(authorities) == 0 && len(hosts) > 0 {
		h.md[":authority"] = hosts
	}
	delete(h.md, "host")

	if h.encoding != "" && h.encoding != encoding.Identity {
		h.compressor = encoding.GetCompressor(h.encoding)
	}
	return h
}

// readContentType tells whether a request is gRPC, and how its messages are
// encoded.
func (h *head) readContentType(s string) bool {
	rest, ok := strings.CutPrefix(s, grpcContentType)
	if !ok || rest != "" && rest[0] != '+' && rest[0] != ';' {
		return false
	}
	if len(rest) > 1 {
		subtype := rest[1:]
		h.contentType = grpcContentType + "+" + subtype
		if subtype != proto.Name {
			h.codec = encoding.GetCodecV2(strings.ToLower(subtype)) // nil: protobuf may do
		}
	}
	return true
}

func (h *head) readMetadata(name, value string) {
	if !strings.HasSuffix(name, "-bin") {
		h.md[name] = append(h.md[name], value)
		return
	}
	for part := range strings.SplitSeq(value, ",") { // several values may come as one
		raw, err := decodeBinary(part)
		if err != nil {
			h.refused = refuse(http.StatusBadRequest, codes.Internal, "malformed binary metadata %q in header %q: %v", value, name, err)
			return
		}
		h.md[name] = append(h.md[name], raw)
	}
}

// wellFormed tells whether HTTP/2 allows a field, wherever it stands.
func wellFormed(f hpack.HeaderField) bool {
	switch f.Name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return false
	case "te":
		return f.Value == "trailers"
	}
	return (f.IsPseudo() || validName(f.Name)) && httpguts.ValidHeaderFieldValue(f.Value)
}

// wellFormedTrailers tells whether b may end a request.
func wellFormedTrailers(b *block) bool {
	return !b.pathSeen && !slices.ContainsFunc(b.fields, func(f hpack.HeaderField) bool {
		return f.IsPseudo() || !wellFormed(f)
	})
}

// validName tells whether s may be the name of a field on the wire.
func validName(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c >= 'A' && c <= 'Z' || !httpguts.IsTokenRune(rune(c)) {
			return false
		}
	}
	return true
}

func decodeBinary(s string) (string, error) {
	raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(s, "="))
	return string(raw), err
}

func encodeBinary(b []byte) string { return base64.RawStdEncoding.EncodeToString(b) }

var units = map[byte]time.Duration{
	'H': time.Hour, 'M': time.Minute, 'S': time.Second,
	'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond,
}

// readTimeout reads up to eight digits and a unit.
func readTimeout(s string) (time.Duration, error) {
	if len(s) < 2 {
		return 0, fmt.Errorf("transport: timeout string is too short: %q", s)
	}
	if len(s) > 9 {
		return 0, fmt.Errorf("transport: timeout string is too long: %q", s)
	}
	unit, ok := units[s[len(s)-1]]
	if !ok {
		return 0, fmt.Errorf("transport: timeout unit is not recognized: %q", s)
	}
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 64)
	if err != nil {
		return 0, err
	}
	if n > uint64(math.MaxInt64/unit) {
		return math.MaxInt64, nil
	}
	return time.Duration(n) * unit, nil
}

// encodeMessage makes s fit for the header grpc-message: printable ASCII
// without percent signs stays, all else is escaped.
func encodeMessage(s string) string {
	plain := func(c byte) bool { return c >= ' ' && c <= '~' && c != '%' }
	at := 0
	for at < len(s) && plain(s[at]) {
		at++
	}
	if at == len(s) {
		return s
	}
	out := []byte(s[:at])
	for _, r := range s[at:] { // what is not UTF-8 becomes U+FFFD
		if r < utf8.RuneSelf && plain(byte(r)) {
			out = append(out, byte(r))
			continue
		}
		for _, c := range utf8.AppendRune(nil, r) {
			out = fmt.Appendf(out, "%%%02X", c)
		}
	}
	return string(out)
}

// reserved tells whether a handler's metadata must not use name, since the
// protocol does.
func reserved(name string) bool {
	switch name {
	case "content-type", "user-agent", "grpc-message-type", "grpc-encoding", "grpc-message", "grpc-status", "grpc-timeout", "te":
		return true
	}
	return name == "" || name[0] == ':'
}

// checkMetadata tells what a handler may not send.
func checkMetadata(md metadata.MD) error {
	for name, values := range md {
		if name == "" {
			return status.Error(codes.Internal, "there is an empty key in the header")
		}
		if name[0] == ':' {
			continue
		}
		for i := range len(name) {
			c := name[i]
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
				return status.Errorf(codes.Internal, "header key %q contains illegal characters not in [0-9a-z-_.]", name)
			}
		}
		if strings.HasSuffix(name, "-bin") {
			continue
		}
		for _, value := range values {
			for i := range len(value) {
				if value[i] < 0x20 || value[i] > 0x7E {
					return status.Errorf(codes.Internal, "header key %q contains value with non-printable ASCII characters", name)
				}
			}
		}
	}
	return nil
}
