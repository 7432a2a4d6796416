package crash

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/kvorum/kvorum/test/linear"
)

// registers is how many there are in each epoch.
const registers = 3

// unknownMax is how many outcomes on the registers of an epoch may be unknown: a
// register with too many of them takes for ever to judge.
const unknownMax = 5 * registers

func registerKey(epoch int64, n int) string { return fmt.Sprintf("register/%d/%d", epoch, n) }

// An audience is clients that use a store while things happen to it. What they
// were told is judged afterwards.
type audience struct {
	// Immutable while they live.
	t         testing.TB
	seed      uint64
	patience  time.Duration // of a client with one request
	witnesses []*witness
	began     time.Time

	epoch   atomic.Int64 // whoever makes something happen counts on
	acks    atomic.Int64
	unknown atomic.Int64 // outcomes of writes to registers
	stop    func()
}

// watch has clients live, until the audience is stopped.
func watch(t testing.TB, seed uint64, patience time.Duration, clients ...*clientv3.Client) *audience {
	a := &audience{t: t, seed: seed, patience: patience, began: time.Now()}
	ctx, cancel := context.WithCancel(t.Context())
	var living sync.WaitGroup
	for id, c := range clients {
		w := &witness{audience: a, id: id, c: c, rng: rand.New(rand.NewPCG(seed, uint64(id+1))), journal: map[string]int64{}}
		a.witnesses = append(a.witnesses, w)
		living.Go(func() { w.live(ctx) })
	}
	a.stop = func() {
		cancel()
		living.Wait()
	}
	t.Cleanup(a.stop)
	return a
}

// judge looks at everything once more, by a client in peace, and tells whether
// all that the stopped audience has seen can be true.
func (a *audience) judge(c *clientv3.Client) {
	a.t.Helper()
	ctx := a.t.Context()
	wrong := func(format string, arguments ...any) {
		a.t.Helper()
		a.t.Errorf("seed %d: %s", a.seed, fmt.Sprintf(format, arguments...))
	}

	journal := map[string]int64{} // what is there, by one write
	const page = 10_000
	for from := "journal/"; ; {
		var r *clientv3.GetResponse
		err := insist(a.t, func() (err error) {
			r, err = c.Get(ctx, from, clientv3.WithRange("journal0"), clientv3.WithLimit(page))
			return err
		})
		if err != nil {
			a.t.Fatal(err)
		}
		for _, kv := range r.Kvs {
			if string(kv.Key) != string(kv.Value) || kv.Version != 1 {
				wrong("a key that is written once is there as %v", kv)
			}
			journal[string(kv.Key)] = kv.ModRevision
			from = string(kv.Key) + "\x00"
		}
		if !r.More {
			break
		}
	}
	var history []linear.Operation
	written, unknown := 0, 0
	for _, w := range a.witnesses {
		for key, revision := range w.journal {
			if journal[key] != revision {
				wrong("%s was acknowledged at revision %d; it is there at %d", key, revision, journal[key])
			}
			written++
		}
		history = append(history, w.seen...)
	}

	last := &witness{audience: a, id: len(a.witnesses), c: c}
	for e := range a.epoch.Load() + 1 {
		for k := range registers {
			if err := insist(a.t, func() error { return last.get(ctx, registerKey(e, k)) }); err != nil {
				a.t.Fatal(err)
			}
		}
	}
	history = append(history, last.seen...)
	for _, o := range history {
		if o.Unknown {
			unknown++
		}
	}
	for _, err := range []error{linear.Order(history), linear.Check(history, time.Minute)} {
		if err != nil {
			wrong("%v", err)
		}
	}
	if a.t.Failed() {
		a.keep(history)
	}
	a.t.Logf("seed %d: %d acknowledged, %d outcomes unknown, %d journal keys, history of %d operations on %d keys",
		a.seed, a.acks.Load(), unknown, written, len(history), registers*(a.epoch.Load()+1))
}

// keep writes a history down, so that it can be judged again.
func (a *audience) keep(history []linear.Operation) {
	a.t.Helper()
	text, err := json.Marshal(history)
	if err != nil {
		a.t.Fatal(err)
	}
	file := filepath.Join(os.TempDir(), fmt.Sprintf("kvorum-history-%d.json", a.seed))
	if err := os.WriteFile(file, text, 0o600); err != nil {
		a.t.Fatal(err)
	}
	a.t.Logf("judge it again: KVORUM_HISTORY=%s go test ./test/linear -run Histories -v", file)
}

// A witness writes down what one client does and sees.
type witness struct {
	*audience
	id  int
	c   *clientv3.Client
	rng *rand.Rand

	seen    []linear.Operation
	journal map[string]int64 // keys written once, by this client alone, and their revisions
	n       int
}

// live does one thing after another until ctx ends.
func (w *witness) live(ctx context.Context) {
	for ctx.Err() == nil {
		w.n++
		one, cancel := context.WithTimeout(ctx, w.patience)
		if w.rng.IntN(3) == 0 {
			key := fmt.Sprintf("journal/%d/%08d", w.id, w.n)
			if r, err := w.c.Put(one, key, key); err == nil {
				w.journal[key] = r.Header.Revision
				w.acks.Add(1)
			}
		} else {
			// Each epoch has keys of its own, and those of the one before.
			key := registerKey(max(0, w.epoch.Load()-w.rng.Int64N(2)), w.rng.IntN(registers))
			w.once(one, key, fmt.Sprintf("%d.%d", w.id, w.n))
		}
		cancel()
	}
}

func (w *witness) once(ctx context.Context, key, value string) {
	o := linear.Operation{Client: w.id, Key: key, Value: value, Call: time.Since(w.began)}
	switch k := w.rng.IntN(10); {
	case k < 4:
		_ = w.get(ctx, key) // one that fails saw nothing and did nothing
		return
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
	switch {
	case !o.Unknown:
		w.acks.Add(1)
	case w.unknown.Add(1)%unknownMax == 0:
		w.epoch.Add(1)
	}
	w.seen = append(w.seen, o)
}

func (w *witness) get(ctx context.Context, key string) error {
	o := linear.Operation{Client: w.id, Kind: linear.Get, Key: key, Call: time.Since(w.began)}
	r, err := w.c.Get(ctx, key)
	if err != nil {
		return err
	}
	o.Return, o.Revision = time.Since(w.began), r.Header.Revision
	if len(r.Kvs) > 0 {
		o.Seen, o.SeenAt = string(r.Kvs[0].Value), r.Kvs[0].ModRevision
	}
	w.acks.Add(1)
	w.seen = append(w.seen, o)
	return nil
}
