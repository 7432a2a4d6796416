package crash

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/kvorum/kvorum/test/port"
)

// proxied starts a proxy before endpoints, and returns its address.
func proxied(t testing.TB, endpoints string, more ...string) (string, *process) {
	t.Helper()
	addr := port.Free(t)
	return addr, start(t, append([]string{kvorum, "proxy", "--listen-addr=" + addr, "--endpoints=" + endpoints, "--endpoints-auto-sync-interval=1s"}, more...)...)
}

func page(t testing.TB, url string) (code int, text string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// A proxy is there before the cluster. Then whichever member is killed, paused,
// or replaced, watchers miss nothing and hear nothing twice.
func TestAProxyOutlivesItsMembers(t *testing.T) {
	t.Parallel()
	c := &cluster{t: t, flags: clusterFlags}
	for range 3 {
		c.newMember()
	}
	// It is told of one member only, and finds the others.
	addr, p := proxied(t, c.members[0].addr)
	c.await("a proxy that says what it lacks", func() bool {
		code, text := page(t, "http://"+addr+"/health")
		return code == http.StatusServiceUnavailable && strings.Contains(text, `"health":"false"`) && strings.Contains(text, "connection refused")
	})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	through := client(t, addr)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s", p.output)
		}
	})
	early := make(chan error, 1)
	go func() { // it waits for the cluster, and is done once
		one, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		_, err := through.Put(one, "early", "bird")
		early <- err
	}()
	for _, m := range c.members {
		c.start(m, "new")
	}
	c.ready()
	if err := <-early; err != nil {
		t.Fatalf("asked before there was a cluster: %v\n%s", err, p.output)
	}

	wantAll := func() {
		t.Helper()
		c.await("the proxy to know all members", func() bool {
			_, metrics := page(t, "http://"+addr+"/metrics")
			return !slices.ContainsFunc(c.members, func(m *clusterMember) bool {
				return !strings.Contains(metrics, `kvorum_proxy_member_healthy{endpoint="http://`+m.addr+`"} 1`)
			})
		})
	}
	wantAll()

	// Some watch all keys and some one; one listens only at times.
	var watching sync.WaitGroup
	const last = "z/last"
	begin := c.revision()
	for n := range 8 {
		watching.Go(func() {
			w := clientv3.NewWatcher(through)
			defer w.Close()
			next := begin + 1
			options := []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithRev(next)}
			for r := range w.Watch(ctx, "", options...) {
				if r.Err() != nil {
					t.Errorf("watcher %d: %v", n, r.Err())
					return
				}
				for _, e := range r.Events {
					if e.Kv.ModRevision != next {
						t.Errorf("watcher %d: told of revision %d, wanted %d", n, e.Kv.ModRevision, next)
						return
					}
					if next++; string(e.Kv.Key) == last {
						return
					}
				}
			}
			t.Errorf("watcher %d ended", n)
		})
	}

	var writing sync.WaitGroup
	writes, stopWrites := context.WithCancel(ctx)
	for w := range 2 {
		writing.Go(func() {
			for n := 0; writes.Err() == nil; n++ {
				one, cancel := context.WithTimeout(writes, 2*time.Second)
				_, _ = through.Put(one, fmt.Sprintf("k%d/%d", w, n), "v") // some fail, and may or may not have been done
				cancel()
			}
		})
	}
	more := func() {
		t.Helper()
		from := c.revision()
		c.await("writes", func() bool { return c.revision() > from+50 })
	}
	more()
	for i, m := range slices.Clone(c.members) {
		if i == 1 { // a member that is silent, but connected
			m.pause(t)
			more()
			if err := m.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			continue
		}
		c.kill(m)
		more()
		c.start(m, "new")
		m.ready(t, m.client)
	}
	stopWrites()
	writing.Wait()
	c.await("the last write", func() bool {
		one, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err := c.c.Put(one, last, "")
		return err == nil
	})
	watching.Wait()

	wantAll()
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.code(t); code != 0 {
		t.Errorf("the proxy ended with %d:\n%s", code, p.output)
	}
}

// revision returns that of the store.
func (c *cluster) revision() int64 {
	c.t.Helper()
	var revision int64
	c.await("a revision", func() bool {
		ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
		defer cancel()
		r, err := c.c.Get(ctx, "nothing")
		if err == nil {
			revision = r.Header.Revision
		}
		return err == nil
	})
	return revision
}
