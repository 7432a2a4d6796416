package replica

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/kvorum/kvorum/wal"
)

// guests is a party that writes down what it is told.
type guests struct {
	contexts []context.Context
	told     []string
}

func (g *guests) Context(i int) context.Context { return g.contexts[i] }
func (g *guests) Leave(i int, err error) {
	g.told = append(g.told, fmt.Sprintf("%d leaves: %v", i, err))
}
func (g *guests) End(results []uint64, err error) {
	g.told = append(g.told, fmt.Sprintf("end: %v %v", results, err))
}

// TestAParty has parties find room for some, lose those who give up, and be told
// the rest together.
func TestAParty(t *testing.T) {
	r, err := Open(newSum(1), Options[uint64]{ID: 1, WaitingMax: 4, LimitTicks: 20, Log: LogOptions{Fresh: true, WAL: wal.Options{
		FS: vfs.NewMem(), Dir: "log",
	}}})
	if err != nil {
		t.Fatal(err)
	}
	s := r.Stepper()
	settle := func() {
		for busy := true; busy; {
			s.Decide()
			appended, err := s.Append()
			if err != nil {
				t.Fatal(err)
			}
			applied, err := s.Apply()
			if err != nil {
				t.Fatal(err)
			}
			busy = appended || applied
		}
	}
	settle()
	var cancel []context.CancelFunc
	party := func(n int) *guests {
		g := &guests{}
		cancel = nil
		for range n {
			ctx, end := context.WithCancel(t.Context())
			g.contexts, cancel = append(g.contexts, ctx), append(cancel, end)
		}
		return g
	}
	propose := func(g *guests) *guests {
		var commands [][]byte
		for i := range g.contexts {
			commands = append(commands, number(uint64(i+1)))
		}
		r.ProposeAll(g, commands)
		return g
	}
	barrier := func(g *guests) *guests {
		r.BarrierAll(g, len(g.contexts))
		return g
	}
	want := func(g *guests, told ...string) {
		t.Helper()
		if !slices.Equal(g.told, told) {
			t.Errorf("told %q, want %q", g.told, told)
		}
		g.told = nil
	}

	// There is room for four, and for four again when those have their results.
	first, second := propose(party(3)), propose(party(3))
	want(first)
	want(second, "1 leaves: etcdserver: too many requests", "2 leaves: etcdserver: too many requests")
	settle()
	want(first, "end: [1 3 6] <nil>")
	want(second, "end: [7] <nil>")
	reads := barrier(party(6))
	want(reads, "5 leaves: etcdserver: too many requests", "4 leaves: etcdserver: too many requests")
	settle()
	want(reads, "end: [] <nil>")

	// Some give up. Their commands may be carried out all the same.
	some := propose(party(3))
	cancel[1]()
	s.Tick()
	s.Tick()
	want(some, "1 leaves: etcdserver: request canceled")
	settle()
	want(some, "end: [8 10 13] <nil>")

	// Where all give up, there is nobody to be told of an end.
	all := propose(party(2))
	cancel[0]()
	cancel[1]()
	s.Tick()
	s.Tick()
	want(all, "0 leaves: etcdserver: request canceled", "1 leaves: etcdserver: request canceled")
	settle()
	want(all)
	if n := r.reads.Load(); n != 0 {
		t.Errorf("%d reads are left", n)
	}

	// The rest is told when time is up, or when the member stops.
	late := propose(party(2))
	for range 23 {
		s.Tick()
	}
	want(late, "end: [] etcdserver: request timed out")
	settle()
	if n, size := r.pending.commands.Load(), r.pending.bytes.Load(); n != 0 || size != 0 {
		t.Errorf("%d commands of %d bytes are left", n, size)
	}
	last := propose(party(2))
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	want(last, "end: [] etcdserver: server stopped")
	want(propose(party(1)), "end: [] etcdserver: server stopped")
	want(barrier(party(1)), "end: [] etcdserver: server stopped")
}
