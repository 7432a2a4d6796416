package crash

import (
	"context"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/kvorum/kvorum/fault"
)

// remove has a member removed, and answers how that went.
func (c *cluster) remove(m *clusterMember, asked *clientv3.Client, patience time.Duration) error {
	c.t.Helper()
	id := c.status(m).Header.MemberId
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	_, err := asked.MemberRemove(ctx, id)
	return err
}

// left waits for a removed member to end, and for the other one to serve alone.
func (c *cluster) left(gone, stays *clusterMember) {
	c.t.Helper()
	if code := gone.code(c.t); code != 0 || !strings.Contains(gone.output.String(), "stopped: this member was removed from the cluster") {
		c.t.Errorf("the removed member ended with %d:\n%s", code, gone.output)
	}
	c.await("the other one to serve alone", func() bool {
		ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
		defer cancel()
		_, err := stays.client.Put(ctx, "a", "b")
		return err == nil
	})
	if list := stays.list(c.t); len(list) != 1 {
		c.t.Errorf("members %v", list)
	}
}

func TestOneOfTwoIsRemoved(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		story                string
		leader, byTheRemoved bool
	}{
		{"a follower, by the leader", false, false},
		{"a follower, by itself", false, true},
		{"the leader, by itself", true, true},
		{"the leader, by the other", true, false},
	} {
		t.Run(tt.story, func(t *testing.T) {
			c := newCluster(t, 2, steadyFlags)
			gone, stays := c.leader(), c.members[0]
			if stays == gone {
				stays = c.members[1]
			}
			if !tt.leader {
				gone, stays = stays, gone
			}
			asked := stays.client
			if tt.byTheRemoved {
				asked = gone.client
			}
			if err := c.remove(gone, asked, patience); err != nil {
				t.Fatal(err)
			}
			c.left(gone, stays)
		})
	}
}

// Two agree on everything or on nothing, so a dead one cannot be removed before
// it is back. The cluster says so, and forgets nothing.
func TestADeadOneOfTwoIsRemovedOnceItIsBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, steadyFlags)
	stays := c.leader()
	gone := c.members[0]
	if gone == stays {
		gone = c.members[1]
	}
	id := c.status(gone).Header.MemberId
	c.kill(gone)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := stays.client.MemberRemove(ctx, id); err == nil {
		t.Fatal("one of two has removed the other alone")
	}
	c.start(gone, "new")
	// It may not have heard of the wish before who had it gave up.
	c.await("the removal", func() bool {
		_, err := stays.client.MemberRemove(t.Context(), id)
		return err == nil || says(err, fault.MemberNotFound)
	})
	c.left(gone, stays)
}

func TestRemovalsThatEndangerTheQuorumAreRefused(t *testing.T) {
	t.Parallel()
	c := &cluster{t: t}
	first, second := c.newMember(), c.newMember()
	c.join(first)
	first.ready(t, first.client)
	if err := c.remove(first, first.client, patience); !says(err, fault.NotEnoughStarted) {
		t.Errorf("remove the only one: %v", err)
	}
	met := time.Now() // at the earliest
	c.join(second, "--join="+first.peer)
	c.hears(second, "ready to serve client requests")
	c.await("them to have known each other for a while", func() bool {
		err := c.remove(second, first.client, patience)
		if took := time.Since(met); err == nil && took < 5*time.Second {
			t.Errorf("one of two was removed %v after they met", took)
		}
		if err != nil && !says(err, fault.Unhealthy) {
			t.Fatal(err)
		}
		return err == nil
	})
	c.left(second, first)
}
