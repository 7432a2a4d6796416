package upstream

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"sync/atomic"
)

// httpWay forwards requests that are not gRPC.
type httpWay struct {
	of        *Upstream
	transport *http.Transport
	turn      atomic.Uint32
}

func (h *httpWay) init(u *Upstream) {
	h.of = u
	h.transport = &http.Transport{
		DialContext: func(ctx context.Context, _, host string) (net.Conn, error) {
			address, err := addressOf(host)
			if err != nil {
				return nil, err
			}
			conn, err := dial(ctx, address, "http/1.1", u.options.TLS)
			if err != nil {
				err = unreached{err}
			}
			return conn, err
		},
		MaxIdleConnsPerHost: 64,
		DisableCompression:  true,
	}
}

// unreached is an error that came before anything was sent.
type unreached struct{ error }

// The transport keeps connections by host, and an address is more than that. So
// all of it stands in the place of the host.
func hostOf(address string) string { return hex.EncodeToString([]byte(address)) }

func addressOf(host string) (string, error) {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		return "", err
	}
	address, err := hex.DecodeString(name)
	return string(address), err
}

// HTTP returns a handler that forwards requests as they are, and answers as
// they come.
func (u *Upstream) HTTP() http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme = "http"
			r.Out.Host = r.In.Host
			r.SetXForwarded()
		},
		FlushInterval: -1,
		Transport:     &u.http,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, "no member answers: "+err.Error(), http.StatusServiceUnavailable)
		},
	}
}

// RoundTrip asks the next member that is well, and others where one cannot be
// reached (U1).
func (h *httpWay) RoundTrip(r *http.Request) (*http.Response, error) {
	willing := h.of.willing()
	if len(willing) == 0 || h.of.await(r.Context()) != nil {
		return nil, errors.New(h.of.why())
	}
	body := r.Body
	turn := int(h.turn.Add(1) % uint32(len(willing)))
	for i := 0; ; i++ {
		asked := r.Clone(r.Context())
		asked.URL.Host = hostOf(willing[(turn+i)%len(willing)].address)
		if body != nil {
			asked.Body = io.NopCloser(body) // it is closed also where nobody was reached
		}
		resp, err := h.transport.RoundTrip(asked)
		if !errors.As(err, new(unreached)) || i+1 == len(willing) {
			return resp, err
		}
	}
}

// willing returns the members that are well or, where none is, those that can
// say themselves what they lack.
func (u *Upstream) willing() (all []*member) {
	var others []*member
	for _, m := range u.all() {
		switch {
		case m.is(well):
			all = append(all, m)
		case m.given.Load() && !m.is(stranger):
			others = append(others, m)
		}
	}
	if len(all) == 0 {
		return others
	}
	return all
}
