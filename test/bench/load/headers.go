package load

import (
	"bytes"
	"fmt"
	"net/url"

	"golang.org/x/net/http2/hpack"
)

// Method is a method of the API.
type Method uint8

const (
	KVPut Method = iota
	KVRange
	KVDeleteRange
	KVTxn
	KVCompact
	LeaseGrant
	LeaseKeepAlive
	WatchWatch
	methods
)

var paths = [methods]string{
	KVPut:         "/etcdserverpb.KV/Put",
	KVRange:       "/etcdserverpb.KV/Range",
	KVDeleteRange: "/etcdserverpb.KV/DeleteRange",
	KVTxn:         "/etcdserverpb.KV/Txn",
	KVCompact:     "/etcdserverpb.KV/Compact",

	LeaseGrant:     "/etcdserverpb.Lease/LeaseGrant",
	LeaseKeepAlive: "/etcdserverpb.Lease/LeaseKeepAlive",
	WatchWatch:     "/etcdserverpb.Watch/Watch",
}

// Header fields that are the same in every request of a connection: each is
// spelled out once and then named by one byte.
const (
	fieldAuthority = int(methods) + iota // the places below are the paths
	fieldContentType
	fieldTE
	fieldUserAgent
	headerFields
)

// What HPACK's static table holds (RFC 7541, appendix A).
const (
	staticMethodPost  = 0x80 | 3
	staticSchemeHTTP  = 0x80 | 6
	staticSchemeHTTPS = 0x80 | 7

	staticAuthority   = 1
	staticPath        = 4
	staticContentType = 31
	staticUserAgent   = 58
	staticEntries     = 61
)

// headerWriter makes the header blocks of one connection's requests.
type headerWriter struct {
	authority string
	https     bool

	plain  bool // the peer's table is too small: spell out everything
	resize bool // tell the peer, in the next block, that the table is not used

	added  int               // entries put into the peer's table so far
	placed [headerFields]int // which of them holds a field, counted from 1; 0: none
}

// tableSize tells what the peer's SETTINGS allow. Our few entries fit into the
// table that every connection starts with; anything smaller is not worth a plan.
func (w *headerWriter) tableSize(n uint32) {
	if n < 4096 && !w.plain {
		w.plain, w.resize = true, true
	}
}

func (w *headerWriter) append(b []byte, m Method) []byte {
	if w.resize {
		b = append(b, 0x20) // table size 0
		w.resize = false
	}
	scheme := byte(staticSchemeHTTP)
	if w.https {
		scheme = staticSchemeHTTPS
	}
	b = append(b, staticMethodPost, scheme)
	b = w.field(b, int(m), staticPath, "", paths[m])
	b = w.field(b, fieldAuthority, staticAuthority, "", w.authority)
	b = w.field(b, fieldContentType, staticContentType, "", "application/grpc")
	b = w.field(b, fieldTE, 0, "te", "trailers")
	return w.field(b, fieldUserAgent, staticUserAgent, "", "kvorum-bench")
}

// field names the field by its place in the peer's table, or spells it out and
// so gives it a place. The name is an entry of the static table, or else text.
func (w *headerWriter) field(b []byte, which, static int, name, value string) []byte {
	if place := w.placed[which]; place > 0 && !w.plain {
		// Entries are counted from the newest.
		return appendPrefixed(b, 0x80, 7, staticEntries+1+w.added-place)
	}
	if w.plain {
		b = appendPrefixed(b, 0x00, 4, static)
	} else {
		b = appendPrefixed(b, 0x40, 6, static)
		w.added++
		w.placed[which] = w.added
	}
	if static == 0 {
		b = append(appendPrefixed(b, 0x00, 7, len(name)), name...)
	}
	return append(appendPrefixed(b, 0x00, 7, len(value)), value...)
}

// appendPrefixed writes n as HPACK writes numbers: in the low bits of the first
// byte if it fits, else continued seven bits at a time.
func appendPrefixed(b []byte, high byte, bits, n int) []byte {
	limit := 1<<bits - 1
	if n < limit {
		return append(b, high|byte(n))
	}
	b = append(b, high|byte(limit))
	for n -= limit; n >= 0x80; n >>= 7 {
		b = append(b, 0x80|byte(n))
	}
	return append(b, byte(n))
}

// outcome is what the header blocks of an answer say.
type outcome struct {
	http    string // :status
	status  string // grpc-status
	message string // grpc-message, still percent-encoded
}

// err is nil for success.
func (o outcome) err() error {
	switch {
	case o.status == "0":
		return nil
	case o.status != "":
		text, err := url.PathUnescape(o.message)
		if err != nil {
			text = o.message
		}
		return fmt.Errorf("grpc-status %s: %s", o.status, text)
	case o.http != "" && o.http != "200":
		return fmt.Errorf("http status %s", o.http)
	}
	return fmt.Errorf("the answer ended without grpc-status")
}

// headerReader reads the header blocks of one connection's answers.
type headerReader struct {
	decoder *hpack.Decoder
	into    outcome

	// A server names what it said before by its place in the table, so the same
	// few bytes come again and again and mean the same until the table changes.
	known [4]struct {
		block []byte
		means outcome
	}
	used int
}

func newHeaderReader() *headerReader {
	r := &headerReader{}
	r.decoder = hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		switch f.Name {
		case ":status":
			r.into.http = f.Value
		case "grpc-status":
			r.into.status = f.Value
		case "grpc-message":
			r.into.message = f.Value
		}
	})
	return r
}

// read adds to have what block says.
func (r *headerReader) read(block []byte, have outcome) (outcome, error) {
	for i := range r.used {
		if k := &r.known[i]; bytes.Equal(k.block, block) {
			return have.with(k.means), nil
		}
	}
	r.into = outcome{}
	if _, err := r.decoder.Write(block); err != nil {
		return have, fmt.Errorf("header block: %w", err)
	}
	if err := r.decoder.Close(); err != nil {
		return have, fmt.Errorf("header block: %w", err)
	}

	switch {
	case !onlyPlaces(block):
		r.used = 0
	case r.used < len(r.known):
		k := &r.known[r.used]
		k.block, k.means = append(k.block[:0], block...), r.into
		r.used++
	}
	return have.with(r.into), nil
}

// onlyPlaces reports whether every field of the block is a single byte naming a
// place in the tables: such a block changes nothing.
func onlyPlaces(block []byte) bool {
	for _, b := range block {
		if b&0x80 == 0 || b == 0xff {
			return false
		}
	}
	return true
}

func (o outcome) with(more outcome) outcome {
	if more.http != "" {
		o.http = more.http
	}
	if more.status != "" {
		o.status = more.status
	}
	if more.message != "" {
		o.message = more.message
	}
	return o
}
