package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kvorum/kvorum/fault"
)

// clusterFlags make elections fast, and followers that are a little behind get
// snapshots.
var clusterFlags = []string{
	"--heartbeat-interval=50", "--election-timeout=500",
	"--snapshot-count=10", "--snapshot-catchup-entries=10",
	"--strict-reconfig-check=false", "--logger=zap",
}

// steadyFlags are for tests that depend on who leads. A member that gets no
// time for a while, on a machine that has other work, is not missed: others
// lead only once leadership is handed to them.
var steadyFlags = slices.Concat(clusterFlags, []string{"--election-timeout=10000"})

// A cluster is servers that know each other.
type cluster struct {
	t       testing.TB
	flags   []string
	network *network                              // between them; nil: nothing is
	secure  func(*clusterMember) (flags []string) // what members need for TLS; nil: clear text
	members []*clusterMember
	c       *clientv3.Client // of all of them
}

type clusterMember struct {
	site
	name  string
	url   string   // at which others find it
	flags []string // of its own
	id    uint64   // once it has started
	*process
	client *clientv3.Client
}

// newCluster returns a cluster that serves.
func newCluster(t testing.TB, size int, flags []string) *cluster {
	t.Helper()
	c := &cluster{t: t, flags: flags}
	c.found(size)
	return c
}

// found makes members and starts them.
func (c *cluster) found(size int) {
	c.t.Helper()
	for range size {
		c.newMember()
	}
	for _, m := range c.members {
		c.start(m, "new")
	}
	c.ready()
}

// ready waits until all members serve, and gives the cluster its client.
func (c *cluster) ready() {
	c.t.Helper()
	var endpoints []string
	for _, m := range c.members {
		m.ready(c.t, m.client)
		m.id = c.status(m).Header.MemberId
		endpoints = append(endpoints, m.addr)
	}
	c.c = client(c.t, endpoints...)
}

// newMember makes a place for one more.
func (c *cluster) newMember() *clusterMember {
	m := &clusterMember{site: newSite(c.t), name: fmt.Sprintf("m%d", len(c.members))}
	m.client = m.site.client(c.t)
	m.url = "http://" + m.peer
	if c.network != nil {
		m.url = "http://" + c.network.door(c.t, m.peer)
	}
	if c.secure != nil {
		m.url = "https://" + m.peer
		m.flags = append(c.secure(m), "--listen-peer-urls="+m.url)
	}
	c.members = append(c.members, m)
	return m
}

func (c *cluster) start(m *clusterMember, state string) {
	c.t.Helper()
	var initial []string
	for _, one := range c.members {
		initial = append(initial, one.name+"="+one.url)
	}
	m.process = m.site.start(c.t, slices.Concat([]string{
		"--name=" + m.name, "--initial-cluster=" + strings.Join(initial, ","),
		"--initial-cluster-state=" + state, "--initial-advertise-peer-urls=" + m.url,
	}, c.flags, m.flags)...)
}

func (c *cluster) status(m *clusterMember) *clientv3.StatusResponse {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	s, err := m.client.Status(ctx, m.addr)
	if err != nil {
		c.t.Fatalf("status of %s: %v\n%s", m.name, err, m.output)
	}
	return s
}

// leader returns the member that leads.
func (c *cluster) leader() *clusterMember {
	c.t.Helper()
	var found *clusterMember
	c.await("a leader", func() bool {
		for _, m := range c.members {
			if m.leads(c.t.Context()) {
				found = m
			}
		}
		return found != nil
	})
	return found
}

// leads tells whether a member says that it leads.
func (m *clusterMember) leads(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	s, err := m.client.Status(ctx, m.addr)
	return err == nil && s.Leader == s.Header.MemberId
}

// list asks a member who the members are.
func (m *clusterMember) list(t testing.TB) (members []*pb.Member) {
	t.Helper()
	err := insist(t, func() error {
		r, err := m.client.MemberList(t.Context())
		if err == nil {
			members = r.Members
		}
		return err
	})
	if err != nil {
		t.Fatalf("members according to %s: %v\n%s", m.name, err, m.output)
	}
	return members
}

func (c *cluster) kill(m *clusterMember) {
	_ = m.Process.Kill() // or it has ended
	<-m.ended
}

