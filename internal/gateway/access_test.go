package gateway

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestAccess(t *testing.T) {
	for _, c := range []struct {
		name         string
		access       Access
		host, origin string
		tls          bool
		code         int
		allowed      string
	}{
		{"all by default", Access{}, "any:2379", "", false, 200, "*"},
		{"star", Access{Origins: []string{"*"}, Hosts: []string{"*"}}, "any", "http://page", false, 200, "*"},
		{"a known host", Access{Hosts: []string{"kv.example"}}, "kv.example:2379", "", false, 200, "*"},
		{"an unknown host", Access{Hosts: []string{"kv.example"}}, "evil.example", "", false, 421, ""},
		{"a certificate names the host", Access{Hosts: []string{"kv.example"}}, "other.example", "", true, 200, "*"},
		{"an address", Access{Hosts: []string{"::1"}}, "[::1]:2379", "", false, 200, "*"},
		{"a known origin", Access{Origins: []string{"http://page"}}, "any", "http://page", false, 200, "http://page"},
		{"an unknown origin", Access{Origins: []string{"http://page"}}, "any", "http://evil", false, 200, ""},
		{"no origin", Access{Origins: []string{"http://page"}}, "any", "", false, 200, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/v3beta/kv/range", nil)
			r.Host = c.host
			if c.tls {
				r.TLS = &tls.ConnectionState{}
			}
			if c.origin != "" {
				r.Header.Set("Origin", c.origin)
			}
			w := httptest.NewRecorder()
			c.access.Guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/v3/kv/range" {
					t.Errorf("path %s", r.URL.Path)
				}
			})).ServeHTTP(w, r)
			if w.Code != c.code || w.Header().Get("Access-Control-Allow-Origin") != c.allowed {
				t.Errorf("%d %q, want %d %q", w.Code, w.Header().Get("Access-Control-Allow-Origin"), c.code, c.allowed)
			}
		})
	}
}
