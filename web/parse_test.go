package web

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

func all(string) bool { return true }

// FuzzParse has net/http read what was understood here: it must be the same. Of
// what becomes a request, no beginning may be taken for anything else.
func FuzzParse(f *testing.F) {
	for _, request := range requests {
		f.Add([]byte(request.text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Request
		v, size := parse(b, &r, all)
		if v != whole {
			return
		}
		if size > len(b) || !bytes.HasSuffix(b[:size], r.Body) {
			t.Fatalf("%q: %d bytes with a body of %d", b, size, len(r.Body))
		}
		theirs, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b[:size])))
		if err != nil {
			t.Fatalf("%q is no request: %v", b[:size], err)
		}
		body, err := io.ReadAll(theirs.Body)
		if err != nil {
			t.Fatalf("%q has no body: %v", b[:size], err)
		}
		if theirs.Method != r.Method || theirs.URL.Path != r.Path || theirs.URL.RawQuery != r.Query ||
			theirs.Header.Get("Content-Type") != r.ContentType || string(body) != string(r.Body) {
			t.Errorf("%q: %+v, by net/http %s %q %q %q", b[:size], r, theirs.Method, theirs.URL.Path, theirs.URL.RawQuery, body)
		}
		if theirs.URL.Host != "" || theirs.Close || len(theirs.TransferEncoding) > 0 || !clean(theirs.URL.Path) {
			t.Errorf("%q is not plain", b[:size])
		}
		for cut := range size {
			var part Request
			v, want := parse(b[:cut], &part, all)
			if v != partial || want != 0 && want != size {
				t.Fatalf("%q, of which %d of %d bytes have come: %d, %d bytes", b[:size], cut, size, v, want)
			}
		}
	})
}

var requests = []struct {
	text string
	want verdict
}{
	{"GET /v2/keys/a HTTP/1.1\r\nHost: h\r\n\r\n", whole},
	{"GET /v2/keys/a?wait=true&x=%zz HTTP/1.1\r\nhost: h:1\r\nUser-Agent: curl/8 (x; \"y\")\r\nAccept: */*\r\nConnection: Keep-Alive\r\n\r\n", whole},
	{"PUT /v2/keys/a HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 7\r\n\r\nvalue=1GET", whole},
	{"DELETE /v2/keys/a/ HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 0\r\n\r\n", whole},
	{"", partial},
	{"PU", partial},
	{"GET /v2/keys/a HTTP/1.1\r\nHost", partial},
	{"POST /v2/keys HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nab", partial},

	{"HEAD /v2/keys/a HTTP/1.1\r\nHost: h\r\n\r\n", foreign},
	{"PRI * HTTP/2.0\r\n\r\n", foreign},
	{"GET /v2/keys/a HTTP/1.0\r\nHost: h\r\n\r\n", foreign},
	{"GET /v2/keys/a%2Fb HTTP/1.1\r\nHost: h\r\n\r\n", foreign},
	{"GET /v2/keys//a HTTP/1.1\r\nHost: h\r\n\r\n", foreign},
	{"GET /v2/keys/../a HTTP/1.1\r\nHost: h\r\n\r\n", foreign},
	{"GET http://h/v2/keys/a HTTP/1.1\r\nHost: h\r\n\r\n", foreign},
	{"GET /v2/keys/a#b HTTP/1.1\r\nHost: h\r\n\r\n", foreign},
	{"GET  /v2/keys/a HTTP/1.1\r\nHost: h\r\n\r\n", foreign},
	{"GET /v2/keys/a HTTP/1.1\nHost: h\n\n", foreign},
	{"GET /v2/keys/a HTTP/1.1\r\nHost: h\n\r\n", foreign},
	{"GET /v2/keys/a HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n", foreign},
	{"GET /v2/keys/a HTTP/1.1\r\n\r\n", foreign},
	{"GET /v2/keys/a HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", foreign},
	{"GET /v2/keys/a HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n", foreign},
	{"GET /v2/keys/a HTTP/1.1\r\nHost : h\r\n\r\n", foreign},
	{"GET /v2/keys/a HTTP/1.1\r\nHost: h\r\nX: a\x00b\r\n\r\n", foreign},
	{"GET /v2/keys/a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", foreign},
	{"PUT /v2/keys/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", foreign},
	{"PUT /v2/keys/a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", foreign},
	{"PUT /v2/keys/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", foreign},
	{"PUT /v2/keys/a HTTP/1.1\r\nHost: h\r\nContent-Type:\r\nContent-Type: b/c\r\n\r\n", foreign},
	{"PUT /v2/keys/a HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\na", foreign},
	{"PUT /v2/keys/a HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n", foreign},
	{"GET /v2/keys/a HTTP/1.1\r\nHost: h\r\nAuthorization: Basic x\r\n\r\n", foreign},
	{"GET /v2/keys/a HTTP/1.1\r\nHost: h\r\nOrigin: http://x\r\n\r\n", foreign},
	{"GET /v3/keys HTTP/1.1\r\nHost: h\r\n\r\n", foreign},
}

func TestWhatIsPlain(t *testing.T) {
	for _, c := range requests {
		var r Request
		takes := func(p string) bool { return strings.HasPrefix(p, "/v2/") }
		if got, _ := parse([]byte(c.text), &r, takes); got != c.want {
			t.Errorf("%q: %d, want %d", c.text, got, c.want)
		}
	}
}
