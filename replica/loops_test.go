package replica

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/goleak"

	"github.com/kvorum/kvorum/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// switchboard joins replicas that run for themselves.
type switchboard struct {
	mu      sync.Mutex
	members map[uint64]*Replica[uint64]
	silent  bool
}

func (s *switchboard) Send(messages []*pb.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range messages {
		if r := s.members[m.GetTo()]; r != nil && !s.silent {
			r.Step(m)
		}
	}
}

// startThree runs a cluster whose machines are given back by id.
func startThree(t testing.TB, change ...func(*Options[uint64])) (*switchboard, map[uint64]*sum, func()) {
	board := &switchboard{members: map[uint64]*Replica[uint64]{}}
	machines := map[uint64]*sum{}
	var stops []func() error
	for id := uint64(1); id <= 3; id++ {
		machines[id] = newSum(1, 2, 3)
		r, stop := start(t, machines[id], vfs.NewMem(), "log", func(o *Options[uint64]) {
			o.ID, o.Transport = id, board
			for _, f := range change {
				f(o)
			}
		})
		board.mu.Lock()
		board.members[id] = r
		board.mu.Unlock()
		stops = append(stops, stop)
	}
	return board, machines, func() {
		for _, stop := range stops {
			if err := stop(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestTheFirstElectionIsHastened(t *testing.T) {
	elect := func(hasten bool) (took time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			board, _, stop := startThree(t, func(o *Options[uint64]) {
				o.Hasten = hasten
				o.Connected = func(uint64) bool { return time.Since(began) > 300*time.Millisecond }
			})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := board.members[2].Barrier(ctx); err != nil {
				t.Fatal(err)
			}
			took = time.Since(began)
			if leader, term := board.members[2].Status().Leader, board.members[2].Status().Term; hasten && (leader != 1 || term != 2) {
				t.Errorf("%d leads in term %d", leader, term)
			}
			stop()
		})
		return took
	}
	if took := elect(false); took < time.Second {
		t.Errorf("not hastened, it took %v", took)
	}
	if took := elect(true); took > 600*time.Millisecond {
		t.Errorf("hastened, it took %v", took)
	}
}

func TestThreeMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		board, machines, stop := startThree(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		for id, r := range board.members {
			wg.Go(func() {
				for range 200 {
					if _, err := r.Propose(ctx, number(1)); err != nil {
						t.Errorf("member %d: %v", id, err)
					}
				}
			})
		}
		wg.Wait()
		for _, r := range board.members {
			if err := r.Barrier(ctx); err != nil {
				t.Error(err)
			}
		}
		leader := board.members[board.members[1].Status().Leader]
		to := leader.Status().ID%3 + 1
		if err := leader.Transfer(ctx, to); err != nil {
			t.Error(err)
		}
		if got := leader.Status().Leader; got != to {
			t.Errorf("%d leads after the transfer to %d", got, to)
		}

		// Nobody answers: what is asked runs out of time, and says so.
		board.mu.Lock()
		board.silent = true
		board.mu.Unlock()
		short, end := context.WithTimeout(t.Context(), 5*time.Second)
		defer end()
		if err := board.members[2].Barrier(short); !errors.Is(err, fault.Timeout) && !errors.Is(err, fault.TimeoutLeaderFail) {
			t.Errorf("a barrier without quorum: %v", err)
		}
		stop()
		for id, m := range machines {
			if m.now.total != 600 {
				t.Errorf("member %d holds %d", id, m.now.total)
			}
		}
	})
}

// Every wait ends when the replica stops, and what comes later is refused.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		board := &switchboard{} // nobody else is there
		r, stop := start(t, newSum(1, 2, 3), vfs.NewMem(), "log", func(o *Options[uint64]) { o.Transport = board })
		results := make(chan error, 2)
		go func() { _, err := r.Propose(t.Context(), number(1)); results <- err }()
		go func() { results <- r.Barrier(t.Context()) }()
		synctest.Wait()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := <-results; !errors.Is(err, fault.Stopped) {
				t.Errorf("a wait ended with %v", err)
			}
		}
		if _, err := r.Propose(t.Context(), number(1)); !errors.Is(err, fault.Stopped) {
			t.Errorf("a late proposal: %v", err)
		}
		if err := r.Barrier(t.Context()); !errors.Is(err, fault.Stopped) {
			t.Errorf("a late barrier: %v", err)
		}
	})
}

