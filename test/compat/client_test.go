package compat

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/kvorum/kvorum/test/compat/process"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/ordering"
	"go.uber.org/zap"
)

// The tests in this file are what users of the Go client do, with its helpers
// as they are.

func connect(t testing.TB, s *process.Server) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.ClientURL()}, DialTimeout: callTime, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func deadline(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	t.Cleanup(cancel)
	return ctx
}

// want fails the test unless err is nil.
func want(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantValue(t testing.TB, kv clientv3.KV, key, value string) {
	t.Helper()
	r, err := kv.Get(deadline(t), key)
	want(t, err)
	if len(r.Kvs) != 1 || string(r.Kvs[0].Value) != value {
		t.Fatalf("%s is %v, want %q", key, r.Kvs, value)
	}
}

func TestClient(t *testing.T) {
	s := process.Start(t, process.Options{})
	c := connect(t, s)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *clientv3.Client)
	}{
		{"namespace", namespaces},
		{"stm", stm},
		{"ordering", orders},
		{"big values", bigValues},
		{"errors are recognised", errorsRecognised},
		{"a hundred clients", func(t *testing.T, _ *clientv3.Client) { hundredClients(t, s) }},
		{"ids", func(t *testing.T, c *clientv3.Client) { ids(t, c, s) }},
		{"watches", func(t *testing.T, c *clientv3.Client) { watches(t, c, s) }},
		{"retry over a restart", func(t *testing.T, c *clientv3.Client) { restart(t, c, s) }},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, c) })
	}
}

func namespaces(t *testing.T, c *clientv3.Client) {
	ctx := deadline(t)
	kv := namespace.NewKV(c.KV, "tenant/")
	_, err := kv.Put(ctx, "a", "1")
	want(t, err)
	wantValue(t, c, "tenant/a", "1")
	wantValue(t, kv, "a", "1")

	r, err := kv.Txn(ctx).
		If(clientv3.Compare(clientv3.Version("a"), "=", 1)).
		Then(clientv3.OpPut("b", "2"), clientv3.OpGet("", clientv3.WithFromKey())).
		Commit()
	want(t, err)
	if got := r.Responses[1].GetResponseRange(); !r.Succeeded || got.Count != 2 || string(got.Kvs[1].Key) != "b" {
		t.Fatalf("a transaction within a namespace: %v", r)
	}
	deleted, err := kv.Delete(ctx, "", clientv3.WithFromKey())
	want(t, err)
	if deleted.Deleted != 2 {
		t.Fatalf("deleted %d keys of the namespace, want 2", deleted.Deleted)
	}
}

// stm moves money between accounts from many sides at once; the sum stays.
func stm(t *testing.T, c *clientv3.Client) {
	const accounts, movers, moves = 5, 4, 15
	ctx := deadline(t)
	account := func(i int) string { return fmt.Sprintf("account/%d", i%accounts) }
	for i := range accounts {
		_, err := c.Put(ctx, account(i), "100")
		want(t, err)
	}
	var wg sync.WaitGroup
	failed := make(chan error, movers*moves)
	for m := range movers {
		wg.Go(func() {
			for i := range moves {
				from, to := account(m+i), account(m+2*i+1)
				if from == to {
					continue
				}
				_, err := concurrency.NewSTM(c, func(stm concurrency.STM) error {
					var a, b int
					fmt.Sscan(stm.Get(from), &a)
					fmt.Sscan(stm.Get(to), &b)
					stm.Put(from, fmt.Sprint(a-1))
					stm.Put(to, fmt.Sprint(b+1))
					return nil
				}, concurrency.WithAbortContext(ctx))
				if err != nil {
					failed <- err
				}
			}
		})
	}
	wg.Wait()
	close(failed)
	for err := range failed {
		t.Fatal(err)
	}
	r, err := c.Get(ctx, "account/", clientv3.WithPrefix())
	want(t, err)
	sum := 0
	for _, kv := range r.Kvs {
		var n int
		fmt.Sscan(string(kv.Value), &n)
		sum += n
	}
	if sum != 100*accounts {
		t.Fatalf("the accounts hold %d, want %d", sum, 100*accounts)
	}
}

