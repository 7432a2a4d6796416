package crash

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/kvorum/kvorum/fault"
)

// ttl is in seconds. A leader that has just been elected adds an election
// timeout to it.
const (
	ttl    = 2
	ttlEnd = ttl*time.Second + 500*time.Millisecond + time.Second
)

// holder keeps a lease alive through all members, as one that depends on it
// would: what counts is what it was answered.
type holder struct {
	c  *cluster
	id clientv3.LeaseID

	mu    sync.Mutex
	until time.Time // the lease was promised to live
	lost  time.Time // it was said to be gone
}

func (c *cluster) holds(keys ...string) *holder {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	before := time.Now()
	l, err := c.c.Grant(ctx, ttl)
	if err != nil || l.TTL != ttl {
		c.t.Fatalf("granted %v, %v", l, err)
	}
	for _, key := range keys {
		if _, err := c.c.Put(ctx, key, "", clientv3.WithLease(l.ID)); err != nil {
			c.t.Fatal(err)
		}
	}
	return &holder{c: c, id: l.ID, until: before.Add(ttl * time.Second)}
}

// keep renews the lease until ctx ends.
func (h *holder) keep(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		m := h.c.members[n%len(h.c.members)]
		before := time.Now()
		one, cancel := context.WithTimeout(ctx, 400*time.Millisecond)
		r, err := m.client.KeepAliveOnce(one, h.id)
		cancel()
		h.mu.Lock()
		switch {
		case err == nil && r.TTL == ttl:
			h.until = before.Add(ttl * time.Second)
		case err != nil && says(err, fault.LeaseNotFound) && h.lost.IsZero():
			h.lost = time.Now()
		}
		h.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// exists asks a member for the lease, and wants it if that was promised.
func (h *holder) exists(m *clusterMember) bool {
	h.c.t.Helper()
	ctx, cancel := context.WithTimeout(h.c.t.Context(), patience)
	defer cancel()
	h.mu.Lock()
	until := h.until
	h.mu.Unlock()
	before := time.Now()
	r, err := m.client.TimeToLive(ctx, h.id, clientv3.WithAttachedKeys())
	if err != nil {
		h.c.t.Fatalf("%s: %v", m.name, err)
	}
	if after := time.Now(); r.TTL < 0 && after.Before(until) {
		h.c.t.Fatalf("%s: lease %x ended %v too early", m.name, h.id, until.Sub(before))
	}
	return r.TTL >= 0
}

// keys asks one member: another one may be paused, and never answer.
func (c *cluster) keys(m *clusterMember) (keys []string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	r, err := m.client.Get(ctx, "", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, kv := range r.Kvs {
		keys = append(keys, string(kv.Key))
	}
	return keys
}

// TestLeasesOutliveTheirLeader kills and pauses leaders. A lease that is kept
// alive lives on; one that is not ends, no sooner than it was promised to and
// not much later, and takes all of its keys with it at one revision.
func TestLeasesOutliveTheirLeader(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	kept := c.holds("kept")
	ctx, stop := context.WithCancel(t.Context())
	var keeping sync.WaitGroup
	keeping.Go(func() { kept.keep(ctx) })

	trouble := map[string]func(*clusterMember) func(){
		"killed": func(m *clusterMember) func() { return c.killed(m) },
		"paused": func(m *clusterMember) func() { return paused(m) },
	}
	for _, name := range []string{"killed", "paused"} {
		left := c.holds("b", "a", "c")
		leader := c.leader()
		other := c.others(leader)[0]
		undo := trouble[name](leader)
		began := time.Now()
		c.await("the end of a lease that nobody keeps", func() bool { return !left.exists(other) })
		took := time.Since(began)
		t.Logf("%s: ended after %v", name, took.Round(time.Millisecond))
		if most := ttlEnd + 2*time.Second; took > most { // a killed leader has to be missed first
			t.Errorf("%s: the lease ended after %v", name, took)
		}
		if got := c.keys(other); !slices.Equal(got, []string{"kept"}) {
			t.Errorf("%s: keys %q are left", name, got)
		}
		undo()
		leader.ready(t, leader.client)
		<-time.After(time.Second) // what a former leader thinks is due is proposed by then
		if !kept.exists(other) {
			t.Fatalf("%s: the lease that was kept alive is gone", name)
		}
	}
	kept.mu.Lock()
	if !kept.lost.IsZero() {
		t.Errorf("a lease was said to be gone while it was kept alive")
	}
	kept.mu.Unlock()
	stop()
	keeping.Wait()

	// All at once, and at every member.
	rev, err := c.c.Get(t.Context(), "kept")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range c.members {
		c.await("the end of the lease", func() bool { return !kept.exists(m) })
		if _, err := m.client.KeepAliveOnce(t.Context(), kept.id); !says(err, fault.LeaseNotFound) {
			t.Errorf("%s: renewed a lease that is gone: %v", m.name, err)
		}
		if _, err := m.client.Put(t.Context(), "kept", "", clientv3.WithLease(kept.id)); !says(err, fault.LeaseNotFound) {
			t.Errorf("%s: put a key on a lease that is gone: %v", m.name, err)
		}
		if _, err := m.client.Revoke(t.Context(), kept.id); !says(err, fault.LeaseNotFound) {
			t.Errorf("%s: revoked a lease that is gone: %v", m.name, err)
		}
	}
	after, err := c.c.Get(t.Context(), "kept")
	if err != nil || after.Count != 0 || after.Header.Revision != rev.Header.Revision+1 {
		t.Errorf("after the lease: %v, %v; before: %v", after, err, rev.Header)
	}
	c.wantEqual()
}

// TestLeasesSurviveRestarts stops all members, and starts them again.
func TestLeasesSurviveRestarts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	long, err := c.c.Grant(t.Context(), 1000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.c.Put(t.Context(), "long", "", clientv3.WithLease(long.ID)); err != nil {
		t.Fatal(err)
	}
	short := c.holds("short")
	c.killed(c.members...)()
	for _, m := range c.members {
		m.ready(t, m.client)
	}
	c.await("the end of a lease", func() bool { return !short.exists(c.members[0]) })
	for _, m := range c.members {
		r, err := m.client.TimeToLive(t.Context(), long.ID, clientv3.WithAttachedKeys())
		if err != nil || r.GrantedTTL != 1000 || r.TTL < 900 || len(r.Keys) != 1 || string(r.Keys[0]) != "long" {
			t.Errorf("%s: %v, %v", m.name, r, err)
		}
		all, err := m.client.Leases(t.Context())
		if err != nil || len(all.Leases) != 1 || all.Leases[0].ID != long.ID {
			t.Errorf("%s: %v, %v", m.name, all, err)
		}
	}
	c.wantEqual()
}
