package crash

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/kvorum/kvorum/fault"
)

// join starts a member that has itself added.
func (c *cluster) join(m *clusterMember, flags ...string) {
	c.t.Helper()
	m.process = m.site.start(c.t, append([]string{"--name=" + m.name, "--heartbeat-interval=50", "--election-timeout=500"}, flags...)...)
}

func (c *cluster) hears(m *clusterMember, text string) {
	c.t.Helper()
	c.await(fmt.Sprintf("%s to say %q", m.name, text), func() bool {
		if !m.running() && !strings.Contains(m.output.String(), text) {
			c.t.Fatalf("%s ended with %d:\n%s", m.name, m.code(c.t), m.output)
		}
		return strings.Contains(m.output.String(), text)
	})
}

func TestMembersAddThemselves(t *testing.T) {
	t.Parallel()
	c := &cluster{t: t}
	ctx := t.Context()
	first, second, third := c.newMember(), c.newMember(), c.newMember()
	c.join(first)
	first.ready(t, first.client)
	if _, err := first.client.Put(ctx, "a", "1"); err != nil {
		t.Fatal(err)
	}

	// Both at once, one by the members' port and one by the clients'. There is
	// room for one learner at a time, and no change before a cluster is steady.
	c.join(second, "--join="+first.peer)
	c.join(third, "--join="+first.addr)
	for _, m := range c.members {
		c.hears(m, "ready to serve client requests")
	}
	list := third.list(t)
	if len(list) != 3 {
		t.Fatalf("members %v", list)
	}
	for _, one := range list {
		if one.IsLearner || one.Name == "" {
			t.Errorf("member %v", one)
		}
	}

	// Any of them may go.
	c.kill(first)
	c.await("a write without the first", func() bool {
		one, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := second.client.Put(one, "b", "2")
		return err == nil
	})
	var r *clientv3.GetResponse
	err := insist(t, func() (err error) { r, err = third.client.Get(ctx, "a"); return err })
	if err != nil || len(r.Kvs) != 1 {
		t.Errorf("what was there before the others: %v, %v", r, err)
	}

	// The same command line again: there is data, so there is nobody to ask.
	c.kill(third)
	c.join(third, "--join="+first.addr)
	c.hears(third, "--join counts no more")
	third.ready(t, third.client)
	c.join(first)
	first.ready(t, first.client)
	c.wantEqual()

	// Who is not welcome is told why.
	fourth := c.newMember()
	for flag, want := range map[string]string{
		"--name=" + second.name:                                                         "the name m1 belongs to member",
		"--initial-advertise-peer-urls=http://" + third.peer:                            "has run at http://" + third.peer + " before",
		"--initial-advertise-peer-urls=http://" + third.peer + ",http://" + fourth.peer: "belongs to another member",
		"--initial-advertise-peer-urls=http://192.0.2.1:2380":                           "where nobody on another machine can reach it",
	} {
		c.join(fourth, "--join="+second.peer, flag)
		if code := fourth.code(t); code != 1 || !strings.Contains(fourth.output.String(), want) {
			t.Errorf("with %s it ended with %d, and without %q:\n%s", flag, code, want, fourth.output)
		}
	}
}

func TestAJoiningMemberIsAddedOnce(t *testing.T) {
	t.Parallel()
	c := &cluster{t: t}
	ctx := t.Context()
	first, next, operators := c.newMember(), c.newMember(), c.newMember()
	const steady = "--election-timeout=10000"
	c.join(first, steady, "--strict-reconfig-check=false", "--max-learners=2")
	first.ready(t, first.client)

	// As if it had been killed after it was added, before it knew.
	added, err := first.client.MemberAddAsLearner(ctx, []string{"http://" + next.peer})
	if err != nil {
		t.Fatal(err)
	}
	c.join(next, steady, "--join="+first.peer)
	c.hears(next, "ready to serve client requests")
	if s := c.status(next); s.Header.MemberId != added.Member.ID || s.IsLearner {
		t.Errorf("it runs as %v", s)
	}

	// A learner that did not join stays one.
	if _, err := first.client.MemberAddAsLearner(ctx, []string{"http://" + operators.peer}); err != nil {
		t.Fatal(err)
	}
	operators.flags = []string{steady}
	c.start(operators, "existing")
	c.hears(operators, "ready to serve client requests")
	if s := c.status(operators); !s.IsLearner {
		t.Error("a learner was promoted that did not ask for it")
	}
	if _, err := operators.client.Get(ctx, "a"); !says(err, fault.LearnerUnsupported) {
		t.Errorf("a learner answered: %v", err)
	}

	// Removed before it has run: it says so, and comes back as another one.
	last := c.newMember()
	c.join(last, steady, "--join="+first.peer)
	c.hears(last, "ready to serve client requests")
	before := c.status(last).Header.MemberId
	if _, err := first.client.MemberRemove(ctx, before); err != nil {
		t.Fatal(err)
	}
	if code := last.code(t); code != 0 || !strings.Contains(last.output.String(), "only as a new member, with an empty data directory") {
		t.Errorf("the removed member ended with %d:\n%s", code, last.output)
	}
	if err := os.RemoveAll(last.dir); err != nil {
		t.Fatal(err)
	}
	c.join(last, steady, "--join="+first.peer)
	c.hears(last, "ready to serve client requests")
	if now := c.status(last).Header.MemberId; now == before {
		t.Error("an id was used twice")
	}
}

func TestMembersJoinUnderTLS(t *testing.T) {
	t.Parallel()
	c := &cluster{t: t}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	encrypted := func(m *clusterMember) []string {
		return []string{
			"--strict-reconfig-check=false", "--auto-tls", "--listen-client-urls=https://" + m.addr, "--advertise-client-urls=https://" + m.addr,
			"--peer-auto-tls", "--listen-peer-urls=https://" + m.peer,
		}
	}
	first := c.newMember()
	c.join(first, encrypted(first)...)
	c.hears(first, "ready to serve client requests")
	for _, address := range []string{first.peer, first.addr} {
		m := c.newMember()
		c.join(m, append(encrypted(m), "--join="+address)...)
		c.hears(m, "ready to serve client requests")
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"https://" + c.members[2].addr}, TLS: &tls.Config{InsecureSkipVerify: true}, Logger: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if list, err := client.MemberList(ctx); err != nil || len(list.Members) != 3 {
		t.Errorf("members %v, %v", list, err)
	}
	if _, err := os.Stat(filepath.Join(c.members[2].dir, "identity.json")); err != nil {
		t.Error(err)
	}
}
