package leader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvorum/kvorum/state"
)

// reaper is one that may lead a town and remove its nodes.
func (w *town) reaper(o DeadlineOptions) *Office {
	d := NewDeadlines(o, w)
	w.nodes = append(w.nodes, d)
	office, ended := new(Office), make(chan error, 1)
	ctx, stop := context.WithCancel(context.Background())
	go func() { ended <- office.Run(ctx, d.Serve) }()
	w.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
	})
	return office
}

// node writes a node that is to go so long after the beginning, or stays.
func (w *town) node(path string, end time.Duration) {
	w.t.Helper()
	q := state.HierarchyRequest{Op: state.NodeSet, Path: path}
	if end != 0 {
		q.Deadline = w.began.Add(end).UnixNano()
	}
	if out := w.do(state.Hierarchy, state.Command{Encoded: q.Append(nil)}); out.Refusal != nil {
		w.t.Fatal(out.NodeError)
	}
}

// expired returns the paths that have expired, in the order of their revisions.
func (w *town) expired() (paths []string) {
	v := w.View()
	for at := v.OldestChanges(); at <= v.Revision; at++ {
		changes, err := v.Changes(at)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, c := range changes {
			if c.Action == "expire" {
				paths = append(paths, c.Node.Path)
			}
		}
	}
	return paths
}

// by goes to a moment and wants these nodes to have expired then.
func (w *town) by(moment time.Duration, want ...string) {
	w.t.Helper()
	time.Sleep(moment - time.Since(w.began)) // of the bubble
	synctest.Wait()
	if got := w.expired(); !slices.Equal(got, want) {
		w.t.Fatalf("after %v %v have expired, want %v", moment, got, want)
	}
}

// soon is how late a node may go.
const soon = 500 * time.Millisecond

func TestNodesGoAtTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		w.node("/before", 2*time.Second) // before anybody leads
		office := w.reaper(DeadlineOptions{})
		office.Hold(1)
		synctest.Wait()
		w.node("/later", 9*time.Second)
		w.node("/now", time.Nanosecond)
		w.node("/again", 2*time.Second)
		w.node("/kept", 2*time.Second)
		w.by(soon, "/now")
		w.node("/kept", 0)
		w.node("/again", 4*time.Second)
		w.by(2*time.Second-time.Millisecond, "/now")
		w.by(2*time.Second+soon, "/now", "/before")
		w.by(4*time.Second-time.Millisecond, "/now", "/before")
		w.by(4*time.Second+soon, "/now", "/before", "/again")
		w.by(time.Minute, "/now", "/before", "/again", "/later")
	})
}

// TestManyNodesGoTogether has more nodes than one command holds end at one
// moment, in the order of their deadlines.
func TestManyNodesGoTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		w.reaper(DeadlineOptions{Batch: 40}).Hold(1)
		var want []string
		for i := range 300 {
			path := fmt.Sprint("/", 999-i)
			w.node(path, time.Minute+time.Duration(i))
			want = append(want, path)
		}
		before := w.mu.commands
		w.by(time.Minute - time.Millisecond)
		w.by(time.Minute+soon, want...)
		if n := w.mu.commands - before; n > 9 {
			t.Errorf("%d commands", n)
		}
	})
}

func TestOnlyTheLeaderRemovesNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		a, b := w.reaper(DeadlineOptions{}), w.reaper(DeadlineOptions{})
		w.node("/a", time.Second)
		w.by(2 * time.Second)

		// What the deposed one has on its way comes to nothing.
		hold := make(chan struct{})
		w.set(func() { w.mu.hold = hold })
		a.Hold(1)
		synctest.Wait()
		w.set(func() { w.mu.term, w.mu.hold = 2, nil })
		close(hold)
		w.by(3 * time.Second)

		w.set(func() { w.mu.propose = errors.New("no quorum") })
		a.Hold(0)
		b.Hold(2)
		w.by(4 * time.Second)
		w.set(func() { w.mu.propose = nil })
		w.by(4*time.Second+soon, "/a")
	})
}
