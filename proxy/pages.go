package proxy

import (
	"encoding/json"
	"net/http"
	"net/http/pprof"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/status"

	"github.com/kvorum/kvorum/internal/gateway"
	"github.com/kvorum/kvorum/metric"
	"github.com/kvorum/kvorum/proxy/internal/merge"
	"github.com/kvorum/kvorum/proxy/internal/namespace"
	"github.com/kvorum/kvorum/proxy/internal/upstream"
)

// pages answers HTTP on the proxy's port: the JSON of the v3 API, what the proxy
// says of itself, and all else as a member answers it.
func pages(up *upstream.Upstream, m *metrics, json http.Handler, ns namespace.Prefix, profiles bool) http.Handler {
	own := http.NewServeMux()
	monitoring(own, up, m)
	own.Handle("/v3/", json)
	if profiles {
		own.HandleFunc("/debug/pprof/", pprof.Index)
		own.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		own.HandleFunc("/debug/pprof/profile", pprof.Profile)
		own.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		own.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	all := http.NewServeMux()
	all.Handle("/", gateway.Access{}.Guard(own))
	all.Handle("/v2/", version2(up.HTTP(), ns)) // which pages may ask, the member says
	all.Handle("/version", up.HTTP())
	return all
}

// monitoring registers what those want to know who watch over the proxy.
func monitoring(mux *http.ServeMux, up *upstream.Upstream, m *metrics) {
	metrics := m.handler(up)
	mux.Handle("/metrics", metrics)
	mux.Handle("/proxy/metrics", metrics)
	health := func(w http.ResponseWriter, _ *http.Request) { writeHealth(w, up.Health()) }
	mux.HandleFunc("/health", health)
	mux.HandleFunc("/proxy/health", health)
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := up.Health(); err != nil {
			http.Error(w, "[-]members failed: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
}

// writeHealth answers in the form of a member's: both values are strings.
func writeHealth(w http.ResponseWriter, err error) {
	answer := struct {
		Health string `json:"health"`
		Reason string `json:"reason"`
	}{Health: "true"}
	code := http.StatusOK
	if err != nil {
		answer.Health, answer.Reason, code = "false", err.Error(), http.StatusServiceUnavailable
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	b, _ := json.Marshal(answer) // strings always encode
	_, _ = w.Write(b)
}

// version2 refuses the v2 API in a namespace: its answers name keys, nodes and
// causes in many places, and none may be missed.
func version2(next http.Handler, ns namespace.Prefix) http.Handler {
	if ns == "" {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "The v2 API is not served through a proxy with --namespace: use the v3 API, or a proxy without one.", http.StatusForbidden)
	})
}

// metrics are what the proxy counts.
type metrics struct {
	watch   merge.WatchMetrics
	leases  merge.KeepAliveMetrics
	handled *metric.Family[metric.Counter] // grpc_code, grpc_method, grpc_service, grpc_type
}

func newMetrics() *metrics {
	return &metrics{
		watch: merge.WatchMetrics{
			Watchers: metric.NewGauge(), Upstream: metric.NewGauge(), Merged: metric.NewGauge(), Spared: metric.NewCounter(),
		},
		leases:  merge.KeepAliveMetrics{Asked: metric.NewCounter(), Sent: metric.NewCounter()},
		handled: metric.NewFamily(metric.NewCounter, "grpc_code", "grpc_method", "grpc_service", "grpc_type"),
	}
}

// count returns what counts the calls of a method by how they ended.
func (m *metrics) count(service, method, kind string) func(error) {
	ok := m.handled.With("OK", method, service, kind)
	return func(err error) {
		if err == nil {
			ok.Inc()
			return
		}
		m.handled.With(status.Code(err).String(), method, service, kind).Inc()
	}
}

func (m *metrics) handler(up *upstream.Upstream) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collector{m, up},
	)
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

// The names of etcd's proxy, where it has one for the same.
var (
	watchersDesc  = prometheus.NewDesc("kvorum_proxy_watchers", "Watchers of clients.", nil, nil)
	upstreamDesc  = prometheus.NewDesc("kvorum_proxy_upstream_watchers", "Watchers of the proxy at members.", nil, nil)
	mergedDesc    = prometheus.NewDesc("etcd_grpc_proxy_watchers_coalescing_total", "Watchers of clients that need none at a member.", nil, nil)
	sparedDesc    = prometheus.NewDesc("etcd_grpc_proxy_events_coalescing_total", "Events told to clients beyond those told by members.", nil, nil)
	askedDesc     = prometheus.NewDesc("kvorum_proxy_keepalives_total", "Keep-alives asked for by clients.", nil, nil)
	sentDesc      = prometheus.NewDesc("kvorum_proxy_upstream_keepalives_total", "Keep-alives sent to members.", nil, nil)
	memberDesc    = prometheus.NewDesc("kvorum_proxy_member_healthy", "Whether the member at an address can answer for the cluster.", []string{"endpoint"}, nil)
	handledDesc   = prometheus.NewDesc("grpc_server_handled_total", "Calls that have ended, by how.", []string{"grpc_code", "grpc_method", "grpc_service", "grpc_type"}, nil)
	truthAsNumber = map[bool]float64{true: 1}
)

// collector shows metrics to Prometheus.
type collector struct {
	*metrics
	up *upstream.Upstream
}

func (c collector) Describe(descs chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, descs) }

func (c collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(watchersDesc, float64(c.watch.Watchers.Value()))
	gauge(upstreamDesc, float64(c.watch.Upstream.Value()))
	gauge(mergedDesc, float64(c.watch.Merged.Value()))
	counter(sparedDesc, c.watch.Spared.Value())
	counter(askedDesc, c.leases.Asked.Value())
	counter(sentDesc, c.leases.Sent.Value())
	for _, m := range c.up.Members() {
		gauge(memberDesc, truthAsNumber[m.Well], strings.ToValidUTF8(m.Address, "?"))
	}
	c.handled.Each(func(labels []string, n *metric.Counter) { counter(handledDesc, n.Value(), labels...) })
}