func (c *cluster) await(what string, is func() bool) {
	c.t.Helper()
	await(c.t, what, is)
}

func await(t testing.TB, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !is(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// insist asks for as long as nobody can answer, as a client has to: connections
// end with a member, and a leader that gets no time may lose its place.
func insist(t testing.TB, ask func() error) (err error) {
	t.Helper()
	await(t, "an answer", func() bool {
		err = ask()
		return !unanswered(err)
	})
	return err
}

func unanswered(err error) bool {
	var refusal rpctypes.EtcdError
	if errors.As(err, &refusal) {
		return refusal.Code() == codes.Unavailable
	}
	return status.Code(err) == codes.Unavailable
}

// wantEqual waits until all members that run hold the same, and wants that none
// of them was suspected of anything else.
func (c *cluster) wantEqual() {
	c.t.Helper()
	for _, m := range c.members {
		if m.running() {
			var r *clientv3.AlarmResponse
			err := insist(c.t, func() (err error) { r, err = m.client.AlarmList(c.t.Context()); return err })
			if err != nil || len(r.Alarms) > 0 {
				c.t.Errorf("alarms %v, %v", r, err)
			}
			break
		}
	}
	var sums []string
	c.await("equal members", func() bool {
		sums = nil
		for _, m := range c.members {
			if m.running() {
				h, err := m.client.HashKV(c.t.Context(), m.addr, 0)
				if unanswered(err) {
					return false
				}
				if err != nil {
					c.t.Fatalf("%s: %v\n%s", m.name, err, m.output)
				}
				sums = append(sums, fmt.Sprintf("%s: revision %d hash %x", m.name, h.Header.Revision, h.Hash))
			}
		}
		for _, s := range sums {
			if s[strings.Index(s, ":"):] != sums[0][strings.Index(sums[0], ":"):] {
				return false
			}
		}
		return true
	})
}

func TestAKilledMemberCostsNothingButTime(t *testing.T) {
	t.Parallel()
	// Keys are compared and compacted all the while: nothing of this is a
	// difference.
	c := &cluster{t: t, flags: slices.Concat(clusterFlags, []string{"--corrupt-check-time=300ms", "--auto-compaction-retention=1s"})}
	c.found(3)
	type ack struct {
		key string
		at  time.Time
	}
	var mu sync.Mutex
	var acks []ack
	ctx, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				key := fmt.Sprintf("%d/%06d", w, n)
				one, cancel := context.WithTimeout(ctx, time.Second)
				_, err := c.c.Put(one, key, key)
				cancel()
				if err == nil {
					mu.Lock()
					acks = append(acks, ack{key, time.Now()})
					mu.Unlock()
				}
			}
		})
	}
	written := func() int { mu.Lock(); defer mu.Unlock(); return len(acks) }

	for round := range 3 {
		from := written()
		c.await("writes", func() bool { return written() > from+200 })
		m := c.leader()
		if round == 1 { // a follower this time
			m = c.others(m)[0]
		}
		c.kill(m)
		killed := time.Now()
		c.await("writes after the kill", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return acks[len(acks)-1].at.After(killed.Add(50 * time.Millisecond))
		})
		t.Logf("%s killed: writes resumed after %v", m.name, time.Since(killed).Round(time.Millisecond))
		from = written()
		c.await("more writes", func() bool { return written() > from+100 })
		c.start(m, "new")
		m.ready(t, m.client)
	}
	stop()
	writers.Wait()
	c.wantEqual()
	for _, m := range c.members {
		r, err := m.client.Get(t.Context(), "", clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithSerializable())
		if err != nil {
			t.Fatal(err)
		}
		there := map[string]bool{}
		for _, kv := range r.Kvs {
			there[string(kv.Key)] = true
		}
		for _, a := range acks {
			if !there[a.key] {
				t.Fatalf("%s has lost %s", m.name, a.key)
			}
		}
	}
}

