package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/kvorum/kvorum/test/linear"
)

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

// A witness writes down what one client does and sees.
type witness struct {
	id    int
	c     *clientv3.Client
	rng   *rand.Rand
	began time.Time
	acks  *atomic.Int64 // of all

	seen    []linear.Operation
	journal map[string]int64 // keys written once, by this client alone, and their revisions
	n       int
}

// live does one thing after another until ctx ends.
func (w *witness) live(ctx context.Context, epoch *atomic.Int64) {
	for ctx.Err() == nil {
		w.n++
		if w.rng.IntN(3) == 0 {
			key := fmt.Sprintf("journal/%d/%08d", w.id, w.n)
			if r, err := w.c.Put(ctx, key, key); err == nil {
				w.journal[key] = r.Header.Revision
				w.acks.Add(1)
			}
			continue
		}
		// Each life of the server has keys of its own, and those of the one
		// before: a register with too many unknown outcomes takes for ever to judge.
		key := fmt.Sprintf("register/%d/%d", max(0, epoch.Load()-w.rng.Int64N(2)), w.rng.IntN(3))
		w.once(ctx, key, fmt.Sprintf("%d.%d", w.id, w.n))
	}
}

func (w *witness) once(ctx context.Context, key, value string) {
	o := linear.Operation{Client: w.id, Key: key, Value: value, Call: time.Since(w.began)}
	switch k := w.rng.IntN(10); {
	case k < 4:
		o.Kind = linear.Get
		r, err := w.c.Get(ctx, key)
		if err != nil {
			return // saw nothing, did nothing
		}
		o.Revision = r.Header.Revision
		if len(r.Kvs) > 0 {
			o.Seen, o.SeenAt = string(r.Kvs[0].Value), r.Kvs[0].ModRevision
		}
	case k < 7:
		o.Kind = linear.Put
		r, err := w.c.Put(ctx, key, value)
		if o.Unknown = err != nil; err == nil {
			o.Revision = r.Header.Revision
		}
	case k < 8:
		o.Kind = linear.Delete
		r, err := w.c.Delete(ctx, key)
		if o.Unknown = err != nil; err == nil {
			o.Revision, o.Done = r.Header.Revision, r.Deleted > 0
		}
	default:
		o.Kind = linear.Swap
		now, err := w.c.Get(ctx, key)
		if err != nil {
			return
		}
		holds := clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
		if len(now.Kvs) > 0 {
			o.Old = string(now.Kvs[0].Value)
			holds = clientv3.Compare(clientv3.Value(key), "=", o.Old)
		}
		o.Call = time.Since(w.began)
		r, err := w.c.Txn(ctx).If(holds).Then(clientv3.OpPut(key, value)).Commit()
		if o.Unknown = err != nil; err == nil {
			o.Revision, o.Done = r.Header.Revision, r.Succeeded
		}
	}
	o.Return = time.Since(w.began)
	if !o.Unknown {
		w.acks.Add(1)
	}
	w.seen = append(w.seen, o)
}

// TestKilledServerLosesNothing has clients at a server that is killed, paused
// and ended, over and over, and judges afterwards what they saw.
func TestKilledServerLosesNothing(t *testing.T) {
	seed := setting(t, "KVORUM_CRASH_SEED", rand.Uint64N(1<<32))
	until := time.Now().Add(time.Duration(setting(t, "KVORUM_CRASH_SECONDS", 6)) * time.Second)
	rng := rand.New(rand.NewPCG(seed, 0))
	s := newSite(t)
	// A small count of entries between flushes, so that there is more to a
	// restart than a replay.
	more := []string{"--snapshot-count=50"}

	var epoch, acks atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var witnesses []*witness
	var clients sync.WaitGroup
	began := time.Now()
	for id := range 6 {
		w := &witness{id: id, c: s.client(t), rng: rand.New(rand.NewPCG(seed, uint64(id+1))), began: began, acks: &acks, journal: map[string]int64{}}
		witnesses = append(witnesses, w)
		clients.Go(func() { w.live(ctx, &epoch) })
	}

	watcher := s.client(t)
	did := map[string]int{}
	var slowest time.Duration
	for time.Now().Before(until) {
		from := time.Now()
		p := s.start(t, more...)
		p.ready(t, watcher)
		slowest = max(slowest, time.Since(from))

		// Something happens after so many acknowledgements, or soon.
		at := acks.Load() + rng.Int64N(600)
		soon := time.After(time.Duration(rng.IntN(400)) * time.Millisecond)
		for waiting := true; waiting && acks.Load() < at; {
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
		epoch.Add(1)
	}

	// Once more in peace: everybody looks at everything.
	p := s.start(t, more...)
	p.ready(t, watcher)
	stop()
	clients.Wait()
	var history []linear.Operation
	journal, unknown := 0, 0
	for _, w := range witnesses {
		for key, revision := range w.journal {
			r, err := watcher.Get(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Kvs) != 1 || r.Kvs[0].ModRevision != revision || string(r.Kvs[0].Value) != key || r.Kvs[0].Version != 1 {
				t.Errorf("seed %d: %s was acknowledged at revision %d; there is %v", seed, key, revision, r.Kvs)
			}
			journal++
		}
		history = append(history, w.seen...)
	}
	for e := range epoch.Load() + 1 {
		for k := range 3 {
			o := linear.Operation{Kind: linear.Get, Key: fmt.Sprintf("register/%d/%d", e, k), Call: time.Since(began)}
			r, err := watcher.Get(t.Context(), o.Key)
			if err != nil {
				t.Fatal(err)
			}
			o.Return, o.Revision = time.Since(began), r.Header.Revision
			if len(r.Kvs) > 0 {
				o.Seen, o.SeenAt = string(r.Kvs[0].Value), r.Kvs[0].ModRevision
			}
			history = append(history, o)
		}
	}
	for _, o := range history {
		if o.Unknown {
			unknown++
		}
	}
	if err := linear.Order(history); err != nil {
		t.Errorf("seed %d: %v", seed, err)
	}
	if err := linear.Check(history, time.Minute); err != nil {
		t.Errorf("seed %d: %v", seed, err)
	}
	t.Logf("seed %d: %v; %d acknowledged, %d outcomes unknown, %d journal keys, history of %d operations on %d keys; slowest start %v",
		seed, did, acks.Load(), unknown, journal, len(history), 3*(epoch.Load()+1), slowest.Round(time.Millisecond))
}
