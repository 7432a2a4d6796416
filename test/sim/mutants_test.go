//go:build mutants

package sim

import (
	"strings"
	"testing"
	"time"

	"github.com/kvorum/kvorum/internal/mutant"
)

// TestMutants lets one mistake after the other live, and wants the seeds to
// find each. Most are mistakes of etcd's past; the numbers are of its issues.
func TestMutants(t *testing.T) {
	for _, m := range []struct{ name, like string }{
		{"answer before sync", "14370: an answer before the log is on the disk"},
		{"vote before sync", "14143: promises lost with what was not synced"},
		{"log cut at applied", "13766: what is applied taken for what is durable"},
		{"interrupted restore forgotten", "10219: a crash between the mark of a snapshot and the snapshot"},
		{"membership survives a snapshot", "20793: two opinions about who is a member"},
		{"refused change holds", "13348: a change of the membership in one place only"},
		{"runs share a number", "the outcome of another's command"},
		{"reads share a number", "20418: a late answer to an earlier read"},
		{"leader reads by its clock", "741: a leader that no longer is one answers"},
		{"read before apply", "a read that does not wait for what it has to show"},
		{"removed leader answers reads", "741: a leader that no longer is one answers"},
		{"proposals of any term", "a write is executed twice, late and again"},
		{"members survive a snapshot", "14571: what is in memory is not what was restored"},
		{"index survives a snapshot", "13933: the old index beside the data of a snapshot"},
		{"index before data", "13766: a crash between the applied index and what it stands for"},
		{"index after data", "14685: entries applied again"},
		{"what changes no key leaves the index", "14429: entries that change nothing do not count"},
		{"ranges count where somebody waits", "18667: what is refused depends on who asked"},
		{"refused change is stored", "13348: a change of the membership in one place only"},
		{"promoted in consensus only", "19557: a voter that the members call a learner"},
		{"an update promotes", "21737: a learner becomes a voter by the way"},
		{"ids are used twice", "20967: somebody comes back from the dead"},
		{"a leader of the past counts", "17425: a paused leader ends leases that live"},
		{"a deleted key stays on its lease", "a key ends with a lease that it does not hang on"},
		{"a deadline of the past counts", "a node goes though its time was prolonged"},
		{"deletion at the compacted revision", "18089: compaction removes the event of its own revision"},
		{"clocks survive a deposition", "a leader ends leases by the clocks of an earlier reign"},
		{"ends in any term", "17425: a paused leader ends leases that live"},
		{"renewed without a quorum", "a renewal by one who leads no more"},
		{"who is behind skips a revision", "a watcher misses what came when it caught up"},
		{"progress over those who are behind", "15220: progress is told before the events"},
		{"torn batch believed", "5230: half a write taken for a whole one"},
		{"torn tail refused", "15069: a member that does not start after a power loss"},
		{"segment without its name", "11488: a file whose name was not synced"},
		{"spare keeps its name", "a file that is reused before its old name is gone"},
	} {
		t.Run(m.name, func(t *testing.T) {
			mutant.Wake(m.name)
			defer mutant.Wake("")
			began := time.Now()
			for seed := *seedFlag; seed < *seedFlag+max(*runsFlag, 500); seed++ {
				if r := simulate(t, seed); r.failure != "" {
					why, _, _ := strings.Cut(r.failure, "\n")
					t.Logf("%s: caught by seed %d after %v: %.200s", m.like, seed, time.Since(began).Round(time.Millisecond), why)
					return
				}
			}
			t.Errorf("%s: not caught in %v", m.like, time.Since(began).Round(time.Millisecond))
		})
	}
}