// orders relies on header revisions that never go back.
func orders(t *testing.T, c *clientv3.Client) {
	ctx := deadline(t)
	kv := ordering.NewKV(c.KV, func(clientv3.Op, clientv3.OpResponse, int64) error {
		return errors.New("a revision went back")
	})
	for i := range 50 {
		_, err := c.Put(ctx, "ordered", fmt.Sprint(i))
		want(t, err)
		r, err := kv.Get(ctx, "ordered", clientv3.WithSerializable())
		want(t, err)
		if got := string(r.Kvs[0].Value); got != fmt.Sprint(i) {
			t.Fatalf("read %s after writing %d", got, i)
		}
	}
}

// bigValues come near the 1.5 MiB that a request may have.
func bigValues(t *testing.T, c *clientv3.Client) {
	ctx := deadline(t)
	for _, size := range []int{1 << 20, 1500000, 1572864 - 100} {
		value := bytes.Repeat([]byte{byte(size)}, size)
		_, err := c.Put(ctx, "big", string(value))
		want(t, err)
		r, err := c.Get(ctx, "big")
		want(t, err)
		if !bytes.Equal(r.Kvs[0].Value, value) {
			t.Fatalf("a value of %d bytes came back as another one", size)
		}
	}
	_, err := c.Put(ctx, "big", string(make([]byte, 1600000)))
	if !errors.Is(err, rpctypes.ErrRequestTooLarge) {
		t.Fatalf("a value too large: %v", err)
	}
	// Together they are far larger than one request may be.
	for i := range 8 {
		_, err := c.Put(ctx, fmt.Sprintf("many/%d", i), string(make([]byte, 1<<20)))
		want(t, err)
	}
	r, err := c.Get(ctx, "many/", clientv3.WithPrefix())
	want(t, err)
	if r.Count != 8 || len(r.Kvs[7].Value) != 1<<20 {
		t.Fatalf("got %d of 8 large values", r.Count)
	}
}

// errorsRecognised: clientv3 knows errors by their text.
func errorsRecognised(t *testing.T, c *clientv3.Client) {
	ctx := deadline(t)
	_, empty := c.Put(ctx, "", "x")
	_, lease := c.Put(ctx, "a", "x", clientv3.WithLease(123))
	_, future := c.Get(ctx, "a", clientv3.WithRev(1<<40))
	_, duplicate := c.Txn(ctx).Then(clientv3.OpPut("a", "1"), clientv3.OpPut("a", "2")).Commit()
	_, missing := c.Put(ctx, "no such key", "", clientv3.WithIgnoreValue())
	_, farCompact := c.Compact(ctx, 1<<40)
	for i, pair := range []struct{ got, want error }{
		{empty, rpctypes.ErrEmptyKey}, {lease, rpctypes.ErrLeaseNotFound}, {future, rpctypes.ErrFutureRev},
		{duplicate, rpctypes.ErrDuplicateKey}, {missing, rpctypes.ErrKeyNotFound}, {farCompact, rpctypes.ErrFutureRev},
	} {
		if !errors.Is(pair.got, pair.want) {
			t.Errorf("case %d: %v, want %v", i, pair.got, pair.want)
		}
	}
}

