package api

import (
	"context"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/internal/electionpb"
	"github.com/kvorum/kvorum/internal/lockpb"
	"github.com/kvorum/kvorum/state"
)

func (m *member) locks() lockpb.LockClient             { return lockpb.NewLockClient(m.conn) }
func (m *member) elections() electionpb.ElectionClient { return electionpb.NewElectionClient(m.conn) }

func (m *member) client(t *testing.T) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{m.conn.Target()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// queued returns once so many keys stand in the queue for a name.
func (m *member) queued(t *testing.T, name string, want int) {
	t.Helper()
	queue := state.Span{Key: []byte(name + "/"), End: []byte(name + "0")}
	now, err := m.kv().Range(t.Context(), &pb.RangeRequest{Key: queue.Key, RangeEnd: queue.End, KeysOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	stand := map[string]bool{}
	for _, kv := range now.Kvs {
		stand[string(kv.Key)] = true
	}
	if len(stand) == want {
		return
	}
	for e, err := range m.hub.Follow(t.Context(), queue, state.Revision(now.Header.Revision)+1) {
		if err != nil {
			t.Fatal(err)
		}
		if stand[string(e.Key)] = true; e.Deleted {
			delete(stand, string(e.Key))
		}
		if len(stand) == want {
			return
		}
	}
}

type locked struct {
	resp *lockpb.LockResponse
	err  error
}

// lock waits for a lock beside the test.
func (m *member) lock(ctx context.Context, name string, lease int64) <-chan locked {
	done := make(chan locked, 1)
	go func() {
		resp, err := m.locks().Lock(ctx, &lockpb.LockRequest{Name: []byte(name), Lease: lease})
		done <- locked{resp, err}
	}()
	return done
}

func TestALockHasOneOwnerAtATime(t *testing.T) {
	m := newMember(t, Options{})
	one, two, three := m.grant(t, 0, 600).ID, m.grant(t, 0, 600).ID, m.grant(t, 0, 600).ID

	first := <-m.lock(t.Context(), "l", one)
	if first.err != nil {
		t.Fatal(first.err)
	}
	again := <-m.lock(t.Context(), "l", one)
	if again.err != nil || string(again.resp.Key) != string(first.resp.Key) {
		t.Errorf("the owner asks again: %v %v", again.resp, again.err)
	}
	second := m.lock(t.Context(), "l", two)
	m.queued(t, "l", 2)
	third := m.lock(t.Context(), "l", three)
	m.queued(t, "l", 3)
	select {
	case got := <-second:
		t.Fatalf("two owners: %v %v", got.resp, got.err)
	default:
	}

	// One gives up, one is gone with its lease.
	if _, err := m.locks().Unlock(t.Context(), &lockpb.UnlockRequest{Key: first.resp.Key}); err != nil {
		t.Fatal(err)
	}
	got := <-second
	if got.err != nil || got.resp.Header.Revision <= first.resp.Header.Revision {
		t.Fatalf("after it was unlocked: %v %v", got.resp, got.err)
	}
	if _, err := m.lease().LeaseRevoke(t.Context(), &pb.LeaseRevokeRequest{ID: two}); err != nil {
		t.Fatal(err)
	}
	if got := <-third; got.err != nil {
		t.Fatal(got.err)
	}
}

func TestWhoWaitsForALockMayGo(t *testing.T) {
	m := newMember(t, Options{})
	owner := <-m.lock(t.Context(), "l", 0)
	if owner.err != nil {
		t.Fatal(owner.err)
	}
	left, err := m.lease().LeaseLeases(t.Context(), &pb.LeaseLeasesRequest{})
	if err != nil || len(left.Leases) != 1 {
		t.Fatalf("without a lease: %v %v", left, err)
	}

	patient, cancel := context.WithCancel(t.Context())
	waits := m.lock(patient, "l", m.grant(t, 0, 600).ID)
	m.queued(t, "l", 2)
	cancel()
	if got := <-waits; status.Code(got.err) != codes.Canceled {
		t.Errorf("canceled: %v", got.err)
	}
	m.queued(t, "l", 1)

	mortal := m.grant(t, 0, 600).ID
	waits = m.lock(t.Context(), "l", mortal)
	m.queued(t, "l", 2)
	if _, err := m.lease().LeaseRevoke(t.Context(), &pb.LeaseRevokeRequest{ID: mortal}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.locks().Unlock(t.Context(), &lockpb.UnlockRequest{Key: owner.resp.Key}); err != nil {
		t.Fatal(err)
	}
	wantFault(t, (<-waits).err, fault.SessionExpired)

	wantFault(t, (<-m.lock(t.Context(), "l", 12345)).err, fault.LeaseNotFound)
	_, err = m.locks().Unlock(t.Context(), &lockpb.UnlockRequest{})
	wantFault(t, err, fault.EmptyKey)
	if _, err = m.locks().Unlock(t.Context(), &lockpb.UnlockRequest{Key: []byte("nobody's")}); err != nil {
		t.Error(err)
	}
}

// TestRecipesAndServicesShareAQueue has a client lock by the recipe of its
// library what another locks by the service.
func TestRecipesAndServicesShareAQueue(t *testing.T) {
	m := newMember(t, Options{})
	session, err := concurrency.NewSession(m.client(t))
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	recipe := concurrency.NewMutex(session, "l")
	if err := recipe.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	service := m.lock(t.Context(), "l", m.grant(t, 0, 600).ID)
	m.queued(t, "l", 2)
	if err := recipe.TryLock(t.Context()); err != nil {
		t.Errorf("the owner: %v", err)
	}
	if err := recipe.Unlock(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := <-service
	if got.err != nil {
		t.Fatal(got.err)
	}
	if err := recipe.TryLock(t.Context()); err != concurrency.ErrLocked {
		t.Errorf("while the service holds it: %v", err)
	}
}

func TestAnElection(t *testing.T) {
	m := newMember(t, Options{})
	name := []byte("e")
	ask := &electionpb.LeaderRequest{Name: name}
	_, err := m.elections().Leader(t.Context(), ask)
	wantFault(t, err, fault.NoElectionLeader)

	observer, err := m.elections().Observe(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	observed := func(want string) {
		t.Helper()
		if resp, err := observer.Recv(); err != nil || string(resp.Kv.Value) != want || resp.Header.Revision < resp.Kv.ModRevision {
			t.Errorf("observed %v %v, want %s", resp, err, want)
		}
	}

	a, err := m.elections().Campaign(t.Context(), &electionpb.CampaignRequest{Name: name, Lease: m.grant(t, 0, 600).ID, Value: []byte("a")})
	if err != nil {
		t.Fatal(err)
	}
	observed("a")
	if _, err := m.elections().Proclaim(t.Context(), &electionpb.ProclaimRequest{Leader: a.Leader, Value: []byte("a2")}); err != nil {
		t.Fatal(err)
	}
	observed("a2")
	lease := m.grant(t, 0, 600).ID
	campaign := make(chan *electionpb.CampaignResponse, 1)
	go func() {
		b, err := m.elections().Campaign(t.Context(), &electionpb.CampaignRequest{Name: name, Lease: lease, Value: []byte("b")})
		if err != nil {
			t.Error(err)
		}
		campaign <- b
	}()
	m.queued(t, "e", 2)
	if leader, err := m.elections().Leader(t.Context(), ask); err != nil || string(leader.Kv.Value) != "a2" {
		t.Errorf("leader %v, %v", leader, err)
	}

	if _, err := m.elections().Resign(t.Context(), &electionpb.ResignRequest{Leader: a.Leader}); err != nil {
		t.Fatal(err)
	}
	b := <-campaign
	observed("b")
	if b.GetLeader().GetRev() <= a.Leader.Rev || b.GetLeader().GetLease() != lease {
		t.Errorf("%v leads after %v", b, a)
	}

	// Who led before learns it, and does no harm.
	_, err = m.elections().Proclaim(t.Context(), &electionpb.ProclaimRequest{Leader: a.Leader, Value: []byte("still me")})
	wantFault(t, err, fault.NotElected)
	if _, err = m.elections().Resign(t.Context(), &electionpb.ResignRequest{Leader: a.Leader}); err != nil {
		t.Error(err)
	}
	if leader, err := m.elections().Leader(t.Context(), ask); err != nil || string(leader.Kv.Value) != "b" {
		t.Errorf("leader %v, %v", leader, err)
	}
	_, err = m.elections().Proclaim(t.Context(), &electionpb.ProclaimRequest{})
	wantFault(t, err, fault.LeaderMissing)
	_, err = m.elections().Resign(t.Context(), &electionpb.ResignRequest{})
	wantFault(t, err, fault.LeaderMissing)

	// A candidate who campaigns again has something new to say.
	if _, err := m.elections().Campaign(t.Context(), &electionpb.CampaignRequest{Name: name, Lease: lease, Value: []byte("b2")}); err != nil {
		t.Fatal(err)
	}
	observed("b2")
}
