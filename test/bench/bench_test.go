package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{
		{nil, 0},
		{[]float64{7}, 7},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		if got := median(c.values); got != c.want {
			t.Errorf("median of %v is %v, want %v", c.values, got, c.want)
		}
	}
}

func TestMediansKeepTheWorstStall(t *testing.T) {
	got := medians([]turn{{Rate: 1, Max: 5}, {Rate: 3, Max: 90}, {Rate: 2, Max: 7}})
	if got.Rate != 2 || got.Max != 90 {
		t.Errorf("%+v", got)
	}
}

func TestTableIsAligned(t *testing.T) {
	got := table{{"load", "p50"}, {"put", "7.0 µs"}, {"a longer name", "–"}}.String()
	want := `
| load          |    p50 |
|---------------|-------:|
| put           | 7.0 µs |
| a longer name |      – |
`
	if got != want[1:] {
		t.Errorf("got\n%s", got)
	}
}

func TestFailedLoadShowsNoFigures(t *testing.T) {
	r := report{Names: [2]string{"ours", "theirs"}, Loads: []row{{
		What:    "put",
		Medians: [2]turn{{Rate: 123456}, {Rate: 7777}},
		Failed:  [2]string{"a wrong answer", ""},
	}}}
	text := r.markdown()
	if strings.Contains(text, "123456") || !strings.Contains(text, "failed") || !strings.Contains(text, "7777") {
		t.Error(text)
	}
	if err := r.failures(); err == nil || !strings.Contains(err.Error(), "ours: a wrong answer") {
		t.Error(err)
	}
}

func TestLoadsAreChosenByNameAndGroup(t *testing.T) {
	o := options{only: "get,big,put,lease", seconds: 1, clients: 100}
	chosen, long, err := choose(o)
	if err != nil || len(long) != 1 || len(chosen) != 4 || chosen[0].name != "get" || chosen[1].name != "put" {
		t.Errorf("%v, long %v, %v", chosen, long, err)
	}
	o.only = "put,prut"
	if _, _, err := choose(o); err == nil || !strings.Contains(err.Error(), `"prut"`) {
		t.Error(err)
	}
	o.only, o.members = "big", 3
	if _, _, err := choose(o); err == nil {
		t.Error("many keys in a cluster")
	}
	o.only, o.members = "", 1
	if chosen, long, err = choose(o); err != nil || len(long) > 0 || len(chosen) < 15 {
		t.Errorf("%d chosen, long %v, %v", len(chosen), long, err)
	}
	o.only = longGroup
	if chosen, long, err = choose(o); err != nil || len(long) < 5 || len(chosen) > 0 {
		t.Errorf("%d chosen, long %v, %v", len(chosen), long, err)
	}
}

func TestGoalsAreJudged(t *testing.T) {
	ours := figure{Unit: microseconds, Values: [2]float64{60_000, 0}, Goal: &goal{AtMost: 50_000}}
	both := figure{Unit: bytesOf, Values: [2]float64{2 << 20, 4 << 20}, Goal: &goal{Of: ofBoth, AtMost: 0.5}}
	tail := row{RateRatio: 9, P99Ratio: 0.6, Goal: &goal{Of: ofTail, AtMost: 0.5}}
	for _, c := range []struct{ got, want string }{
		{ours.verdict(), "≤ 50.00 ms ✗"},
		{both.verdict(), "× ≤ 0.50 ✓"},
		{tail.verdict(), "p99 × ≤ 0.50 ✗"},
		{row{RateRatio: 3, Goal: &goal{Of: ofRate, AtLeast: 3}}.verdict(), "rate × ≥ 3.00 ✓"},
		{row{RateRatio: 3}.verdict(), ""},
		{figure{Goal: &goal{Of: ofBoth, AtMost: 1}}.verdict(), "× ≤ 1.00 ✗"}, // not reached
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
}

func TestOursIsToldToBeAServer(t *testing.T) {
	for binary, want := range map[string]int{"/x/kvorum": 2, "/x/etcd": 1} {
		if got := (product{binary: binary}).command(); len(got) != want {
			t.Errorf("%s is started as %q", binary, got)
		}
	}
}

func TestCPUOfAProcess(t *testing.T) {
	before, err := processCPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// The kernel counts in steps of 10 ms: burn until it must have seen some.
	for deadline := time.Now().Add(time.Minute); ; {
		now, err := processCPU(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now > before {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no CPU time counted beyond %v", before)
		}
	}
}

func TestDiskCountsBlocksNotLengths(t *testing.T) {
	s := &server{dir: t.TempDir()}
	if err := os.MkdirAll(s.data(), 0o700); err != nil {
		t.Fatal(err)
	}
	empty, err := s.disk()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(s.data(), "file")
	if err := os.WriteFile(file, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 1<<30); err != nil { // a hole behind the bytes
		t.Fatal(err)
	}
	full, err := s.disk()
	if err != nil {
		t.Fatal(err)
	}
	if grown := full - empty; grown < 64<<10 || grown > 1<<20 {
		t.Errorf("64 KiB and a hole take %d bytes", grown)
	}
}

func TestCertificateFilesArePrivate(t *testing.T) {
	c, err := newCertificate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{c.certFile, c.keyFile} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info, err)
		}
	}
}
