// Package ops answers those who run a member: is it alive, is it ready, which
// version is it, what does it count. It reads and never changes anything, and
// it needs no login: it tells nothing about keys.
package ops

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/pprof"
	"os"
	"runtime"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/api/internal/gate"
)

// Member is what is asked of the member that is looked at.
type Member interface {
	// Read reads something, through a quorum or from here alone.
	Read(ctx context.Context, linearizable bool) error
	Alarms() []*pb.AlarmMember
	Status() gate.Status
}

// Versions are the versions a member reports. Clients parse them and choose
// features by them: each is three bare numbers.
type Versions struct {
	Server  string `json:"etcdserver"`
	Cluster string `json:"etcdcluster"`
	Storage string `json:"storage"`
}

// Options say what is shown.
type Options struct {
	Versions Versions
	Pprof    bool // default: not served
}

// Register puts every path for operators on mux.
func Register(mux *http.ServeMux, o Options, m Member, metrics http.Handler, counts *HealthMetrics) {
	RegisterMonitoring(mux, m, metrics, counts)
	mux.HandleFunc("/version", onlyGet(func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, o.Versions) }))
	mux.HandleFunc("/debug/vars", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, vars(m.Status())) })
	if o.Pprof {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
}

// RegisterMonitoring puts on mux the paths that are also served on the
// separate listener for metrics.
func RegisterMonitoring(mux *http.ServeMux, m Member, metrics http.Handler, counts *HealthMetrics) {
	mux.Handle("/metrics", metrics)
	registerHealth(mux, m, counts)
}

func writeJSON(w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b)
}

func onlyGet(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
			return
		}
		h(w, r)
	}
}

// vars has the shape of expvar without its global table, which would outlive
// the member and forbid a second one in the process.
func vars(s gate.Status) map[string]any {
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	role := "StateFollower"
	if s.Leader == s.Member {
		role = "StateLeader"
	}
	_, limit := descriptors()
	return map[string]any{
		"cmdline":               os.Args,
		"memstats":              &mem,
		"file_descriptor_limit": limit,
		"raft.status": map[string]any{
			"id":        fmt.Sprintf("%x", uint64(s.Member)),
			"term":      s.Term,
			"commit":    s.Committed,
			"applied":   s.Applied,
			"lead":      fmt.Sprintf("%x", uint64(s.Leader)),
			"raftState": role,
		},
	}
}
