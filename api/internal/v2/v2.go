// Package v2 is etcd's second API, HTTP with JSON, over the keys of the third:
// the node /foo/bar is the key of that name. What requests do to the tree of
// nodes is decided by package state; here they are read, answered, and told
// what happens.
//
//	request.go  what a client asks: parameters, and the order in which they are judged
//	keys.go     /v2/keys: one request, one answer
//	wait.go     long polls and streams: a request that waits for what happens
//	plain.go    both without net/http, for requests that are plain
//	json.go     nodes and changes as JSON, byte for byte
//	refusal.go  error codes
//	members.go  /v2/members and /v2/machines
//	stats.go    /v2/stats
//	auth.go     /v2/auth, of a cluster without users
//
// It promises what etcd 3.4 with --enable-v2 does, but for the differences that
// test/compat lists. It adds nothing to be kept: each request reads one view or
// is one command.
package v2

import (
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/api/internal/gate"
	"github.com/kvorum/kvorum/metric"
	"github.com/kvorum/kvorum/state"
	"github.com/kvorum/kvorum/watch"
)

// Backend is what is asked of the member, beside what the gate asks.
type Backend interface {
	gate.Backend

	// Hub is where those who watch keys listen.
	Hub() *watch.Hub

	// Traffic is what passed between this member and the others.
	Traffic() Traffic
}

// Traffic is what passed between a member and the others.
type Traffic struct {
	LeaderSince    time.Time // zero: nobody leads
	Sent, Received uint64    // messages with entries
	Peers          []PeerTraffic
}

// PeerTraffic is that with one of them. The times are of round trips.
type PeerTraffic struct {
	ID                              state.MemberID
	Last, Mean, Deviation, Min, Max time.Duration
	Answered, Lost                  uint64
}

// Handler answers all paths below /v2.
type Handler struct {
	// Immutable after New.
	gate    *gate.Gate
	backend Backend
	members pb.ClusterClient
	expired *metric.Counter
	started time.Time

	counts counts
	recent recent
	date   date
}

// New returns a Handler. The members are changed by asking the services of v3:
// what is refused there is refused here. The nodes that have expired are counted
// elsewhere.
func New(g *gate.Gate, b Backend, members pb.ClusterClient, expired *metric.Counter) *Handler {
	return &Handler{gate: g, backend: b, members: members, expired: expired, started: time.Now()}
}

// Guard returns a handler that answers what is asked of this API, and leaves
// all else to next. It judges by the decoded path, and comes before any router
// that does not: there, ..%2f would lead out of the keys.
func (h *Handler) Guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		clean := cleaned(r.URL.Path)
		switch {
		case !ours(r.URL.Path) && !ours(clean):
			next.ServeHTTP(w, r)
		case clean != r.URL.Path:
			to := url.URL{Path: clean, RawQuery: r.URL.RawQuery}
			http.Redirect(w, r, to.String(), http.StatusMovedPermanently)
		default:
			h.ServeHTTP(w, r)
		}
	})
}

func ours(p string) bool { return p == "/v2" || strings.HasPrefix(p, "/v2/") }

// cleaned resolves dots and empty segments. A slash at the end stays.
func cleaned(p string) string {
	c := path.Clean("/" + p)
	if strings.HasSuffix(p, "/") && c != "/" {
		c += "/"
	}
	return c
}

// ServeHTTP answers a request with a clean path.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	place, rest, below := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
	switch {
	case place == "keys":
		h.keys(w, r, "/"+rest)
	case place == "members":
		h.serveMembers(w, r, rest)
	case place == "machines" && !below:
		h.machines(w, r)
	case place == "stats" && below:
		h.stats(w, r, rest)
	case place == "auth" && below:
		h.auth(w, r, rest)
	default:
		http.NotFound(w, r)
	}
}

// allow answers a method that is not among those allowed.
func allow(w http.ResponseWriter, r *http.Request, methods ...string) bool {
	for _, m := range methods {
		if m == r.Method {
			return true
		}
	}
	w.Header().Set("Allow", strings.Join(methods, ","))
	http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
	return false
}

// clusterHeader names the cluster.
func (h *Handler) clusterHeader(header http.Header) {
	header["X-Etcd-Cluster-Id"] = []string{fmt.Sprintf("%x", uint64(h.backend.Status().Cluster))}
}
