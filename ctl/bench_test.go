package ctl

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvorum/kvorum/ctl/internal/load"
	"github.com/kvorum/kvorum/test/compat/process"
)

func TestBench(t *testing.T) {
	server := process.Start(t, process.Options{})
	run := func(args ...string) (int, string, string) {
		return runCommand("kvorum", "", append([]string{"--endpoints=" + server.ClientAddr}, args...)...)
	}
	keys := func(prefix string) string {
		_, out, _ := run("get", "--prefix", prefix, "--keys-only")
		return out
	}

	// Each workload asks as often as it was told, and leaves nothing behind.
	for line, want := range map[string]map[string]int64{
		"put --total=60 --conns=9":                              {"put": 60},
		"get --total=60 --keys=250 --serializable":              {"get": 60},
		"range --total=60 --keys=250 --limit=30":                {"range": 60},
		"range --total=6 --keys=20":                             {"range": 6},
		"txn --total=60 --keys=250 --ops=10":                    {"txn": 60},
		"mixed --total=60 --keys=250 --reads=0":                 {"put": 60},
		"mixed --total=60 --keys=250 --reads=100":               {"get": 60},
		"watch --total=60 --watchers=7 --rate=0":                {"put": 60, "event": 420},
		"lease --total=60 --clients=1":                          {"grant": 30, "revoke": 30},
		"put --total=60 --rate=1000 --duration=10s --clients=2": {"put": 60},
	} {
		code, out, stderr := run(append([]string{"bench", "-w", "json"}, strings.Fields(line)...)...)
		var report benchReport
		if err := json.Unmarshal([]byte(out), &report); code != 0 || err != nil {
			t.Errorf("bench %s: exit code %d, %s%s", line, code, out, stderr)
			continue
		}
		if len(report.Results) != len(want) {
			t.Errorf("bench %s: %+v", line, report.Results)
		}
		for _, k := range report.Results {
			l := k.Latency
			if k.Requests != want[k.Kind] || k.Failed != 0 || k.Rate <= 0 {
				t.Errorf("bench %s: want %d, got %+v", line, want[k.Kind], k)
			}
			if l.Average <= 0 || l.P50 > l.P95 || l.P95 > l.P99 || l.P99 > l.Max {
				t.Errorf("bench %s: latencies out of order: %+v", line, l)
			}
		}
		if left := keys(""); left != "" {
			t.Fatalf("bench %s left behind:\n%s", line, left)
		}
	}
	// It asks no longer than it was told, nor more often.
	code, out, stderr := run("bench", "put", "--duration=200ms", "--rate=100", "-w", "json")
	var report benchReport
	if err := json.Unmarshal([]byte(out), &report); code != 0 || err != nil {
		t.Errorf("bench put for 200 ms: exit code %d, %s%s", code, out, stderr)
	}
	for _, k := range report.Results {
		if k.Requests > 20 {
			t.Errorf("%d requests in 200 ms, 100 a second", k.Requests)
		}
	}
	if _, out, _ := run("lease", "list"); out != "found 0 leases\n" {
		t.Errorf("bench lease left behind: %s", out)
	}

	// The same seed asks for the same keys, however many ask.
	chosen := map[string]string{}
	for name, flags := range map[string]string{
		"one":   "--clients=1 --seed=7",
		"many":  "--clients=20 --seed=7",
		"other": "--clients=20 --seed=8",
	} {
		prefix := "bench-" + name + "/"
		run(append([]string{"bench", "put", "--keep", "--total=20", "--keys=100000", "--prefix=" + prefix}, strings.Fields(flags)...)...)
		chosen[name] = strings.ReplaceAll(strings.ReplaceAll(keys(prefix), prefix, ""), "0", "")
	}
	if chosen["one"] == "" || chosen["one"] != chosen["many"] || chosen["one"] == chosen["other"] {
		t.Errorf("the seed does not decide:\n%v", chosen)
	}

	// What is there already is refused, and left alone; --keep makes use of it.
	before := keys("bench-one/")
	code, _, stderr = run("bench", "put", "--prefix=bench-one/", "--total=1")
	if code != int(exitInvalidInput) || !strings.Contains(stderr, "20 keys have the prefix") || !strings.Contains(stderr, "kvorum del --prefix") {
		t.Errorf("a prefix in use: exit code %d, %s", code, stderr)
	}
	if code, _, stderr := run("bench", "get", "--prefix=bench-one/", "--total=1", "--keys=10", "--keep"); code != 0 {
		t.Errorf("with --keep: exit code %d, %s", code, stderr)
	}
	after := keys("bench-one/")
	for key := range strings.Lines(before) {
		if !strings.Contains(after, key) {
			t.Errorf("%s is gone", key)
		}
	}

	// Failures are counted by their text, and make the exit code 1.
	code, out, stderr = run("bench", "put", "--total=3", "--value-size=1700000")
	if code != int(exitError) || !strings.Contains(out, "3 put failed: etcdserver: request is too large") || !strings.Contains(stderr, "3 of 3 requests failed") {
		t.Errorf("too large: exit code %d, %s%s", code, out, stderr)
	}
	if _, out, _ = run("bench", "put", "--total=3", "-w", "table"); !strings.Contains(out, "│ REQUEST │ COUNT │ PER SECOND │") || !strings.Contains(out, " P50 ") {
		t.Errorf("as a table:\n%s", out)
	}
}

