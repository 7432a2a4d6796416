package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// stop tells a member to end and returns how long that takes.
func (c *cluster) stop(m *clusterMember) time.Duration {
	c.t.Helper()
	began := time.Now()
	if err := m.Process.Signal(syscall.SIGTERM); err != nil {
		c.t.Fatal(err)
	}
	if code := m.code(c.t); code != 0 {
		c.t.Errorf("%s ended with %d:\n%s", m.name, code, m.output)
	}
	return time.Since(began)
}

// hurried tells whether a member that has ended ran out of the time that it has
// for its leadership and its callers, as can be on a machine with other work.
func (m *clusterMember) hurried() bool {
	text := m.output.String()
	return strings.Contains(text, "could not hand leadership over") || strings.Contains(text, "calls in progress are cut off")
}

// TestMembersEnd tells members of a cluster with etcd's own times to end: at
// rest and at work, leader and follower, with a member that does not answer, and
// all together. BenchmarkEnd tells how long that takes.
func TestMembersEnd(t *testing.T) {
	t.Parallel()
	c := &cluster{t: t}
	c.found(3)
	revive := func(m *clusterMember) {
		t.Helper()
		c.start(m, "new")
		m.ready(t, m.client)
	}
	lead := c.leader()
	t.Logf("leader at rest: %v", c.stop(lead))
	revive(lead)
	follower := c.others(c.leader())[0]
	t.Logf("follower at rest: %v", c.stop(follower))
	revive(follower)

	var clients []*clientv3.Client
	for _, m := range c.members {
		clients = append(clients, m.site.client(t), m.site.client(t))
	}
	watch(t, rand.Uint64(), time.Second, clients...)
	lead = c.leader()
	t.Logf("leader at work: %v", c.stop(lead))
	revive(lead)
	lead = c.leader()
	follower = c.others(lead)[0]
	t.Logf("follower at work: %v", c.stop(follower))
	revive(follower)
	resume := paused(c.others(lead)[0])
	t.Logf("leader beside a member that is stuck: %v", c.stop(lead))
	resume()
	revive(lead)

	took := make(chan time.Duration)
	for _, m := range c.members {
		go func() { took <- c.stop(m) }()
	}
	for range c.members {
		t.Logf("one of all: %v", <-took)
	}
}

// TestEndingCostsNoCall tells members to end and starts them again, one after
// another, while clients who know them all put without a pause. A put that
// fails midway is not tried again by any client, since it may have happened.
//
// A member that ran out of time has to say so, and counts for nothing: it has
// to end again.
func TestEndingCostsNoCall(t *testing.T) {
	t.Parallel()
	c := &cluster{t: t, flags: []string{"--election-timeout=10000"}} // none is missed meanwhile
	c.found(3)
	ctx, cancel := context.WithCancel(t.Context())
	var endpoints []string
	for _, m := range c.members {
		endpoints = append(endpoints, m.site.addr)
	}
	var callers sync.WaitGroup
	var puts atomic.Int64
	var lost struct {
		sync.Mutex
		puts []string
	}
	for caller := range 8 {
		kv := client(t, endpoints...)
		callers.Go(func() {
			for n := 0; ; n++ {
				_, err := kv.Put(ctx, fmt.Sprint(caller), fmt.Sprint(n))
				if ctx.Err() != nil {
					return
				}
				if err == nil {
					puts.Add(1)
					continue
				}
				lost.Lock()
				lost.puts = append(lost.puts, fmt.Sprintf("put %d of caller %d: %v", n, caller, err))
				lost.Unlock()
			}
		})
	}
	for _, m := range c.members {
		c.await(m.name+" to have time enough for its end", func() bool {
			from := puts.Load()
			c.stop(m)
			hurried := m.hurried()
			c.start(m, "new")
			m.ready(t, m.client)
			c.await("puts", func() bool { return puts.Load() > from+100 })
			lost.Lock()
			defer lost.Unlock()
			if len(lost.puts) > 0 && !hurried {
				t.Errorf("%s cost %d calls: %q\n%s", m.name, len(lost.puts), lost.puts, m.output)
			}
			lost.puts = nil
			return !hurried
		})
	}
	cancel()
	callers.Wait()
	t.Logf("%d puts", puts.Load())
}