// hundredClients each have a connection of their own and count in one key.
func hundredClients(t *testing.T, s *process.Server) {
	const clients, puts = 100, 10
	ctx := deadline(t)
	var wg sync.WaitGroup
	failed := make(chan error, clients)
	for i := range clients {
		c := connect(t, s)
		wg.Go(func() {
			key := fmt.Sprintf("client/%03d", i)
			for n := range puts {
				if _, err := c.Put(ctx, key, fmt.Sprint(n)); err != nil {
					failed <- err
					return
				}
				r, err := c.Get(ctx, key)
				if err != nil || r.Count != 1 || r.Kvs[0].Version != int64(n+1) {
					failed <- fmt.Errorf("client %d read %v, %v after put %d", i, r, err, n)
					return
				}
			}
		})
	}
	wg.Wait()
	close(failed)
	for err := range failed {
		t.Fatal(err)
	}
	r, err := connect(t, s).Get(ctx, "client/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	want(t, err)
	if r.Count != clients {
		t.Fatalf("%d clients left a key, want %d", r.Count, clients)
	}
}

// ids are hashes that every member of a cluster works out for itself: of its
// peer URLs and the token, and of the members' ids.
func ids(t *testing.T, c *clientv3.Client, s *process.Server) {
	r, err := c.Get(deadline(t), "a")
	want(t, err)
	sum := sha1.Sum([]byte(s.PeerURL() + s.Token))
	member := binary.BigEndian.Uint64(sum[:8])
	sum = sha1.Sum(binary.BigEndian.AppendUint64(nil, member))
	cluster := binary.BigEndian.Uint64(sum[:8])
	if r.Header.MemberId != member || r.Header.ClusterId != cluster {
		t.Errorf("member %x of cluster %x, want %x of %x", r.Header.MemberId, r.Header.ClusterId, member, cluster)
	}
}

// watches go on where they were when the server comes back, and end where
// history does.
func watches(t *testing.T, c *clientv3.Client, s *process.Server) {
	ctx := deadline(t)
	first, err := c.Put(ctx, "watched/0", "0")
	want(t, err)
	var heard int64
	following := c.Watch(clientv3.WithRequireLeader(ctx), "watched/", clientv3.WithPrefix(), clientv3.WithRev(first.Header.Revision), clientv3.WithPrevKV())
	hear := func(n int64) {
		t.Helper()
		for heard < n {
			r := <-following
			want(t, r.Err())
			for _, e := range r.Events {
				if string(e.Kv.Value) != fmt.Sprint(heard) || e.IsCreate() != (heard == 0) || (e.PrevKv == nil) != (heard == 0) {
					t.Fatalf("event %d is %v", heard, e)
				}
				heard++
			}
		}
	}
	hear(1)
	_, err = c.Put(ctx, "watched/0", "1")
	want(t, err)
	hear(2)
	s.Stop()
	s.Run(t)
	last, err := c.Put(ctx, "watched/0", "2")
	want(t, err)
	hear(3)
	want(t, c.RequestProgress(clientv3.WithRequireLeader(ctx)))
	if r := <-following; !r.IsProgressNotify() || r.Header.Revision != last.Header.Revision {
		t.Errorf("asked for progress, got %+v", r)
	}

	_, err = c.Compact(ctx, last.Header.Revision)
	want(t, err)
	r := <-c.Watch(ctx, "watched/0", clientv3.WithRev(first.Header.Revision))
	if !errors.Is(r.Err(), rpctypes.ErrCompacted) || r.CompactRevision != last.Header.Revision {
		t.Errorf("a watch from before the compaction: %v, compacted at %d", r.Err(), r.CompactRevision)
	}
}

// restart: what was acknowledged is there when the server comes back, and the
// client notices nothing but the delay.
func restart(t *testing.T, c *clientv3.Client, s *process.Server) {
	ctx := deadline(t)
	for i := range 20 {
		_, err := c.Put(ctx, fmt.Sprintf("kept/%02d", i), "x")
		want(t, err)
	}
	before, err := c.Get(ctx, "kept/", clientv3.WithPrefix())
	want(t, err)

	s.Kill()
	read := make(chan error, 1)
	go func() {
		// A read that begins while nobody is there waits for the server.
		r, err := c.Get(ctx, "kept/", clientv3.WithPrefix())
		if err == nil && (r.Count != 20 || r.Header.Revision != before.Header.Revision) {
			err = fmt.Errorf("after the restart: %d keys at revision %d, before: %d at %d",
				r.Count, r.Header.Revision, before.Count, before.Header.Revision)
		}
		read <- err
	}()
	s.Run(t)
	select {
	case err := <-read:
		want(t, err)
	case <-time.After(callTime):
		t.Fatal("the read did not come back")
	}
	_, err = c.Put(ctx, "kept/after", "x")
	want(t, err)

	// And once more, ended politely.
	s.Stop()
	s.Run(t)
	wantValue(t, c, "kept/after", "x")
}
