package leader

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

// compactions lets a leader of term 5 compact for so long, while a key is put
// at the end of each step, and tells when it compacted, and at which revision.
func compactions(t *testing.T, c Compaction, step, long time.Duration, fails func(at time.Duration) bool) (done []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		cluster := newCluster(t, 1)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), long+time.Second)
		defer cancel()
		c.View, c.Log = cluster.machine.View, slog.New(slog.DiscardHandler)
		c.Propose = func(ctx context.Context, command state.Command) error {
			at := time.Since(began)
			if fails != nil && fails(at) {
				return fault.NoLeader
			}
			done = append(done, fmt.Sprint(at, " at ", command.Request.(*pb.CompactionRequest).Revision))
			return cluster.propose(ctx, command)
		}
		ended := make(chan error)
		go func() { ended <- c.Duty(ctx, 5) }()
		synctest.Wait()
		for time.Since(began)+step <= long {
			time.Sleep(step)
			synctest.Wait() // the duty sees the end of the step before the put
			put := state.Command{Kind: state.Put, Request: &pb.PutRequest{Key: []byte("k")}}
			if err := cluster.propose(ctx, put); err != nil {
				t.Error(err)
			}
		}
		<-ended
	})
	return done
}

// TestCompactionByTime: revision n+1 is that of the nth step's end.
func TestCompactionByTime(t *testing.T) {
	for _, test := range []struct {
		what         string
		period, step time.Duration
		long         time.Duration
		fails        func(time.Duration) bool
		want         []string
	}{
		{"less than an hour: as often as it is long", 10 * time.Minute, time.Minute, 35 * time.Minute, nil,
			// At the end of ten minutes nothing is older than that but what was there at the start.
			[]string{"20m0s at 10", "30m0s at 20"}},
		{"more: every hour", 2 * time.Hour, 6 * time.Minute, 5 * time.Hour, nil,
			[]string{"3h0m0s at 10", "4h0m0s at 20", "5h0m0s at 30"}},
		{"what fails is tried again soon", 10 * time.Minute, time.Minute, 31 * time.Minute,
			func(at time.Duration) bool { return at < 23*time.Minute },
			[]string{"23m0s at 13"}},
		{"nothing is put", 10 * time.Minute, time.Hour, 59 * time.Minute, nil, nil},
	} {
		t.Run(test.what, func(t *testing.T) {
			got := compactions(t, Compaction{Period: test.period}, test.step, test.long, test.fails)
			if !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestALeaderThatWasOvertakenCompactsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		c.term = 6
		for range 9 {
			if err := c.propose(t.Context(), state.Command{Kind: state.Put, Request: &pb.PutRequest{Key: []byte("k")}}); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		_ = Compaction{Revisions: 1, View: c.machine.View, Propose: c.propose, Log: slog.New(slog.DiscardHandler)}.Duty(ctx, 5)
		if at := c.machine.View().Compacted; at != -1 {
			t.Errorf("compacted at %d", at)
		}
	})
}

func TestCompactionByRevisions(t *testing.T) {
	got := compactions(t, Compaction{Revisions: 8}, time.Minute, 21*time.Minute, nil)
	want := []string{"10m0s at 2", "15m0s at 7", "20m0s at 12"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
