package crash

import (
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// setting returns a number of the environment, or another one.
func setting(t testing.TB, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestKilledServerLosesNothing has clients at a server that is killed, paused
// and ended, over and over, and judges afterwards what they saw.
func TestKilledServerLosesNothing(t *testing.T) {
	t.Parallel()
	seed := setting(t, "KVORUM_CRASH_SEED", rand.Uint64N(1<<32))
	until := time.Now().Add(time.Duration(setting(t, "KVORUM_CRASH_SECONDS", 4)) * time.Second)
	rng := rand.New(rand.NewPCG(seed, 0))
	s := newSite(t)
	// A small count of entries between flushes, so that there is more to a
	// restart than a replay.
	more := []string{"--snapshot-count=50"}

	var clients []*clientv3.Client
	for range 6 {
		clients = append(clients, s.client(t))
	}
	seen := watch(t, seed, 5*time.Second, clients...)

	watcher := s.client(t)
	did := map[string]int{}
	var slowest time.Duration
	for time.Now().Before(until) {
		from := time.Now()
		p := s.start(t, more...)
		p.ready(t, watcher)
		slowest = max(slowest, time.Since(from))

		// Something happens after so many acknowledgements, or soon.
		at := seen.acks.Load() + rng.Int64N(600)
		soon := time.After(time.Duration(rng.IntN(400)) * time.Millisecond)
		for waiting := true; waiting && seen.acks.Load() < at; {
			select {
			case <-soon:
				waiting = false
			case <-time.After(time.Millisecond):
			}
		}
		signal := func(name string, sig syscall.Signal) {
			did[name]++
			if err := p.Process.Signal(sig); err != nil {
				t.Fatalf("%s: %v\n%s", name, err, p.output)
			}
		}
		want := 0
		switch k := rng.IntN(20); {
		case k < 2:
			signal("pause", syscall.SIGSTOP)
			<-time.After(time.Duration(rng.IntN(300)) * time.Millisecond)
			if rng.IntN(2) == 0 {
				signal("go on", syscall.SIGCONT)
				p.ready(t, watcher)
			}
			fallthrough
		case k < 15:
			signal("kill -9", syscall.SIGKILL)
			want = -1
		case k < 18:
			signal("SIGTERM", syscall.SIGTERM)
		default:
			signal("SIGHUP", syscall.SIGHUP)
		}
		if code := p.code(t); code != want {
			t.Fatalf("seed %d: exit code %d, want %d:\n%s", seed, code, want, p.output)
		}
		seen.epoch.Add(1)
	}

	// Once more in peace: everybody looks at everything.
	p := s.start(t, more...)
	p.ready(t, watcher)
	seen.stop()
	seen.judge(watcher)
	t.Logf("%v; slowest start %v", did, slowest.Round(time.Millisecond))
}
