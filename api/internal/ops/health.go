package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/metric"
)

// HealthMetrics count the answers of the health paths.
type HealthMetrics struct {
	Healthy, Unhealthy *metric.Counter

	Check  *metric.Family[metric.Gauge]   // type, name: 1 if it passed last time
	Checks *metric.Family[metric.Counter] // type, name, status
}

// check is one question that an answer about health is made of.
type check struct {
	name string
	pass func(ctx context.Context, m Member) error
}

var (
	serializableRead = check{"serializable_read", func(ctx context.Context, m Member) error { return m.Read(ctx, false) }}
	linearizableRead = check{"linearizable_read", func(ctx context.Context, m Member) error { return m.Read(ctx, true) }}
	dataCorruption   = check{"data_corruption", func(_ context.Context, m Member) error {
		for _, a := range m.Alarms() {
			if a.Alarm == pb.AlarmType_CORRUPT {
				return errors.New("alarm activated: CORRUPT")
			}
		}
		return nil
	}}
	nonLearner = check{"non_learner", func(_ context.Context, m Member) error {
		if m.Status().Learner {
			return errors.New("not supported for learner")
		}
		return nil
	}}
)

func registerHealth(mux *http.ServeMux, m Member, counts *HealthMetrics) {
	mux.HandleFunc("/health", onlyGet(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		reason := unhealthy(r, m)
		if reason != "" {
			counts.Unhealthy.Inc()
			http.Error(w, health("false", reason), http.StatusServiceUnavailable)
			return
		}
		counts.Healthy.Inc()
		_, _ = w.Write([]byte(health("true", "")))
	}))
	registerProbe(mux, m, counts, "livez", serializableRead)
	registerProbe(mux, m, counts, "readyz", dataCorruption, serializableRead, linearizableRead, nonLearner)
}

// health is a pair of strings, "true" included: scripts compare the whole.
func health(healthy, reason string) string {
	b, _ := json.Marshal(struct { // strings always encode
		Health string `json:"health"`
		Reason string `json:"reason"`
	}{healthy, reason})
	return string(b)
}

// unhealthy returns why this member should get no traffic, or nothing.
func unhealthy(r *http.Request, m Member) (reason string) {
	query := r.URL.Query()
	for _, a := range m.Alarms() {
		name := a.Alarm.String()
		if slices.Contains(query["exclude"], name) {
			continue
		}
		switch a.Alarm {
		case pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT:
			return "ALARM " + name
		default:
			return "ALARM UNKNOWN"
		}
	}
	local := query.Get("serializable") == "true"
	if !local && m.Status().Leader == 0 {
		return "RAFT NO LEADER"
	}
	if err := m.Read(r.Context(), !local); err != nil {
		return "RANGE ERROR:" + err.Error()
	}
	return ""
}

// registerProbe serves /<kind>, which runs every check, and a path below it
// for each.
func registerProbe(mux *http.ServeMux, m Member, counts *HealthMetrics, kind string, checks ...check) {
	serve := func(w http.ResponseWriter, r *http.Request, checks []check) {
		var told strings.Builder
		failed := false
		for _, c := range checks {
			if err := c.pass(r.Context(), m); err != nil {
				failed = true
				fmt.Fprintf(&told, "[-]%s failed: %v\n", c.name, err)
				counts.Check.With(kind, c.name).Set(0)
				counts.Checks.With(kind, c.name, "error").Inc()
			} else {
				fmt.Fprintf(&told, "[+]%s ok\n", c.name)
				counts.Check.With(kind, c.name).Set(1)
				counts.Checks.With(kind, c.name, "success").Inc()
			}
		}
		if failed {
			http.Error(w, told.String(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if r.URL.Query().Has("verbose") {
			_, _ = w.Write([]byte(told.String()))
		}
		_, _ = w.Write([]byte("ok\n"))
	}

	mux.HandleFunc("/"+kind, onlyGet(func(w http.ResponseWriter, r *http.Request) {
		excluded := r.URL.Query()["exclude"]
		serve(w, r, slices.DeleteFunc(slices.Clone(checks), func(c check) bool { return slices.Contains(excluded, c.name) }))
	}))
	for _, c := range checks {
		mux.HandleFunc("/"+kind+"/"+c.name, onlyGet(func(w http.ResponseWriter, r *http.Request) { serve(w, r, []check{c}) }))
	}
}
