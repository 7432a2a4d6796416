//go:build mutants

package mutant

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSuites lets one mistake after the other live in the general tests of a
// room, and wants them to fail. Those that take a cluster are found by the
// simulation, in test/sim.
func TestSuites(t *testing.T) {
	dir, root := t.TempDir(), filepath.Join("..", "..")
	suites := map[string]string{} // test binaries, by package
	for _, m := range []struct{ name, like, suite, tests string }{
		{"index before data", "R01, 13766: a crash between the applied index and what it stands for", "state", "OneLog|Random"},
		{"index after data", "R02, 14685: entries applied again", "state", "OneLog|Random"},
		{"index survives a snapshot", "R04, 13933: the old index beside the data of a snapshot", "state", "OneLog|RestoreCrash"},
		{"ranges count where somebody waits", "R12, 18667: what is refused depends on who asked", "state", "OneLog|Random"},
		{"ranges see the state before", "R15, 17230: a transaction does not see its own deletions", "state", "Random"},
		{"refused change is stored", "R35, 13348: two opinions about who is a member", "state", "ConfigurationOfARefusedEntry"},
		{"promoted in consensus only", "R36, 19557: a voter that the members call a learner", "state", "Scripts"},
		{"ids are used twice", "R39, 20967: somebody comes back from the dead", "state", "Scripts"},
		{"deletion at the compacted revision", "R53, 18089: compaction removes the event of its own revision", "state", "Random"},
		{"compacted beyond its revision", "what the compacted revision still shows is gone", "state", "OneLog|Random"},
		{"removed leader stays", "R42, 11640: removed, and in the way", "replica", "Scripts|Chance"},
	} {
		t.Run(m.name, func(t *testing.T) {
			binary, built := suites[m.suite]
			if !built {
				binary = filepath.Join(dir, m.suite+".test")
				build := exec.Command("go", "test", "-tags", "mutants", "-c", "-o", binary, "./"+m.suite)
				build.Dir = root
				if out, err := build.CombinedOutput(); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				suites[m.suite] = binary
			}
			began := time.Now()
			test := exec.CommandContext(t.Context(), binary, "-test.run", m.tests, "-test.failfast")
			test.Dir = filepath.Join(root, m.suite)
			test.Env = append(os.Environ(), "KVORUM_MUTANT="+m.name)
			out, err := test.CombinedOutput()
			took := time.Since(began).Round(time.Millisecond)
			if err == nil {
				t.Fatalf("%s: not caught in %v", m.like, took)
			}
			t.Logf("%s: caught after %v: %.200s", m.like, took, strings.TrimSpace(string(out)))
		})
	}
}
