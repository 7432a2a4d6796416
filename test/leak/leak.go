// Package leak finds the goroutines that tests leave behind.
package leak

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is how long what was told to end may take on a busy machine.
const patience = 30 * time.Second

// Main runs the tests of a package, and fails when something still runs after
// the last of them.
func Main(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// Since returns a check that nothing runs but what did when Since was called,
// and what is ignored.
func Since(ignored ...goleak.Option) (check func(testing.TB)) {
	options := append(ignored, goleak.IgnoreCurrent())
	return func(t testing.TB) {
		t.Helper()
		if err := find(options...); err != nil {
			t.Error(err)
		}
	}
}

// find tells what does not end.
func find(options ...goleak.Option) error {
	for began := time.Now(); ; {
		err := goleak.Find(options...) // looks several times, ever more slowly
		if err == nil || time.Since(began) > patience {
			return err
		}
	}
}
