package ctl

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvorum/kvorum/test/compat/process"
	"github.com/rogpeppe/go-internal/testscript"
)

// patient is set where a test does not say how long a command may wait: on a
// busy machine everything may.
const patient = "KVORUM_COMMAND_TIMEOUT"

// TestMain makes the test binary answer to the two names of the program, so
// that scripts run the real commands as processes.
func TestMain(m *testing.M) {
	main := func() {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		defer stop()
		os.Exit(Run(ctx, New(filepath.Base(os.Args[0]))))
	}
	testscript.Main(cleanly{m}, map[string]func(){"kvorum": main, Etcdctl: main})
}

// cleanly removes the server that was built when the tests are over.
type cleanly struct{ *testing.M }

func (c cleanly) Run() int {
	defer process.Cleanup()
	os.Setenv(patient, "1m")
	return c.M.Run()
}

// TestScripts runs each script of testdata against a fresh server, which the
// commands find by their environment. Without a server to run, the scripts in
// testdata/offline still do.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			server := process.Start(env.T().(testing.TB), process.Options{})
			env.Setenv("KVORUM_ENDPOINTS", server.ClientAddr)
			env.Setenv("ADDR", server.ClientAddr)
			env.Setenv(patient, os.Getenv(patient))
			return nil
		},
	})
}

func TestOffline(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/offline"})
}

// TestHelpTeaches holds every command to the same: a short text, an example
// that names the program, and no word of the other name.
func TestHelpTeaches(t *testing.T) {
	for _, called := range []string{"kvorum", Etcdctl} {
		root := New(called)
		for _, cmd := range root.Commands() {
			if cmd.Name() == "options" || cmd.Name() == "help" {
				continue
			}
			if cmd.Short == "" {
				t.Errorf("%s has no short help", cmd.CommandPath())
			}
			if !strings.Contains(cmd.Example, called+" ") {
				t.Errorf("%s has no example", cmd.CommandPath())
			}
			if strings.Contains(cmd.Example+cmd.Long, program) {
				t.Errorf("%s shows the placeholder of the name", cmd.CommandPath())
			}
		}
	}
}
