package v2

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/kvorum/kvorum/state"
)

// FuzzParse compares what is read of a request with what net/http reads of it,
// and has every request mean something: an error, or a change that can be
// proposed.
func FuzzParse(f *testing.F) {
	for _, query := range []string{
		"", "recursive=true&sorted=1", "wait=true&waitIndex=7&stream=t", "prevExist=false&dir=true", "prevValue=&ttl=",
		"ttl=5&refresh=true", "a;b&%zz", "value=%FF+%2B&value=2", "&&=&x", "prevIndex=18446744073709551616",
	} {
		for _, contentType := range []string{"", formType, "Application/X-WWW-Form-Urlencoded; charset=utf-8", "text/plain", "a/b/c", formType + "; ="} {
			f.Add("PUT", query, contentType, []byte("value=x&ttl=10"))
			f.Add("GET", query, contentType, []byte(nil))
		}
	}
	f.Add("DELETE", "prevValue=a", "", []byte(nil))
	f.Add("POST", "", formType, []byte("value=%zz;"))
	f.Fuzz(func(t *testing.T, method, query, contentType string, body []byte) {
		r := &http.Request{
			Method: method, URL: &url.URL{RawQuery: query}, Header: http.Header{"Content-Type": {contentType}},
			Body: http.NoBody, ContentLength: int64(len(body)),
		}
		if len(body) > 0 {
			r.Body = readCloser{strings.NewReader(string(body))}
		}
		wrong := r.ParseForm()
		parsed, err := readForm(method, query, contentType, body)
		if method != http.MethodPatch && strings.Count(query+string(body), "&") < 1000 { // net/http has a limit
			if (wrong == nil) != (err == nil) || err != nil && err.Error() != wrong.Error() {
				t.Fatalf("read with error %v, by net/http %v", err, wrong)
			}
			for name, values := range r.Form {
				if got, ok := parsed.get(name); known(name) && (!ok || got != values[0]) {
					t.Errorf("%s=%q, by net/http %q", name, got, values[0])
				}
			}
			for _, p := range parsed {
				if !r.Form.Has(p.name) {
					t.Errorf("%s=%q, unknown to net/http", p.name, p.value)
				}
			}
		}

		q, refused := parse(method, query, contentType, body)
		if refused != nil {
			if codes[refused.code].message == "" || refused.status() != http.StatusBadRequest || refused.index != 0 {
				t.Errorf("refused with %+v", refused)
			}
			return
		}
		if q.wait && method != http.MethodGet || q.refresh && !q.hasTTL {
			t.Errorf("%+v makes no sense", q)
		}
		now := time.Unix(1e9, 0)
		c := changeOf(method, "/a", &q, now)
		if c.Deadline != 0 && c.Deadline < now.UnixNano() {
			t.Errorf("%+v ends before it begins", c)
		}
		encoded := state.Command{Kind: state.Hierarchy, Encoded: c.Append(nil)}
		if _, err := encoded.Append(nil); err != nil {
			t.Error(err)
		}
	})
}

type readCloser struct{ *strings.Reader }

func (readCloser) Close() error { return nil }

func TestWhichChangeIsAskedFor(t *testing.T) {
	now := time.Unix(100, 0)
	end := time.Unix(110, 0).UnixNano()
	for _, c := range []struct {
		method, query string
		want          state.HierarchyRequest
	}{
		{"PUT", "value=1", state.HierarchyRequest{Op: state.NodeSet, Value: "1"}},
		{"PUT", "dir=true&ttl=10", state.HierarchyRequest{Op: state.NodeSet, Dir: true, Deadline: end}},
		{"PUT", "ttl=10&refresh=true", state.HierarchyRequest{Op: state.NodeSet, Refresh: true, Deadline: end}},
		{"PUT", "prevExist=false&prevValue=x&refresh=true&ttl=10", state.HierarchyRequest{Op: state.NodeCreate, Deadline: end}},
		{"PUT", "prevExist=true&value=2", state.HierarchyRequest{Op: state.NodeUpdate, Value: "2"}},
		{"PUT", "prevExist=true&prevIndex=7", state.HierarchyRequest{Op: state.NodeCompareAndSwap, PrevIndex: 7}},
		{"PUT", "prevIndex=0", state.HierarchyRequest{Op: state.NodeSet}},
		{"PUT", "prevValue=x&value=y", state.HierarchyRequest{Op: state.NodeCompareAndSwap, PrevValue: "x", Value: "y"}},
		{"POST", "prevExist=true&prevValue=x&refresh=true&ttl=10", state.HierarchyRequest{Op: state.NodeCreateInOrder, Deadline: end}},
		{"DELETE", "value=x&ttl=10", state.HierarchyRequest{Op: state.NodeDelete}},
		{"DELETE", "recursive=true", state.HierarchyRequest{Op: state.NodeDelete, Dir: true, Recursive: true}},
		{"DELETE", "prevIndex=7&dir=true", state.HierarchyRequest{Op: state.NodeCompareAndDelete, PrevIndex: 7, Dir: true}},
		{"PUT", "ttl=18446744073709551615", state.HierarchyRequest{Op: state.NodeSet}},
	} {
		q, refused := parse(c.method, c.query, "", nil)
		if refused != nil {
			t.Fatalf("%s %s: %+v", c.method, c.query, refused)
		}
		c.want.Path = "/a"
		got := changeOf(c.method, "/a", &q, now)
		if string(got.Append(nil)) != string(c.want.Append(nil)) {
			t.Errorf("%s %s: %+v, want %+v", c.method, c.query, got, c.want)
		}
	}
}
