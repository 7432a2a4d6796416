package ops

import (
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kvorum/kvorum/api/internal/gate"
)

func scrape(t *testing.T, m *Metrics, f Facts) string {
	t.Helper()
	h := m.Handler(Versions{Server: "3.7.3", Cluster: "3.7.0", Storage: "3.7.0"},
		[]Feature{{"InitialCorruptCheck", "ALPHA", true}}, func() Facts { return f })
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/metrics", nil)) // its own counters exist from the second on
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// TestNamesAreEtcds wants every name that etcd 3.7.3 shows in a cluster of
// three, with its type.
func TestNamesAreEtcds(t *testing.T) {
	list, err := os.ReadFile("testdata/names.txt")
	if err != nil {
		t.Fatal(err)
	}
	m := NewMetrics(true)
	// These have series only once something has happened.
	m.Calls.Started.With("Put", "etcdserverpb.KV", "unary")
	m.Calls.Handled.With("OK", "Put", "etcdserverpb.KV", "unary")
	m.Calls.Received.With("Put", "etcdserverpb.KV", "unary")
	m.Calls.Sent.With("Put", "etcdserverpb.KV", "unary")
	m.Calls.Seconds.With("Put", "etcdserverpb.KV", "unary")
	m.Calls.Clients.With("unary", "unknown")
	m.Health.Check.With("livez", "serializable_read")
	m.Health.Checks.With("livez", "serializable_read", "success")
	m.Gate.RangeSeconds.With("true")
	m.Gate.RequestSeconds.With("Put", "true")
	m.Apply.With("v3", "Put", "true")
	m.PeerSentBytes.With("2")
	m.PeerReceivedBytes.With("2")
	m.PeerRoundTrip.With("2")
	m.ActivePeers.With("1", "2")
	m.KnownPeers.With("1", "2")
	m.SnapshotsSent.With("2")
	m.SnapshotSendFailures.With("2")
	m.SnapshotsSending.With("2")
	m.SnapshotSendSeconds.With("2")
	m.SnapshotsReceived.With("2")
	m.SnapshotReceiveFailures.With("2")
	m.SnapshotsReceiving.With("2")
	m.SnapshotReceiveSeconds.With("2")

	shown := map[string]string{}
	for _, found := range regexp.MustCompile(`(?m)^# TYPE (\S+) (\S+)$`).FindAllStringSubmatch(scrape(t, m, Facts{}), -1) {
		shown[found[1]] = found[2]
	}
	for line := range strings.Lines(string(list)) {
		name, kind, ok := strings.Cut(strings.TrimSpace(line), " ")
		if ok && shown[name] != kind {
			t.Errorf("%s: %q, want %q", name, shown[name], kind)
		}
	}
}

func TestSamplesAreWrittenAsScriptsSearchThem(t *testing.T) {
	m := NewMetrics(false)
	m.Puts.Add(2)
	m.Calls.Handled.With("Canceled", "Watch", "etcdserverpb.Watch", "bidi_stream").Add(6)
	m.LogSyncSeconds.Observe(0.003)
	text := scrape(t, m, Facts{
		Status: gate.Status{Member: 0xabc, Leader: 0xabc, Committed: 9, Applied: 8}, Keys: 1, Compacted: -1,
		Alarms: []Alarm{{77, "NOSPACE"}},
	})
	lines := strings.Split(text, "\n")
	for _, want := range []string{
		`etcd_mvcc_put_total 2`,
		`etcd_mvcc_delete_total 0`,
		`etcd_debugging_mvcc_keys_total 1`,
		`etcd_debugging_mvcc_compact_revision -1`,
		`etcd_server_version{server_version="3.7.3"} 1`,
		`etcd_cluster_version{cluster_version="3.7"} 1`,
		`etcd_server_id{server_id="abc"} 1`,
		`etcd_server_is_leader 1`,
		`etcd_server_is_learner 0`,
		`etcd_server_proposals_committed_total 9`,
		`etcd_server_feature_enabled{name="InitialCorruptCheck",stage="ALPHA"} 1`,
		`etcd_debugging_server_alarms{alarm_type="NOSPACE",server_id="4d"} 1`,
		`grpc_server_handled_total{grpc_code="Canceled",grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"} 6`,
		`etcd_disk_wal_fsync_duration_seconds_bucket{le="0.002"} 0`,
		`etcd_disk_wal_fsync_duration_seconds_bucket{le="0.004"} 1`,
		`etcd_disk_wal_fsync_duration_seconds_bucket{le="8.192"} 1`,
		`etcd_disk_wal_fsync_duration_seconds_count 1`,
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("missing: %s", want)
		}
	}
	if strings.Contains(text, "grpc_server_handling_seconds") {
		t.Error("the histograms of calls are shown without being asked for")
	}
}
