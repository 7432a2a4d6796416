package crash

import (
	"math/rand/v2"
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
