package ops

import (
	"fmt"
	"net/http"
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/kvorum/kvorum/api/internal/gate"
	"github.com/kvorum/kvorum/metric"
)

// Metrics are the values that rooms are handed to count with, each under the
// name of what it counts. Their names on the wire stand in one table below.
type Metrics struct {
	Gate   gate.Metrics
	Calls  gate.CallMetrics
	Health HealthMetrics

	// The log on disk.
	LogSyncSeconds  *metric.Histogram
	LogWriteSeconds *metric.Histogram
	LogBytes        *metric.Counter

	// The state on disk.
	CommitSeconds   *metric.Histogram // the table made durable
	DefragSeconds   *metric.Histogram
	Defragmenting   *metric.Gauge
	SnapshotSeconds *metric.Histogram // a snapshot of the whole state written out
	HashKVSeconds   *metric.Histogram
	CompactionPause *metric.Histogram // milliseconds of a step of a sweep
	CompactionTime  *metric.Histogram // milliseconds a sweep took
	CompactionLast  *metric.Gauge     // unix time
	CompactedKeys   *metric.Counter   // versions a sweep removed

	// What was applied here.
	Puts        *metric.Counter // each put of a transaction counts
	Deletes     *metric.Counter // each key deleted counts
	Txns        *metric.Counter
	PutBytes    *metric.Counter
	Apply       *metric.Family[metric.Histogram] // version, op, success; seconds
	SlowApplies *metric.Counter

	// Agreement.
	LeaderChanges         *metric.Counter
	ProposalsPending      *metric.Gauge
	ProposalsFailed       *metric.Counter
	HeartbeatSendFailures *metric.Counter
	SlowReadIndexes       *metric.Counter
	FailedReadIndexes     *metric.Counter
	BatchCommands         *metric.Histogram // commands in one entry of the log
	SnapshotApplying      *metric.Gauge
	LearnerPromotions     *metric.Counter

	// Other members. Labels hold ids in hexadecimal.
	PeerSentBytes        *metric.Family[metric.Counter]   // To
	PeerReceivedBytes    *metric.Family[metric.Counter]   // From
	PeerSentFailures     *metric.Family[metric.Counter]   // To
	PeerReceivedFailures *metric.Family[metric.Counter]   // From
	PeerRoundTrip        *metric.Family[metric.Histogram] // To; seconds
	ActivePeers          *metric.Family[metric.Gauge]     // Local, Remote
	KnownPeers           *metric.Family[metric.Gauge]     // Local, Remote
	DisconnectedPeers    *metric.Family[metric.Counter]   // Local, Remote

	// Snapshots of the whole state, sent to a member and received from one.
	SnapshotsSent           *metric.Family[metric.Counter]   // To
	SnapshotSendFailures    *metric.Family[metric.Counter]   // To
	SnapshotsSending        *metric.Family[metric.Gauge]     // To
	SnapshotSendSeconds     *metric.Family[metric.Histogram] // To
	SnapshotsReceived       *metric.Family[metric.Counter]   // From
	SnapshotReceiveFailures *metric.Family[metric.Counter]   // From
	SnapshotsReceiving      *metric.Family[metric.Gauge]     // From
	SnapshotReceiveSeconds  *metric.Family[metric.Histogram] // From

	// Clients' connections.
	ClientSentBytes     *metric.Counter
	ClientReceivedBytes *metric.Counter

	// Watches.
	Events         *metric.Counter
	PendingEvents  *metric.Gauge
	Watchers       *metric.Gauge
	SlowWatchers   *metric.Gauge
	WatchStreams   *metric.Gauge
	WatchSend      *metric.Histogram
	WatchSendEvent *metric.Histogram
	WatchControl   *metric.Histogram
	WatchProgress  *metric.Histogram

	// Leases.
	LeasesGranted *metric.Counter
	LeasesRevoked *metric.Counter
	LeasesRenewed *metric.Counter
	LeasesExpired *metric.Counter

	NodesExpired *metric.Counter // of the hierarchy
	LeaseTTL     *metric.Histogram
}

