package ctl

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvorum/kvorum/ctl/internal/load"
	"github.com/kvorum/kvorum/test/compat/process"
)

// within runs a command's body as a command line would, and returns what it
// printed.
func within(t *testing.T, server *process.Server, body func(*app, *cobra.Command) error) (stdout string, err error) {
	t.Helper()
	a := &app{called: "kvorum"}
	var out bytes.Buffer
	cmd := &cobra.Command{RunE: func(cmd *cobra.Command, _ []string) error { return body(a, cmd) }}
	a.register(cmd.PersistentFlags())
	cmd.SetArgs([]string{"--endpoints=" + server.ClientAddr})
	cmd.SetOut(&out)
	cmd.SetErr(&bytes.Buffer{})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err = cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// A check leaves nothing behind, and does not touch what others wrote.
func TestChecks(t *testing.T) {
	server := process.Start(t, process.Options{})
	run := func(args ...string) (int, string, string) {
		return runCommand("kvorum", "", append([]string{"--endpoints=" + server.ClientAddr}, args...)...)
	}

	out, err := within(t, server, func(a *app, cmd *cobra.Command) error {
		return a.perf(cmd, perfLoad{callers: 5, rate: 50, duration: time.Second}, "/check/", afterCheck{compact: true, defrag: true})
	})
	for _, want := range []string{
		"Compacting with revision ", "Compacted with revision ", "Defragmenting \"", "Defragmented \"",
		"Throughput ", "Slowest request took ", "Stddev ", // how well this machine did is not the question
	} {
		if !strings.Contains(out, want) {
			t.Errorf("check perf does not say %q:\n%s", want, out)
		}
	}
	if passed := strings.HasSuffix(out, "\nPASS\n"); passed != (err == nil) {
		t.Errorf("check perf ended with %v after\n%s", err, out)
	}

	out, err = within(t, server, func(a *app, cmd *cobra.Command) error {
		return a.datascale(cmd, scaleLoad{callers: 5, keys: 100}, "/check/", afterCheck{})
	})
	if err != nil || !strings.HasPrefix(out, "Start data scale check for work load [100 key-value pairs, 1024 bytes per key-value, 5 concurrent clients].\nPASS: Approximate system memory used : ") {
		t.Errorf("check datascale: %v\n%s", err, out)
	}

	if _, left, _ := run("get", "--prefix", ""); left != "" {
		t.Errorf("the checks left behind:\n%s", left)
	}
	run("put", "/etcdctl-check-perf/mine", "1")
	if code, _, stderr := run("check", "perf"); code != int(exitInvalidInput) || !strings.Contains(stderr, "has keys") {
		t.Errorf("a prefix in use: exit code %d, %s", code, stderr)
	}
	if _, left, _ := run("get", "/etcdctl-check-perf/mine"); left == "" {
		t.Error("a check deleted what it had not written")
	}
}

func TestVerdict(t *testing.T) {
	asked := perfLoad{rate: 100}
	for _, test := range []struct {
		name   string
		took   []time.Duration
		failed int
		during time.Duration
		want   string
	}{
		{"fast enough", repeat(100, time.Millisecond), 0, time.Second,
			"PASS: Throughput is 101 writes/s\nPASS: Slowest request took 0.001000s\nPASS: Stddev is 0.000000s\n"},
		{"too few", repeat(100, time.Millisecond), 0, 2 * time.Second,
			"FAIL: Throughput too low: 51 writes/s\nPASS: Slowest request took 0.001000s\nPASS: Stddev is 0.000000s\n"},
		{"one too slow", append(repeat(99, 0), 600*time.Millisecond), 0, time.Second,
			"PASS: Throughput is 101 writes/s\nSlowest request took too long: 0.600000s\nPASS: Stddev is 0.059699s\n"},
		{"uneven", append(repeat(50, 0), repeat(50, 400*time.Millisecond)...), 0, time.Second,
			"PASS: Throughput is 101 writes/s\nPASS: Slowest request took 0.400000s\nStddev too high: 0.200000s\n"},
		{"errors", repeat(100, 0), 3, time.Second,
			"FAIL: too many errors\nFAIL: ERROR(no) -> 3\nPASS: Throughput is 101 writes/s\nPASS: Slowest request took 0.000000s\nPASS: Stddev is 0.000000s\n"},
		{"nothing", nil, 0, time.Second,
			"FAIL: Throughput too low: 1 writes/s\nPASS: Slowest request took 0.000000s\nPASS: Stddev is 0.000000s\n"},
	} {
		s := &load.Stats{Failed: int64(test.failed), Errors: map[string]int64{"no": int64(test.failed)}}
		for _, took := range test.took {
			s.Latency.Add(took)
		}
		var out strings.Builder
		passed := judge(&out, asked, load.Result{Elapsed: test.during, Kinds: map[string]*load.Stats{kindPut: s}})
		if out.String() != test.want {
			t.Errorf("%s:\n%swant\n%s", test.name, out.String(), test.want)
		}
		if passed != (test.name == "fast enough") {
			t.Errorf("%s: passed is %v", test.name, passed)
		}
	}
}

func repeat(n int, d time.Duration) []time.Duration {
	all := make([]time.Duration, n)
	for i := range all {
		all[i] = d
	}
	return all
}

// An interrupted check deletes its keys all the same.
func TestCheckInterrupted(t *testing.T) {
	server := process.Start(t, process.Options{})
	puts := stay(t, server, "kvorum", "watch", "--prefix", "/check/", "--rev=1")
	_, err := within(t, server, func(a *app, cmd *cobra.Command) error {
		ctx, interrupt := context.WithCancel(cmd.Context())
		defer interrupt()
		go func() {
			<-puts.lines
			interrupt()
		}()
		cmd.SetContext(ctx)
		return a.perf(cmd, perfLoad{callers: 2, rate: 100, duration: time.Hour}, "/check/", afterCheck{})
	})
	if !isFailure(err) || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("ended with %v", err)
	}
	if _, left, _ := runCommand("kvorum", "", "--endpoints="+server.ClientAddr, "get", "--prefix", ""); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}
