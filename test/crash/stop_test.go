package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// stopTime is how long a member that is told to end may take.
const stopTime = 1500 * time.Millisecond

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
	took := time.Since(began)
	if took > stopTime {
		c.t.Errorf("%s took %v to end", m.name, took)
	}
	return took
}

// TestMembersEndSoon tells members of a cluster with etcd's own times to end:
// at rest and at work, leader and follower, with a member that does not answer,
// and all together.
func TestMembersEndSoon(t *testing.T) {
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
func TestEndingCostsNoCall(t *testing.T) {
	t.Parallel()
	c := &cluster{t: t}
	c.found(3)
	ctx, cancel := context.WithCancel(t.Context())
	var endpoints []string
	for _, m := range c.members {
		endpoints = append(endpoints, m.site.addr)
	}
	var callers sync.WaitGroup
	var puts atomic.Int64
	for caller := range 8 {
		kv := client(t, endpoints...)
		callers.Go(func() {
			for n := 0; ; n++ {
				_, err := kv.Put(ctx, fmt.Sprint(caller), fmt.Sprint(n))
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					t.Errorf("put %d of caller %d: %v", n, caller, err)
					return
				}
				puts.Add(1)
			}
		})
	}
	for _, m := range c.members {
		c.stop(m)
		c.start(m, "new")
		m.ready(t, m.client)
	}
	cancel()
	callers.Wait()
	t.Logf("%d puts", puts.Load())
}