// NewMetrics returns metrics at zero. grpc_server_handling_seconds is only
// among them if extensive: it is by far the largest.
func NewMetrics(extensive bool) *Metrics {
	// The bounds are etcd's: queries name buckets by their bound.
	millis := func() *metric.Histogram { return metric.NewHistogram(0.001, 2, 14) }
	fine := func() *metric.Histogram { return metric.NewHistogram(0.0001, 2, 20) }
	tenths := func() *metric.Histogram { return metric.NewHistogram(0.1, 2, 10) }
	count, gauge := metric.NewCounter, metric.NewGauge

	m := &Metrics{
		Gate: gate.Metrics{
			Ranges:         count(),
			RangeSeconds:   metric.NewFamily(fine, "success"),
			RequestSeconds: metric.NewFamily(millis, "type", "success"),
		},
		Calls: gate.CallMetrics{
			Started:  metric.NewFamily(count, "grpc_method", "grpc_service", "grpc_type"),
			Received: metric.NewFamily(count, "grpc_method", "grpc_service", "grpc_type"),
			Sent:     metric.NewFamily(count, "grpc_method", "grpc_service", "grpc_type"),
			Handled:  metric.NewFamily(count, "grpc_code", "grpc_method", "grpc_service", "grpc_type"),
			Clients:  metric.NewFamily(count, "type", "client_api_version"),
		},
		Health: HealthMetrics{
			Healthy: count(), Unhealthy: count(),
			Check:  metric.NewFamily(gauge, "type", "name"),
			Checks: metric.NewFamily(count, "type", "name", "status"),
		},

		LogSyncSeconds: millis(), LogWriteSeconds: millis(), LogBytes: count(),

		CommitSeconds:   millis(),
		DefragSeconds:   metric.NewHistogram(0.1, 2, 13),
		Defragmenting:   gauge(),
		SnapshotSeconds: metric.NewHistogram(0.01, 2, 17),
		HashKVSeconds:   metric.NewHistogram(0.01, 2, 15),
		CompactionPause: metric.NewHistogram(1, 2, 13),
		CompactionTime:  metric.NewHistogram(100, 2, 14),
		CompactionLast:  gauge(),
		CompactedKeys:   count(),

		Puts: count(), Deletes: count(), Txns: count(), PutBytes: count(),
		Apply:       metric.NewFamily(fine, "version", "op", "success"),
		SlowApplies: count(),

		LeaderChanges: count(), ProposalsPending: gauge(), ProposalsFailed: count(),
		HeartbeatSendFailures: count(), SlowReadIndexes: count(), FailedReadIndexes: count(),
		BatchCommands:    metric.NewHistogram(1, 2, 12),
		SnapshotApplying: gauge(), LearnerPromotions: count(),

		PeerSentBytes:        metric.NewFamily(count, "To"),
		PeerReceivedBytes:    metric.NewFamily(count, "From"),
		PeerSentFailures:     metric.NewFamily(count, "To"),
		PeerReceivedFailures: metric.NewFamily(count, "From"),
		PeerRoundTrip:        metric.NewFamily(func() *metric.Histogram { return metric.NewHistogram(0.0001, 2, 16) }, "To"),
		ActivePeers:          metric.NewFamily(gauge, "Local", "Remote"),
		KnownPeers:           metric.NewFamily(gauge, "Local", "Remote"),
		DisconnectedPeers:    metric.NewFamily(count, "Local", "Remote"),

		SnapshotsSent:           metric.NewFamily(count, "To"),
		SnapshotSendFailures:    metric.NewFamily(count, "To"),
		SnapshotsSending:        metric.NewFamily(gauge, "To"),
		SnapshotSendSeconds:     metric.NewFamily(tenths, "To"),
		SnapshotsReceived:       metric.NewFamily(count, "From"),
		SnapshotReceiveFailures: metric.NewFamily(count, "From"),
		SnapshotsReceiving:      metric.NewFamily(gauge, "From"),
		SnapshotReceiveSeconds:  metric.NewFamily(tenths, "From"),

		ClientSentBytes: count(), ClientReceivedBytes: count(),

		Events: count(), PendingEvents: gauge(), Watchers: gauge(), SlowWatchers: gauge(), WatchStreams: gauge(),
		WatchSend: millis(), WatchSendEvent: millis(), WatchControl: millis(), WatchProgress: millis(),

		LeasesGranted: count(), LeasesRevoked: count(), LeasesRenewed: count(), LeasesExpired: count(),
		NodesExpired: count(),
		LeaseTTL:     metric.NewHistogram(1, 2, 24),
	}
	if extensive {
		m.Calls.Seconds = metric.NewFamily(func() *metric.Histogram {
			return metric.NewHistogramOf(.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10)
		}, "grpc_method", "grpc_service", "grpc_type")
	}
	return m
}

