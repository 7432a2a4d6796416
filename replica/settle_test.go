package replica

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/kvorum/kvorum/metric"
	"github.com/kvorum/kvorum/wal"
)

// Damage to the very end of a log can be told from a torn write only once the
// log has said that it was synced. An idle member sees to that by itself, once.
func TestAnIdleMemberSettlesItsLog(t *testing.T) {
	var syncs = metric.NewHistogram(1, 2, 1)
	r, err := Open(newSum(1), Options[uint64]{ID: 1, Log: LogOptions{Fresh: true, WAL: wal.Options{
		FS: vfs.NewMem(), Dir: "log", Metrics: wal.Metrics{SyncSeconds: syncs},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	s := r.Stepper()
	defer s.Stop()
	idle := func() (synced uint64) {
		for range 3 * r.o.Core.ElectionTicks {
			s.Tick()
			for busy := true; busy; {
				appended, err := s.Append()
				if err != nil {
					t.Fatal(err)
				}
				applied, err := s.Apply()
				if err != nil {
					t.Fatal(err)
				}
				if busy = appended || applied; busy {
					s.Decide()
				}
			}
		}
		synced, _, _ = syncs.Read()
		return synced
	}

	idle()
	w := s.Propose(number(7))
	before := idle()
	if _, err, there := w.Outcome(); err != nil || !there {
		t.Fatalf("the command is not done: %v", err)
	}
	if r.loop.unsettled {
		t.Error("nothing was appended for long, and the log is not settled")
	}
	if after := idle(); after != before {
		t.Errorf("an idle member synced its log %d times", after-before)
	}
}
