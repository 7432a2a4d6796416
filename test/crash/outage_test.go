package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kvorum/kvorum/fault"
)

// others returns all members but one.
func (c *cluster) others(m *clusterMember) (all []*clusterMember) {
	for _, one := range c.members {
		if one != m {
			all = append(all, one)
		}
	}
	return all
}

// put writes so many keys, each with a value of so many bytes.
func (c *cluster) put(n, bytes int) {
	c.t.Helper()
	value := strings.Repeat("v", bytes)
	for i := range n {
		err := insist(c.t, func() error { _, err := c.c.Put(c.t.Context(), fmt.Sprint("key", i), value); return err })
		if err != nil {
			c.t.Fatal(err)
		}
	}
}

// TestWithoutAQuorum stops the majority: what needs it times out with etcd's
// words, what does not goes on, and with the majority all of it comes back.
func TestWithoutAQuorum(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, clusterFlags)
	c.put(1, 10)
	last := c.members[0]
	revive := c.killed(c.others(last)...)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c.await("the last member to see that nobody leads", func() bool { return c.status(last).Leader == 0 })

	// Without clientv3's retries, for they hide what the server said.
	conn := last.client.ActiveConnection()
	kv := pb.NewKVClient(conn)
	key := []byte("key0")
	asks := map[string]func() error{
		"get": func() error { _, err := kv.Range(ctx, &pb.RangeRequest{Key: key}); return err },
		"put": func() error { _, err := kv.Put(ctx, &pb.PutRequest{Key: key}); return err },
		"delete": func() error {
			_, err := kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key})
			return err
		},
		"member list": func() error {
			_, err := pb.NewClusterClient(conn).MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
			return err
		},
	}
	var asked sync.WaitGroup
	for name, ask := range asks {
		asked.Go(func() {
			err := ask()
			if status.Code(err) != codes.Unavailable || status.Convert(err).Message() != fault.Timeout.Text {
				t.Errorf("%s without a quorum: %v", name, err)
			}
		})
	}
	answered := make(chan struct{})
	go func() {
		asked.Wait()
		close(answered)
	}()
	for waiting := true; waiting; {
		r, err := last.client.Get(ctx, "key0", clientv3.WithSerializable())
		if err != nil || len(r.Kvs) != 1 {
			t.Fatalf("a serializable read: %v, %v", r, err)
		}
		list, err := pb.NewClusterClient(conn).MemberList(ctx, &pb.MemberListRequest{})
		if err != nil || len(list.Members) != 3 {
			t.Fatalf("members as known here: %v, %v", list, err)
		}
		select {
		case <-answered:
			waiting = false
		case <-time.After(50 * time.Millisecond):
		}
	}

	revive()
	for name, ask := range asks {
		c.await(name+" to succeed again", func() bool { return ask() == nil })
	}
	c.ready()
	c.wantEqual()
}

// TestRollingRestart ends and starts one member after the other. A client that
// repeats what was refused or lost gets all it asks for, soon.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, clusterFlags)
	ctx, stop := context.WithCancel(t.Context())
	type result struct {
		requests, repeated int
		longest            time.Duration
		err                error
	}
	done := make(chan result, 1)
	var answered atomic.Int64
	go func() {
		var r result
		for ctx.Err() == nil && r.err == nil {
			key := fmt.Sprintf("key%06d", r.requests)
			began := time.Now()
			for again := true; again; {
				one, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
				_, err := c.c.Put(one, key, key)
				cancel()
				if again = err != nil; again {
					r.repeated++
				}
				if took := time.Since(began); again && took > patience {
					r.err = fmt.Errorf("%s: %w", key, err)
					break
				}
			}
			r.requests++
			answered.Add(1)
			r.longest = max(r.longest, time.Since(began))
		}
		done <- r
	}()
	for _, m := range c.members {
		before := answered.Load()
		c.await("work", func() bool { return answered.Load() > before+50 })
		c.stop(m)
		c.start(m, "new")
		m.ready(t, m.client)
	}
	stop()
	r := <-done
	if r.err != nil {
		t.Error(r.err)
	}
	t.Logf("%d requests, %d repeated, the longest took %v", r.requests, r.repeated, r.longest)
	c.wantEqual()
	var there *clientv3.GetResponse
	err := insist(t, func() (err error) {
		there, err = c.c.Get(t.Context(), "key", clientv3.WithPrefix(), clientv3.WithCountOnly())
		return err
	})
	if err != nil || there.Count != int64(r.requests) {
		t.Errorf("%v keys of %d are there, %v", there, r.requests, err)
	}
}

// TestSnapshotsAreCutInTheMiddle has a member far behind whose first snapshots
// never arrive.
func TestSnapshotsAreCutInTheMiddle(t *testing.T) {
	t.Parallel()
	c := &cluster{t: t, flags: steadyFlags, network: newNetwork()}
	c.found(3)
	away := c.others(c.leader())[0]
	revive := c.killed(away)
	c.put(100, 10_000)
	const cut = 3
	c.network.truncateSnapshots(cut)
	revive()
	away.ready(t, away.client)
	c.wantEqual()
	if left := c.network.untruncated(); left > 0 {
		t.Errorf("%d snapshots were cut, should be %d", cut-left, cut)
	}
	if text := away.output.String(); strings.Count(text, "received snapshot") != 1 {
		t.Errorf("it should have got one snapshot:\n%s", text)
	}
	if left, err := os.ReadDir(receivedDir(away)); err != nil || len(left) > 0 {
		t.Errorf("left of the snapshots: %v, %v", left, err)
	}
}

func receivedDir(m *clusterMember) string { return filepath.Join(m.dir, "received") }

// TestGarbageAmongMembers sends what no member sends to the ports for members.
func TestGarbageAmongMembers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, steadyFlags)
	term := c.status(c.leader()).RaftTerm
	rng := rand.New(rand.NewPCG(1, 1))
	for _, begin := range []string{"", "\x8b", "\x8bkvpr\r\n\x00", "\x8bkvpr\r\n\x00\x00\x00\x00\x40", "GET /members HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x16\x03\x01"} {
		for i := range 15 {
			throw(t, c.members[i%3].peer, begin, rng)
		}
	}
	c.put(10, 10)
	if now := c.status(c.leader()).RaftTerm; now != term {
		t.Errorf("term %d before, %d after", term, now)
	}
	c.wantEqual()
	for _, m := range c.members {
		if !m.running() {
			t.Errorf("%s has ended:\n%s", m.name, m.output)
		}
	}
}