// Facts are read when metrics are asked for.
type Facts struct {
	Status       gate.Status
	Revision     int64
	Compacted    int64 // -1: never
	Keys         int64
	Bytes        int64 // the table holds on disk
	BytesInUse   int64
	QuotaBytes   int64
	AuthRevision int64
	Alarms       []Alarm
}

// Alarm is one alarm that is on.
type Alarm struct {
	Member uint64
	Type   string
}

// Feature is one switch of the command line.
type Feature struct {
	Name, Stage string
	Enabled     bool
}

// row is one name in the exposition.
type row struct {
	name  string
	kind  prometheus.ValueType // of what is not a histogram
	help  string
	value any // a metric, a family of them, a float64, or series
}

// series are values with labels that are computed when asked for.
type series struct {
	labels []string
	values []labelled
}

type labelled struct {
	value  float64
	labels []string
}

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

// table lists every metric of ours. The names and types are etcd's, also
// where another type would suit better: dashboards and alerts ask for them.
func (m *Metrics) table(v Versions, build string, features []Feature, f Facts) []row {
	id := fmt.Sprintf("%x", uint64(f.Status.Member))
	one := func(label, value string) series {
		return series{[]string{label}, []labelled{{1, []string{value}}}}
	}
	used, limit := descriptors()
	rows := []row{
		// Identity.
		{"etcd_server_version", gauge, "1 for the server version that clients see.", one("server_version", v.Server)},
		{"etcd_cluster_version", gauge, "1 for the version that all members speak.", one("cluster_version", minor(v.Cluster))},
		{"etcd_server_go_version", gauge, "1 for the version of Go that built the server.", one("server_go_version", runtime.Version())},
		{"etcd_server_id", gauge, "1 for this member's id, in hexadecimal.", one("server_id", id)},
		{"etcd_server_feature_enabled", gauge, "1 for each feature that is on, 0 for each that is off.", switches(features)},
		{"kvorum_build_info", gauge, "1 for the build that is running.", one("version", build)},

		// Agreement.
		{"etcd_server_has_leader", gauge, "1 if this member knows a leader.", truth(f.Status.Leader != 0)},
		{"etcd_server_is_leader", gauge, "1 if this member leads.", truth(f.Status.Leader != 0 && f.Status.Leader == f.Status.Member)},
		{"etcd_server_is_learner", gauge, "1 if this member has no vote.", truth(f.Status.Learner)},
		{"etcd_server_leader_changes_seen_total", counter, "How often this member saw leadership change.", m.LeaderChanges},
		{"etcd_server_proposals_committed_total", gauge, "Index of the last entry known to be committed.", float64(f.Status.Committed)},
		{"etcd_server_proposals_applied_total", gauge, "Index of the last entry applied here.", float64(f.Status.Applied)},
		{"etcd_server_proposals_pending", gauge, "Proposals that wait to be committed.", m.ProposalsPending},
		{"etcd_server_proposals_failed_total", counter, "Proposals that were not committed.", m.ProposalsFailed},
		{"kvorum_entry_commands", 0, "Commands in one entry of the log.", m.BatchCommands},
		{"etcd_server_heartbeat_send_failures_total", counter, "Heartbeats that left too late.", m.HeartbeatSendFailures},
		{"etcd_server_slow_read_indexes_total", counter, "Confirmations of leadership for reads that were slow or failed.", m.SlowReadIndexes},
		{"etcd_server_read_indexes_failed_total", counter, "Confirmations of leadership for reads that failed.", m.FailedReadIndexes},
		{"etcd_server_snapshot_apply_in_progress_total", gauge, "1 while a snapshot from another member is taken over.", m.SnapshotApplying},
		{"etcd_server_learner_promote_successes", counter, "Learners that were made voters.", m.LearnerPromotions},

		// Requests.
		{"etcd_server_request_duration_seconds", 0, "Time from a request's admission to its answer.", m.Gate.RequestSeconds},
		{"etcd_server_range_duration_seconds", 0, "Time to assemble the answer of a range.", m.Gate.RangeSeconds},
		{"etcd_server_apply_duration_seconds", 0, "Time to apply a command.", m.Apply},
		{"etcd_server_slow_apply_total", counter, "Commands that took long to apply.", m.SlowApplies},
		{"etcd_server_client_requests_total", counter, "Calls by the version that the client claims.", m.Calls.Clients},
		{"grpc_server_started_total", counter, "Calls begun.", m.Calls.Started},
		{"grpc_server_handled_total", counter, "Calls ended, by their code.", m.Calls.Handled},
		{"grpc_server_msg_received_total", counter, "Messages received in calls.", m.Calls.Received},
		{"grpc_server_msg_sent_total", counter, "Messages sent in calls.", m.Calls.Sent},
		{"grpc_server_handling_seconds", 0, "Time from a call's begin to its end.", m.Calls.Seconds},
		{"etcd_network_client_grpc_received_bytes_total", counter, "Bytes received from clients.", m.ClientReceivedBytes},
		{"etcd_network_client_grpc_sent_bytes_total", counter, "Bytes sent to clients.", m.ClientSentBytes},

		// Health.
		{"etcd_server_health_success", counter, "Health checks that passed.", m.Health.Healthy},
		{"etcd_server_health_failures", counter, "Health checks that failed.", m.Health.Unhealthy},
		{"etcd_server_healthcheck", gauge, "1 if the check passed when it was last run.", m.Health.Check},
		{"etcd_server_healthchecks_total", counter, "Runs of each check, by result.", m.Health.Checks},
		{"etcd_debugging_server_alarms", gauge, "1 for each alarm that is on.", alarms(f.Alarms)},

		// The log.
		{"etcd_disk_wal_fsync_duration_seconds", 0, "Time to make a batch of the log durable.", m.LogSyncSeconds},
		{"etcd_disk_wal_write_duration_seconds", 0, "Time to write a batch of the log.", m.LogWriteSeconds},
		{"etcd_disk_wal_write_bytes_total", gauge, "Bytes written to the log.", m.LogBytes},

		// The state on disk.
		{"etcd_disk_backend_commit_duration_seconds", 0, "Time to make the table durable. No write waits for it.", m.CommitSeconds},
		{"etcd_disk_backend_defrag_duration_seconds", 0, "Time a defragmentation took.", m.DefragSeconds},
		{"etcd_disk_backend_snapshot_duration_seconds", 0, "Time to write the whole state out.", m.SnapshotSeconds},
		{"etcd_disk_defrag_inflight", gauge, "1 while a defragmentation runs.", m.Defragmenting},
		{"etcd_server_quota_backend_bytes", gauge, "Size at which writes are refused.", float64(f.QuotaBytes)},
		{"etcd_mvcc_db_total_size_in_bytes", gauge, "Bytes the table takes on disk.", float64(f.Bytes)},
		{"etcd_mvcc_db_total_size_in_use_in_bytes", gauge, "Bytes of the table that hold live data.", float64(f.BytesInUse)},
		{"etcd_mvcc_hash_rev_duration_seconds", 0, "Time to hash the keys at a revision.", m.HashKVSeconds},

		// Keys.
		{"etcd_mvcc_put_total", counter, "Puts applied here.", m.Puts},
		{"etcd_mvcc_delete_total", counter, "Keys deleted here.", m.Deletes},
		{"etcd_mvcc_txn_total", counter, "Transactions applied here.", m.Txns},
		{"etcd_mvcc_range_total", counter, "Ranges answered here.", m.Gate.Ranges},
		{"etcd_debugging_mvcc_keys_total", gauge, "Keys that exist.", float64(f.Keys)},
		{"etcd_debugging_mvcc_current_revision", gauge, "Revision of the store.", float64(f.Revision)},
		{"etcd_debugging_mvcc_compact_revision", gauge, "Revision below which history is gone; -1 if there was no compaction.", float64(f.Compacted)},
		{"etcd_debugging_mvcc_total_put_size_in_bytes", gauge, "Bytes of keys and values put here.", m.PutBytes},
		{"etcd_debugging_mvcc_db_compaction_keys_total", counter, "Versions removed by compaction.", m.CompactedKeys},
		{"etcd_debugging_mvcc_db_compaction_last", gauge, "Unix time of the last compaction; 0 since the start.", m.CompactionLast},
		{"etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds", 0, "Time that a step of a compaction takes.", m.CompactionPause},
		{"etcd_debugging_mvcc_db_compaction_total_duration_milliseconds", 0, "Time a compaction took.", m.CompactionTime},
		{"etcd_debugging_auth_revision", gauge, "Revision of users and roles.", float64(f.AuthRevision)},

		// Watches.
		{"etcd_debugging_mvcc_events_total", counter, "Events sent to watchers.", m.Events},
		{"etcd_debugging_mvcc_pending_events_total", gauge, "Events that wait to be sent.", m.PendingEvents},
		{"etcd_debugging_mvcc_watcher_total", gauge, "Watchers.", m.Watchers},
		{"etcd_debugging_mvcc_slow_watcher_total", gauge, "Watchers that read history to catch up.", m.SlowWatchers},
		{"etcd_debugging_mvcc_watch_stream_total", gauge, "Streams of watchers.", m.WatchStreams},
		{"etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds", 0, "Time to send an answer with events.", m.WatchSend},
		{"etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds", 0, "The same, for each event.", m.WatchSendEvent},
		{"etcd_debugging_server_watch_send_loop_control_stream_duration_seconds", 0, "Time to send an answer about a watcher.", m.WatchControl},
		{"etcd_debugging_server_watch_send_loop_progress_duration_seconds", 0, "Time to send a report of progress.", m.WatchProgress},

		// Leases.
		{"etcd_debugging_lease_granted_total", counter, "Leases granted.", m.LeasesGranted},
		{"etcd_debugging_lease_revoked_total", counter, "Leases revoked.", m.LeasesRevoked},
		{"etcd_debugging_lease_renewed_total", counter, "Leases renewed while this member led.", m.LeasesRenewed},
		{"etcd_debugging_server_lease_expired_total", counter, "Leases that ran out.", m.LeasesExpired},
		{"etcd_debugging_lease_ttl_total", 0, "Seconds that leases were granted for.", m.LeaseTTL},

		// Other members.
		{"etcd_network_peer_sent_bytes_total", counter, "Bytes sent to a member.", m.PeerSentBytes},
		{"etcd_network_peer_received_bytes_total", counter, "Bytes received from a member.", m.PeerReceivedBytes},
		{"etcd_network_peer_sent_failures_total", counter, "Sends to a member that failed.", m.PeerSentFailures},
		{"etcd_network_peer_received_failures_total", counter, "Receives from a member that failed.", m.PeerReceivedFailures},
		{"etcd_network_peer_round_trip_time_seconds", 0, "Round trip to a member.", m.PeerRoundTrip},
		{"etcd_network_active_peers", gauge, "1 for each member connected to.", m.ActivePeers},
		{"etcd_network_known_peers", gauge, "1 for each member known.", m.KnownPeers},
		{"etcd_network_disconnected_peers_total", counter, "How often the connection to a member was lost.", m.DisconnectedPeers},
		{"etcd_network_snapshot_send_success", counter, "Snapshots sent to a member.", m.SnapshotsSent},
		{"etcd_network_snapshot_send_failures", counter, "Snapshots that could not be sent to a member.", m.SnapshotSendFailures},
		{"etcd_network_snapshot_send_inflights_total", gauge, "Snapshots on their way to a member.", m.SnapshotsSending},
		{"etcd_network_snapshot_send_total_duration_seconds", 0, "Time to send a snapshot.", m.SnapshotSendSeconds},
		{"etcd_network_snapshot_receive_success", counter, "Snapshots received from a member.", m.SnapshotsReceived},
		{"etcd_network_snapshot_receive_failures", counter, "Snapshots from a member that did not arrive whole.", m.SnapshotReceiveFailures},
		{"etcd_network_snapshot_receive_inflights_total", gauge, "Snapshots on their way from a member.", m.SnapshotsReceiving},
		{"etcd_network_snapshot_receive_total_duration_seconds", 0, "Time to receive a snapshot.", m.SnapshotReceiveSeconds},

		// The process.
		{"os_fd_used", gauge, "Files held open.", float64(used)},
		{"os_fd_limit", gauge, "Files that may be held open.", float64(limit)},
	}

	// Dashboards of every age ask for these, and a missing name breaks a whole
	// panel. What they measured does not happen here, so zero is the truth: no
	// B-tree is rebalanced, no snapshot file lies beside a log, there is no
	// second store and no caching proxy.
	never := func(kind prometheus.ValueType, names ...string) {
		for _, name := range names {
			rows = append(rows, row{name, kind, "Always 0: kept for dashboards.", 0.0})
		}
	}
	never(gauge, "etcd_mvcc_db_open_read_transactions",
		"etcd_debugging_store_watchers",
		"etcd_grpc_proxy_cache_hits_total", "etcd_grpc_proxy_cache_keys_total",
		"etcd_grpc_proxy_cache_misses_total", "etcd_grpc_proxy_watchers_coalescing_total")
	never(counter, "etcd_debugging_store_expires_total", "etcd_debugging_store_watch_requests_total",
		"etcd_debugging_store_reads_total", "etcd_debugging_store_writes_total",
		"etcd_grpc_proxy_events_coalescing_total")
	for _, h := range []struct {
		name  string
		first float64
		n     int
	}{
		{"etcd_debugging_disk_backend_commit_rebalance_duration_seconds", 0.001, 14},
		{"etcd_debugging_disk_backend_commit_spill_duration_seconds", 0.001, 14},
		{"etcd_debugging_disk_backend_commit_write_duration_seconds", 0.001, 14},
		{"etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds", 0.5, 14},
		{"etcd_debugging_snap_save_marshalling_duration_seconds", 0.001, 14},
		{"etcd_debugging_snap_save_total_duration_seconds", 0.001, 14},
		{"etcd_mvcc_hash_duration_seconds", 0.01, 15}, // the hash of everything is kept, not made
		{"etcd_snap_fsync_duration_seconds", 0.001, 14},
		{"etcd_snap_db_fsync_duration_seconds", 0.001, 14},
		{"etcd_snap_db_save_total_duration_seconds", 0.1, 10},
	} {
		rows = append(rows, row{h.name, 0, "Always empty: kept for dashboards.", metric.NewHistogram(h.first, 2, h.n)})
	}
	return rows
}

