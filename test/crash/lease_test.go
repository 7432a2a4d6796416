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

const ttl = 2 // seconds

// holder keeps a lease alive through all members, as one that depends on it
// would: what counts is what it was answered.
type holder struct {
	c        *cluster
	id       clientv3.LeaseID
	revision int64 // of its last key

	mu       sync.Mutex
	until    time.Time // the lease was promised to live
	renewals int
}

func (c *cluster) holds(keys ...string) *holder {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	var h *holder
	c.await("a lease", func() bool {
		before := time.Now()
		l, err := c.c.Grant(ctx, ttl)
		if unanswered(err) {
			return false
		}
		if err != nil || l.TTL != ttl {
			c.t.Fatalf("granted %v, %v", l, err)
		}
		h = &holder{c: c, id: l.ID, until: before.Add(ttl * time.Second)}
		for _, key := range keys {
			r, err := c.c.Put(ctx, key, "", clientv3.WithLease(l.ID))
			if unanswered(err) || says(err, fault.LeaseNotFound) && time.Now().After(h.until) {
				return false
			}
			if err != nil {
				c.t.Fatal(err)
			}
			h.revision = r.Header.Revision
		}
		return true
	})
	return h
}

// keep renews the lease until ctx ends, or the lease does: before the time that
// was promised that is a mistake, afterwards nobody had the time to keep it.
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
			h.renewals++
		case says(err, fault.LeaseNotFound):
			if early := time.Until(h.until); early > 0 {
				h.c.t.Errorf("%s: lease %x was said to be gone %v too early", m.name, h.id, early)
			}
			h.mu.Unlock()
			return
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
	var r *clientv3.LeaseTimeToLiveResponse
	err := insist(h.c.t, func() (err error) {
		r, err = m.client.TimeToLive(ctx, h.id, clientv3.WithAttachedKeys())
		return err
	})
	if err != nil {
		h.c.t.Fatalf("%s: %v", m.name, err)
	}
	if early := time.Until(until); r.TTL < 0 && early > 0 {
		h.c.t.Fatalf("%s: lease %x ended %v too early", m.name, h.id, early)
	}
	return r.TTL >= 0
}

// renewed waits until the lease is renewed once more, or has ended.
func (h *holder) renewed(m *clusterMember) {
	h.c.t.Helper()
	renewals := func() int { h.mu.Lock(); defer h.mu.Unlock(); return h.renewals }
	before := renewals()
	h.c.await("a lease to be renewed", func() bool { return renewals() > before || !h.exists(m) })
}

// keys asks one member: another one may be paused, and never answer.
func (c *cluster) keys(m *clusterMember) (keys []string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	var r *clientv3.GetResponse
	err := insist(c.t, func() (err error) {
		r, err = m.client.Get(ctx, "", clientv3.WithPrefix(), clientv3.WithKeysOnly())
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, kv := range r.Kvs {
		keys = append(keys, string(kv.Key))
	}
	return keys
}

// TestLeasesOutliveTheirLeader kills and pauses leaders. A lease that is kept
// alive lives on; one that is not ends, no sooner than it was promised to, and
// takes all of its keys with it at one revision.
func TestLeasesOutliveTheirLeader(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, clusterFlags)
	ctx, stop := context.WithCancel(t.Context())
	var keeping sync.WaitGroup
	keep := func() *holder {
		h := c.holds("kept")
		keeping.Go(func() { h.keep(ctx) })
		return h
	}
	kept := keep()

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
		t.Logf("%s: ended after %v", name, time.Since(began).Round(time.Millisecond))
		if keys := slices.DeleteFunc(c.keys(other), func(key string) bool { return key == "kept" }); len(keys) > 0 {
			t.Errorf("%s: keys %q are left", name, keys)
		}
		kept.renewed(other)
		undo()
		leader.ready(t, leader.client)
		<-time.After(time.Second) // what a former leader thinks is due is proposed by then
		if !kept.exists(other) {
			t.Logf("%s: nobody had the time to keep a lease alive", name)
			kept = keep()
		}
	}
	stop()
	keeping.Wait()
	for _, m := range c.members {
		c.await("the end of the lease that was kept", func() bool { return !kept.exists(m) })
	}

	// All at once, and at every member.
	last := c.holds("last")
	for _, m := range c.members {
		c.await("the end of the lease", func() bool { return !last.exists(m) })
		for what, ask := range map[string]func() error{
			"renewed":      func() error { _, err := m.client.KeepAliveOnce(t.Context(), last.id); return err },
			"put a key on": func() error { _, err := m.client.Put(t.Context(), "x", "", clientv3.WithLease(last.id)); return err },
			"revoked":      func() error { _, err := m.client.Revoke(t.Context(), last.id); return err },
		} {
			if err := insist(t, ask); !says(err, fault.LeaseNotFound) {
				t.Errorf("%s: %s a lease that is gone: %v", m.name, what, err)
			}
		}
	}
	var after *clientv3.GetResponse
	err := insist(t, func() (err error) { after, err = c.c.Get(t.Context(), "last"); return err })
	if err != nil || after.Count != 0 || after.Header.Revision != last.revision+1 {
		t.Errorf("after the lease: %v, %v; before: %d", after, err, last.revision)
	}
	c.wantEqual()
}

// TestLeasesSurviveRestarts stops all members, and starts them again.
func TestLeasesSurviveRestarts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, clusterFlags)
	var long *clientv3.LeaseGrantResponse
	if err := insist(t, func() (err error) { long, err = c.c.Grant(t.Context(), 1000); return err }); err != nil {
		t.Fatal(err)
	}
	err := insist(t, func() error { _, err := c.c.Put(t.Context(), "long", "", clientv3.WithLease(long.ID)); return err })
	if err != nil {
		t.Fatal(err)
	}
	short := c.holds("short")
	c.killed(c.members...)()
	for _, m := range c.members {
		m.ready(t, m.client)
	}
	c.await("the end of a lease", func() bool { return !short.exists(c.members[0]) })
	for _, m := range c.members {
		var r *clientv3.LeaseTimeToLiveResponse
		err := insist(t, func() (err error) {
			r, err = m.client.TimeToLive(t.Context(), long.ID, clientv3.WithAttachedKeys())
			return err
		})
		if err != nil || r.GrantedTTL != 1000 || r.TTL < 900 || len(r.Keys) != 1 || string(r.Keys[0]) != "long" {
			t.Errorf("%s: %v, %v", m.name, r, err)
		}
		var all *clientv3.LeaseLeasesResponse
		err = insist(t, func() (err error) { all, err = m.client.Leases(t.Context()); return err })
		if err != nil || !slices.Contains(all.Leases, clientv3.LeaseStatus{ID: long.ID}) || slices.Contains(all.Leases, clientv3.LeaseStatus{ID: short.id}) {
			t.Errorf("%s: %v, %v", m.name, all, err)
		}
	}
	c.wantEqual()
}