// Too much that waits is refused, and those who leave make room again.
func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, stop := start(t, newSum(1, 2, 3), vfs.NewMem(), "log", func(o *Options[uint64]) { o.WaitingMax = 10 })
		defer stop()
		ctx, cancel := context.WithCancel(t.Context())
		for range 10 {
			go r.Propose(ctx, number(1))
			go r.Barrier(ctx)
		}
		synctest.Wait()
		if _, err := r.Propose(ctx, number(1)); !errors.Is(err, fault.TooManyRequests) {
			t.Fatalf("the eleventh proposal: %v", err)
		}
		if err := r.Barrier(ctx); !errors.Is(err, fault.TooManyRequests) {
			t.Fatalf("the eleventh read: %v", err)
		}
		cancel()
		time.Sleep(3 * time.Second) // of the bubble
		if n := r.pending.commands.Load(); n != 0 {
			t.Fatalf("%d commands are still accounted for", n)
		}
		if n := r.pending.bytes.Load(); n != 0 {
			t.Fatalf("%d bytes are still accounted for", n)
		}
		if n := r.reads.Load(); n != 0 {
			t.Fatalf("%d reads are still accounted for", n)
		}
	})
}

// Nobody waits for ever, be it for a leader or for the others' votes.
func TestTheLimitOfAWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		board, _, stop := startThree(t, func(o *Options[uint64]) { o.LimitTicks = 30 })
		defer stop()
		if _, err := board.members[1].Propose(t.Context(), number(1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second) // of the bubble: the election is long ago
		board.mu.Lock()
		board.silent = true
		board.mu.Unlock()
		for _, r := range board.members {
			for name, ask := range map[string]func() error{
				"proposal": func() error { _, err := r.Propose(t.Context(), number(1)); return err },
				"change":   func() error { _, err := r.Configure(t.Context(), &pb.ConfChangeV2{}); return err },
				"barrier":  func() error { return r.Barrier(t.Context()) },
			} {
				began := time.Now()
				err := ask()
				if took := time.Since(began); fault.Of(err) != fault.Timeout || took < 3*time.Second || took > 3200*time.Millisecond {
					t.Errorf("a %s ended after %v with %v", name, took, err)
				}
			}
			time.Sleep(3 * time.Second) // of the bubble
			if n := r.pending.commands.Load(); n != 0 {
				t.Errorf("%d commands are still accounted for", n)
			}
		}
	})
}

// A failing disk or machine ends the member with the error.
func TestFailures(t *testing.T) {
	t.Run("machine", func(t *testing.T) {
		machine := newSum(1)
		machine.fail = errors.New("broken")
		r, stop := start(t, machine, vfs.NewMem(), "log", nil)
		if _, err := r.Propose(t.Context(), number(1)); !errors.Is(err, fault.Stopped) {
			t.Errorf("proposal: %v", err)
		}
		if err := stop(); !errors.Is(err, machine.fail) {
			t.Errorf("run: %v", err)
		}
	})
	t.Run("disk", func(t *testing.T) {
		var failing atomic.Bool
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if failing.Load() && (op.Kind == errorfs.OpFileSyncData || op.Kind == errorfs.OpFileSync) {
				return errDisk
			}
			return nil
		}))
		r, stop := start(t, newSum(1), fs, "log", nil)
		if _, err := r.Propose(t.Context(), number(1)); err != nil {
			t.Fatal(err)
		}
		failing.Store(true)
		if _, err := r.Propose(t.Context(), number(1)); !errors.Is(err, fault.Stopped) {
			t.Errorf("proposal: %v", err)
		}
		if err := stop(); !errors.Is(err, errDisk) {
			t.Errorf("run: %v", err)
		}
	})
}

// What was answered outlives a power loss at any moment, whatever part of the
// unsynced bytes does.
func TestPowerLoss(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			fs := vfs.NewCrashableMem()
			machine := newSum(1)
			machine.lazy = true
			r, stop := start(t, machine, fs, "log", nil)
			var acked atomic.Uint64
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for {
						if _, err := r.Propose(t.Context(), number(1)); err != nil {
							return
						}
						acked.Add(1)
					}
				})
			}
			for acked.Load() < 50+rng.Uint64N(500) {
				if err := r.Barrier(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			want := acked.Load()
			disk := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			stop()
			wg.Wait()

			again := newSum(1) // nothing of the machine was durable
			r, stop = start(t, again, disk, "log", func(o *Options[uint64]) { o.Log.Fresh = false })
			if err := r.Barrier(t.Context()); err != nil {
				t.Fatal(err)
			}
			stop()
			if again.now.total < want {
				t.Fatalf("%d of %d acknowledged commands are left", again.now.total, want)
			}
		})
	}
}
