package gateway

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
)

// Access decides which browsers and which host names are served.
type Access struct {
	Origins []string // origins a browser page may have; default all
	Hosts   []string // names a plain-text request may be addressed to; default all
}

// Guard returns next behind the rules of a.
func (a Access) Guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A page whose name was re-bound to this address sends its own name as
		// the host. Over TLS the certificate's name already forbids that.
		if r.TLS == nil && !a.host(r.Host) {
			http.Error(w, fmt.Sprintf("The host %q of this request is not one this member answers to.\n"+
				"Use TLS, or name it in --host-whitelist.", r.Host), http.StatusMisdirectedRequest)
			return
		}
		if origin, allowed := a.origin(r.Header.Get("Origin")); allowed {
			h := w.Header()
			h.Set("Access-Control-Allow-Methods", "POST, GET, OPTIONS, PUT, DELETE")
			h.Set("Access-Control-Allow-Origin", origin)
			h.Set("Access-Control-Allow-Headers", "accept, content-type, authorization")
		} else if upgrades(r) && !sameOrigin(r) {
			// Of what passes over a WebSocket, browsers keep nothing from a page.
			http.Error(w, "The page's origin is not among those that --cors allows.", http.StatusForbidden)
			return
		}
		if r.Method == http.MethodOptions {
			w.WriteHeader(http.StatusOK)
			return
		}
		if path := Canonical(r.URL.Path); path != r.URL.Path {
			u := *r.URL
			u.Path, u.RawPath = path, ""
			r2 := *r
			r2.URL = &u
			r = &r2
		}
		next.ServeHTTP(w, r)
	})
}

// Open tells whether a lets everything through.
func (a Access) Open() bool {
	all := func(names []string) bool { return len(names) == 0 || slices.Contains(names, "*") }
	return all(a.Origins) && all(a.Hosts)
}

func (a Access) origin(asked string) (allowed string, ok bool) {
	if len(a.Origins) == 0 || slices.Contains(a.Origins, "*") {
		return "*", true
	}
	return asked, asked != "" && slices.Contains(a.Origins, asked)
}

// sameOrigin tells whether r was sent by a page of this server, or by none.
func sameOrigin(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && u.Host == r.Host
}

func (a Access) host(asked string) bool {
	if len(a.Hosts) == 0 || slices.Contains(a.Hosts, "*") {
		return true
	}
	if name, _, err := net.SplitHostPort(asked); err == nil {
		asked = name
	}
	return slices.Contains(a.Hosts, asked)
}