func TestAMemberIsReplaced(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, steadyFlags)
	ctx := t.Context()
	put := func(n int) { t.Helper(); c.put(n, 1000) }
	put(50)

	// One that was away for long is sent a snapshot.
	lead := c.leader()
	away := c.others(lead)[0]
	c.kill(away)
	put(200)
	c.start(away, "new")
	away.ready(t, away.client)
	c.wantEqual()
	if !strings.Contains(away.output.String(), "received snapshot") {
		t.Error("it caught up without a snapshot")
	}
	if left, err := os.ReadDir(receivedDir(away)); err != nil || len(left) > 0 {
		t.Errorf("left of the snapshot: %v, %v", left, err)
	}

	// The leader is removed: it answers, hands over and ends by itself.
	id := c.status(lead).Header.MemberId
	if _, err := lead.client.MemberRemove(ctx, id); err != nil {
		t.Fatalf("remove the leader: %v", err)
	}
	if code := lead.code(t); code != 0 {
		t.Errorf("the removed member ended with %d:\n%s", code, lead.output)
	}
	if text := lead.output.String(); !strings.Contains(text, "stopped: this member was removed from the cluster") {
		t.Errorf("it does not say why it ended:\n%s", text)
	}
	put(10)
	c.start(lead, "existing")
	if code := lead.code(t); code != 1 || !strings.Contains(lead.output.String(), "was removed from the cluster and cannot come back") {
		t.Errorf("a removed member that starts again ended with %d:\n%s", code, lead.output)
	}

	// Another one takes its place, first as a learner.
	next := c.newMember()
	added, err := c.c.MemberAddAsLearner(ctx, []string{next.url})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.c.MemberPromote(ctx, added.Member.ID); !says(err, fault.LearnerNotReady) {
		t.Errorf("promoted before it started: %v", err)
	}
	c.members = slices.DeleteFunc(c.members, func(m *clusterMember) bool { return m == lead })
	c.start(next, "existing")
	c.await("the learner to serve", func() bool {
		return strings.Contains(next.output.String(), "ready to serve client requests")
	})
	if err := insist(t, func() error { _, err := next.client.Get(ctx, "key0"); return err }); !says(err, fault.LearnerUnsupported) {
		t.Errorf("a learner answered: %v", err)
	}
	// By way of a follower, so that the question goes to the leader.
	c.await("the learner to be promoted", func() bool {
		_, err := away.client.MemberPromote(ctx, added.Member.ID)
		if err != nil && !says(err, fault.LearnerNotReady) && !unanswered(err) {
			t.Fatal(err)
		}
		return err == nil
	})
	next.ready(t, next.client)
	put(10)
	c.wantEqual()
	list := next.list(t)
	if len(list) != 3 {
		t.Fatalf("members %v", list)
	}
	for _, m := range list {
		if m.IsLearner || m.Name == "" || m.ID == id {
			t.Errorf("member %v", m)
		}
	}

	// Who loses its directory has forgotten its votes.
	c.kill(next)
	if err := os.RemoveAll(next.dir); err != nil {
		t.Fatal(err)
	}
	c.start(next, "existing")
	if code := next.code(t); code != 1 || !strings.Contains(next.output.String(), "has run before, but the data directory is empty") {
		t.Errorf("it ended with %d:\n%s", code, next.output)
	}
}

func TestLeadershipIsHandedOver(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, steadyFlags)
	ctx := t.Context()
	lead := c.leader()
	before := c.status(lead)

	// Asked to, to the one that was named.
	to := c.others(lead)[0]
	if _, err := lead.client.MoveLeader(ctx, c.status(to).Header.MemberId); err != nil {
		t.Fatal(err)
	}
	if s := c.status(to); s.Leader != s.Header.MemberId || s.RaftTerm != before.RaftTerm+1 {
		t.Errorf("after moving it: %v", s)
	}
	if _, err := lead.client.MoveLeader(ctx, c.status(to).Header.MemberId); !says(err, fault.NotLeader) {
		t.Errorf("moved by one that does not lead: %v", err)
	}

	// And by one that is told to end.
	c.stop(to)
	now := c.status(c.leader())
	if !to.hurried() && (now.RaftTerm != before.RaftTerm+2 || !strings.Contains(to.output.String(), "handed leadership over")) {
		t.Errorf("term %d before, then %d\n%s", before.RaftTerm+1, now.RaftTerm, to.output)
	}
	c.put(1, 1)
}

// says tells whether a client was refused with f.
func says(err error, f *fault.Fault) bool { return err != nil && err.Error() == f.Text }
