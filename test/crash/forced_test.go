package crash

import (
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestTheLastOfThreeMembersGoesOn(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, clusterFlags)
	ctx := t.Context()
	const keys = 200
	c.put(keys, 1)
	// One that followed is left: it is what was lost that led.
	last := c.members[0]
	if last == c.leader() {
		last = c.members[1]
	}
	gone := map[string]bool{}
	for _, m := range c.members {
		if m != last {
			gone[m.name] = true
		}
	}
	id := c.status(last).Header.MemberId
	for _, m := range c.members {
		c.kill(m)
	}
	c.members = []*clusterMember{last}
	forced := []string{"--force-new-cluster", "--strict-reconfig-check=false"}
	c.join(last, forced...)
	last.ready(t, last.client)
	wantAll := func(m *clusterMember) {
		t.Helper()
		var r *clientv3.GetResponse
		err := insist(t, func() (err error) {
			r, err = m.client.Get(ctx, "key", clientv3.WithPrefix(), clientv3.WithCountOnly())
			return err
		})
		if err != nil || r.Count != keys {
			t.Errorf("%s holds %v, %v", m.name, r, err)
		}
	}
	wantAll(last)
	if list := last.list(t); len(list) != 1 || list[0].ID != id {
		t.Errorf("members %v", list)
	}

	// It grows again, and does not drop them when its command line still says so.
	for i := range 2 {
		m := c.newMember()
		m.name = fmt.Sprintf("new%d", i)
		c.join(m, "--join="+last.peer)
		c.hears(m, "ready to serve client requests")
		wantAll(m)
	}
	c.kill(last)
	c.join(last, forced...)
	c.hears(last, "--force-new-cluster does nothing here")
	last.ready(t, last.client)
	list := last.list(t)
	if len(list) != 3 {
		t.Fatalf("members %v", list)
	}
	for _, one := range list {
		if gone[one.Name] {
			t.Errorf("%s is back", one.Name)
		}
	}
	c.wantEqual()
}

func TestADroppedMemberIsToldSo(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, clusterFlags)
	dropped := c.members[1:]
	for _, m := range c.members {
		c.kill(m)
	}
	last := c.members[0]
	c.members = c.members[:1]
	c.join(last, "--force-new-cluster")
	last.ready(t, last.client)
	began := time.Now()
	c.members = append(c.members, dropped...)
	for _, m := range dropped {
		c.start(m, "new")
	}
	for _, m := range dropped {
		if code := m.code(t); code != 0 || !strings.Contains(m.output.String(), "stopped: this member was removed from the cluster") {
			t.Errorf("%s ended with %d:\n%s", m.name, code, m.output)
		}
	}
	t.Logf("both had ended after %v", time.Since(began))
}