func minor(version string) string {
	dots := 0
	for i := range version {
		if version[i] == '.' {
			if dots++; dots == 2 {
				return version[:i]
			}
		}
	}
	return version
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func switches(features []Feature) series {
	s := series{labels: []string{"name", "stage"}}
	for _, f := range features {
		s.values = append(s.values, labelled{truth(f.Enabled), []string{f.Name, f.Stage}})
	}
	return s
}

func alarms(on []Alarm) series {
	s := series{labels: []string{"server_id", "alarm_type"}}
	for _, a := range on {
		s.values = append(s.values, labelled{1, []string{fmt.Sprintf("%x", a.Member), a.Type}})
	}
	return s
}

// exposition shows the table to the Prometheus library.
type exposition struct{ rows func() []row }

// Describe tells nothing: the rows carry labels that come and go.
func (exposition) Describe(chan<- *prometheus.Desc) {}

// Collect sends every value of now.
func (e exposition) Collect(to chan<- prometheus.Metric) {
	for _, r := range e.rows() {
		r.collect(to)
	}
}

func (r row) collect(to chan<- prometheus.Metric) {
	desc := func(labels ...string) *prometheus.Desc { return prometheus.NewDesc(r.name, r.help, labels, nil) }
	histogram := func(d *prometheus.Desc, h *metric.Histogram, labels ...string) {
		n, sum, buckets := h.Read()
		to <- prometheus.MustNewConstHistogram(d, n, sum, buckets, labels...)
	}
	single := func(v float64) { to <- prometheus.MustNewConstMetric(desc(), r.kind, v) }

	switch v := r.value.(type) {
	case float64:
		single(v)
	case *metric.Counter:
		single(float64(v.Value()))
	case *metric.Gauge:
		single(float64(v.Value()))
	case *metric.Histogram:
		histogram(desc(), v)
	case *metric.Family[metric.Counter]:
		each(v, desc, func(d *prometheus.Desc, values []string, c *metric.Counter) {
			to <- prometheus.MustNewConstMetric(d, r.kind, float64(c.Value()), values...)
		})
	case *metric.Family[metric.Gauge]:
		each(v, desc, func(d *prometheus.Desc, values []string, g *metric.Gauge) {
			to <- prometheus.MustNewConstMetric(d, r.kind, float64(g.Value()), values...)
		})
	case *metric.Family[metric.Histogram]:
		each(v, desc, func(d *prometheus.Desc, values []string, h *metric.Histogram) { histogram(d, h, values...) })
	case series:
		d := desc(v.labels...)
		for _, s := range v.values {
			to <- prometheus.MustNewConstMetric(d, r.kind, s.value, s.labels...)
		}
	default:
		panic(fmt.Sprintf("ops: %s: no way to show a %T", r.name, r.value))
	}
}

func each[M any](f *metric.Family[M], desc func(...string) *prometheus.Desc, show func(*prometheus.Desc, []string, *M)) {
	if f == nil {
		return
	}
	d := desc(f.Labels()...)
	f.Each(func(values []string, m *M) { show(d, values, m) })
}

// Handler serves the metrics, those of the Go runtime and of the process. The
// registry is this member's own, so that one process may hold several.
func (m *Metrics) Handler(v Versions, features []Feature, facts func() Facts) http.Handler {
	registry := prometheus.NewRegistry()
	build := buildVersion()
	registry.MustRegister(
		exposition{func() []row { return m.table(v, build, features, facts()) }},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return promhttp.InstrumentMetricHandler(registry, promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
}

func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
