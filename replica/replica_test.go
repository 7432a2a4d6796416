package replica

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/kvorum/kvorum/wal"
)

// sum is a machine that adds what its commands say and answers with the sum so
// far. What is durable of it is kept apart, as on a disk.
type sum struct {
	now, durable sumState
	lazy         bool // durable only when told to
	fail         error
}

type sumState struct {
	applied uint64
	total   uint64
	members []byte
}

func newSum(voters ...uint64) *sum {
	s := sumState{applied: 1, members: encodeMembers(&pb.ConfState{Voters: voters})}
	return &sum{now: s, durable: s}
}

func (s *sum) Apply(entries []Entry) ([]uint64, error) {
	var results []uint64
	for _, e := range entries {
		if e.Index != s.now.applied+1 {
			panic("an entry is missing or comes again")
		}
		for _, c := range e.Commands {
			s.now.total += binary.LittleEndian.Uint64(c)
			results = append(results, s.now.total)
		}
		if e.Configuration != nil {
			s.now.members = e.Configuration
		}
		s.now.applied = e.Index
	}
	if !s.lazy {
		s.durable = s.now
	}
	return results, s.fail
}

func (s *sum) Applied() (applied, durable uint64) { return s.now.applied, s.durable.applied }
func (s *sum) Configuration() []byte              { return s.now.members }
func (s *sum) Restore(m Mark) error               { return errors.New("no snapshot") }

func number(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }

// start runs a member until the test ends, or until stop is called.
func start(t testing.TB, machine Machine[uint64], fs vfs.FS, dir string, change func(*Options[uint64])) (r *Replica[uint64], stop func() error) {
	t.Helper()
	o := Options[uint64]{ID: 1, Log: LogOptions{WAL: wal.Options{FS: fs, Dir: dir}, Fresh: true}}
	if change != nil {
		change(&o)
	}
	r, err := Open(machine, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { stop() })
	return r, stop
}

func TestOneMember(t *testing.T) {
	fs := vfs.NewMem()
	machine := newSum(1)
	r, stop := start(t, machine, fs, "log", nil)
	for i := uint64(1); i <= 100; i++ {
		got, err := r.Propose(t.Context(), number(1))
		if err != nil || got != i {
			t.Fatalf("proposal %d: %d, %v", i, got, err)
		}
	}
	if err := r.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}

	// The machine was not flushed: the log brings everything back.
	again := newSum(1)
	r, stop = start(t, again, fs, "log", nil)
	if err := r.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if again.now.total != 100 {
		t.Fatalf("total %d after a restart", again.now.total)
	}
}

func benchmarkPropose(b *testing.B, proposers int, noSync bool) {
	dir := b.TempDir()
	r, _ := start(b, newSum(1), vfs.Default, dir, func(o *Options[uint64]) { o.Log.WAL.UnsafeNoSync = noSync })
	if err := r.Barrier(b.Context()); err != nil {
		b.Fatal(err)
	}
	command := append(number(1), make([]byte, 248)...)
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	each := b.N/proposers + 1
	for range proposers {
		wg.Go(func() {
			for range each {
				if _, err := r.Propose(context.Background(), command); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkPropose256NoSync(b *testing.B) { benchmarkPropose(b, 256, true) }
func BenchmarkPropose256(b *testing.B)       { benchmarkPropose(b, 256, false) }
func BenchmarkPropose1(b *testing.B)         { benchmarkPropose(b, 1, false) }
func BenchmarkPropose1NoSync(b *testing.B)   { benchmarkPropose(b, 1, true) }
