package rpc

import (
	"math/rand/v2"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/encoding/proto"
)

// TestEncoder writes blocks at random, and has x/net read them.
func TestEncoder(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		var e encoder
		var got, want []hpack.HeaderField
		d := hpack.NewDecoder(4096, func(f hpack.HeaderField) { got = append(got, f) })
		small := random.IntN(20)
		for i := range 20 {
			if i == small {
				size := uint32(random.IntN(8192))
				e.limitTable(size)
				d.SetAllowedMaxDynamicTableSize(size)
			}
			got, want = nil, nil
			add := func(name, value string) { want = append(want, hpack.HeaderField{Name: name, Value: value}) }
			b := e.begin(nil)
			if random.IntN(2) == 0 {
				status := []string{"200", "415"}[random.IntN(2)]
				contentType := []string{grpcContentType, grpcContentType + "+json"}[random.IntN(2)]
				add(":status", status)
				add("content-type", contentType)
				b = e.responseHeaders(b, map[string]int{"200": 200, "415": 415}[status], contentType)
			}
			if random.IntN(2) == 0 {
				code := random.IntN(2) * random.IntN(17)
				add("grpc-status", strconv.Itoa(code))
				b = e.grpcStatus(b, code)
			}
			if random.IntN(2) == 0 {
				value := strings.Repeat("a~", random.IntN(1<<random.IntN(15)))
				add("name", value)
				b = e.field(b, "name", value)
			}
			if len(want) == 0 {
				continue
			}
			if _, err := d.Write(b); err != nil || d.Close() != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("got %v, want %v", got, want)
			}
		}
	}
}

func TestUsualAnswersTakeFewBytes(t *testing.T) {
	var e encoder
	e.grpcStatus(e.responseHeaders(nil, 200, grpcContentType), 0)
	if n := len(e.responseHeaders(nil, 200, grpcContentType)) + len(e.grpcStatus(nil, 0)); n != 3 {
		t.Errorf("%d bytes", n)
	}
}

func TestTimeouts(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"1n": 1, "10u": 10 * time.Microsecond, "99999999m": 99999999 * time.Millisecond,
		"5S": 5 * time.Second, "2M": 2 * time.Minute, "3H": 3 * time.Hour, "99999999H": 1<<63 - 1, "0S": 0,
	} {
		if got, err := readTimeout(s); err != nil || got != want {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "1", "S", "1s", "-1S", "123456789S", "1.5S", "+1S"} {
		if got, err := readTimeout(s); err == nil {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func TestContentTypes(t *testing.T) {
	for s, want := range map[string]string{
		"application/grpc":           "application/grpc",
		"application/grpc+proto":     "application/grpc+proto",
		"application/grpc;proto":     "application/grpc+proto",
		"application/grpc+":          "application/grpc",
		"application/grpc+" + "what": "application/grpc+what",
		"application/grpcx":          "",
		"application/json":           "",
		"":                           "",
	} {
		h := &head{contentType: grpcContentType}
		got := ""
		if h.readContentType(s) {
			got = h.contentType
		}
		if got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
		if h.codec != nil && h.codec.Name() != proto.Name {
			t.Errorf("%q: encoded by %s", s, h.codec.Name())
		}
	}
}

// FuzzHead makes sense of any header fields, and keeps what was said to what
// handlers may see.
func FuzzHead(f *testing.F) {
	f.Add(":method", "POST", "content-type", "application/grpc", "x-bin", "AA,BB==")
	f.Add(":authority", "a", "host", "b", "grpc-encoding", "gzip")
	f.Add("te", "trailers", "Upper", "\x00", "", "")
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2, n3, v3 string) {
		fields := []hpack.HeaderField{{Name: n1, Value: v1}, {Name: n2, Value: v2}, {Name: n3, Value: v3}}
		h := readHead(fields)
		if !h.says(fields) || h.says(fields[:2]) {
			t.Error("it does not know what it was made of")
		}
		if h.malformed || h.refused != nil {
			return
		}
		for name := range h.md {
			if reserved(name) && name != "content-type" && name != "user-agent" && name != ":authority" {
				t.Errorf("handlers see %q", name)
			}
		}
	})
}

func FuzzMessage(f *testing.F) {
	f.Add("100% \xff ü \n")
	f.Fuzz(func(t *testing.T, s string) {
		encoded := encodeMessage(s)
		var decoded []byte
		for i := 0; i < len(encoded); i++ {
			c := encoded[i]
			if c < ' ' || c > '~' {
				t.Fatalf("%q", encoded)
			}
			if c == '%' {
				c = unhex(encoded[i+1])<<4 | unhex(encoded[i+2])
				i += 2
			}
			decoded = append(decoded, c)
		}
		if want := strings.ToValidUTF8(s, ""); utf8.ValidString(s) && string(decoded) != want {
			t.Errorf("%q became %q", s, decoded)
		}
		if !utf8.Valid(decoded) {
			t.Errorf("%q is no text", decoded)
		}
	})
}

func unhex(c byte) byte {
	if c >= 'A' {
		return c - 'A' + 10
	}
	return c - '0'
}
