package compat

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kvorum/kvorum/test/compat/process"
)

const metricNames = "testdata/metrics.txt"

var metricType = regexp.MustCompile(`(?m)^# TYPE ((?:etcd|grpc|os|process)_\S+) (\S+)$`)

// TestMetrics: dashboards and alerts are written against names. Every metric
// that etcd shows after some traffic is there, and of the same type; more may
// be.
func TestMetrics(t *testing.T) {
	s := process.Start(t, process.Options{})
	c := connect(t, s)
	for i := range 3 {
		_, err := c.Put(deadline(t), "a", fmt.Sprint(i))
		want(t, err)
	}
	wantValue(t, c, "a", "2")

	resp, err := http.Get(s.ClientURL() + "/metrics")
	want(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	want(t, err)
	var have []string
	for _, match := range metricType.FindAllStringSubmatch(string(text), -1) {
		have = append(have, match[1]+" "+match[2])
	}
	slices.Sort(have)
	if rewriting() {
		if !process.Reference() {
			t.Fatalf("names are recorded from a real etcd: set %s", process.Env)
		}
		want(t, os.WriteFile(metricNames, []byte(strings.Join(have, "\n")+"\n"), 0o644))
		return
	}
	recorded, err := os.ReadFile(metricNames)
	want(t, err)
	allow := readAllowed(t)
	var missing []string
	for line := range strings.Lines(string(recorded)) {
		name := strings.TrimSpace(line)
		entry := allow["metrics "+strings.Fields(name)[0]]
		switch there := slices.Contains(have, name); {
		case there && entry != nil && !process.Reference():
			t.Errorf("allowed.txt: %s is no longer missing; remove its line", name)
		case !there && entry == nil:
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		t.Errorf("%d metrics of etcd are missing or of another type:\n%s", len(missing), strings.Join(missing, "\n"))
	}
}