// Interrupted, a benchmark tells what it has and still tidies up.
func TestBenchInterrupted(t *testing.T) {
	server := process.Start(t, process.Options{})
	for _, w := range workloads {
		out, err := within(t, server, func(a *app, cmd *cobra.Command) error {
			ctx, interrupt := context.WithCancel(cmd.Context())
			defer interrupt()
			cmd.SetContext(ctx)
			start := w.start
			w.start = func(ctx context.Context, b *benchmark) (load.Ask, finish, error) {
				ask, end, err := start(ctx, b)
				return func(ctx context.Context, r load.Request) (string, error) {
					if r.Number == 10 {
						interrupt()
					}
					return ask(ctx, r)
				}, end, err
			}
			return a.bench(cmd, w, benchOptions{
				clients: 3, conns: 2, rate: 100, duration: time.Hour,
				keys: 100, keySize: 20, valueSize: 20, prefix: "bench/", limit: 10, ops: 2, reads: 50, watchers: 2,
			})
		})
		if !isFailure(err) || !strings.HasPrefix(err.Error(), "interrupted") || !strings.Contains(out, "average") || strings.Contains(out, "failed") {
			t.Errorf("%s ended with %v and\n%s", w.name, err, out)
		}
		if _, left, _ := runCommand("kvorum", "", "--endpoints="+server.ClientAddr, "get", "--prefix", ""); left != "" {
			t.Fatalf("%s left behind:\n%s", w.name, left)
		}
	}
}

// What makes no sense is refused before anything is asked.
func TestBenchFlags(t *testing.T) {
	for line, want := range map[string]string{
		"put --clients=0":                       "--clients",
		"put --conns=0":                         "--conns",
		"put --rate=-1":                         "--rate",
		"put --duration=0":                      "never end",
		"put --keys=0":                          "--keys",
		"put --key-size=16":                     "--key-size is 16",
		"put --prefix=":                         "--prefix is empty",
		"put --value-size=-1":                   "--value-size",
		"txn --ops=11 --keys=10":                "--ops",
		"mixed --reads=101":                     "--reads",
		"range --limit=-1":                      "--limit",
		"put a":                                 "unknown command",
		"put -w fields":                         "fields not supported",
		"put --endpoints=127.0.0.1:1 --total=1": "deadline",
	} {
		args := append([]string{"bench", "--command-timeout=50ms"}, strings.Fields(line)...)
		if code, out, stderr := runCommand("kvorum", "", args...); code == 0 || out != "" || !strings.Contains(stderr, want) {
			t.Errorf("bench %s: exit code %d, %s%s", line, code, out, stderr)
		}
	}
	if code, _, _ := runCommand(Etcdctl, "", "bench", "put"); code == 0 {
		t.Error("etcdctl has no bench")
	}
}
