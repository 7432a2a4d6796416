package node

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

// TestLeasesOfAMember grants leases to a member of its own, has many renew them
// at once, restarts it, and sees them end.
func TestLeasesOfAMember(t *testing.T) {
	fs := vfs.NewMem()
	open := func(fresh bool) *running {
		m, err := openMember(testOptions(fs, fresh, keepFew))
		if err != nil {
			t.Fatal(err)
		}
		return start(m)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	propose := func(m *running, kind state.Kind, q *pb.LeaseGrantRequest) {
		if _, err := m.Propose(ctx, command(t, kind, q)); err != nil {
			t.Fatal(err)
		}
	}
	m := open(true)
	const long, short = 1000, 1
	for id := range int64(100) {
		propose(m, state.LeaseGrant, &pb.LeaseGrantRequest{ID: id + 1, TTL: long})
	}
	var clients sync.WaitGroup
	for n := range 20 {
		clients.Go(func() {
			for id := range state.LeaseID(50) {
				ttls, err := m.Renew(ctx, []state.LeaseID{id + 1, 101, state.LeaseID(n + 2)})
				if err != nil || !slices.Equal(ttls, []int64{long, 0, long}) {
					t.Errorf("renewed for %v, %v", ttls, err)
				}
			}
		})
	}
	clients.Wait()
	if err := m.end(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Renew(ctx, []state.LeaseID{1}); err != fault.Stopped {
		t.Errorf("renewed by a member that has ended: %v", err)
	}

	m = open(false)
	granting := time.Now()
	propose(m, state.LeaseGrant, &pb.LeaseGrantRequest{ID: 200, TTL: short})
	left, err := m.Remaining(ctx, []state.LeaseID{1, 200, 201})
	if err != nil || left[0] < long-60 || left[0] > long || left[1] > short || left[2] != -1 {
		t.Errorf("left %v, %v", left, err)
	}
	if took := time.Since(granting); left[1] < 0 && took < short*time.Second {
		t.Errorf("nothing is left of a lease after %v", took)
	}
	propose(m, state.LeaseGrant, &pb.LeaseGrantRequest{ID: 300, TTL: long / 2})
	ids := []state.LeaseID{1, 300}
	if m.SortByEnd(ids); ids[0] != 300 {
		t.Errorf("by end: %v", ids)
	}
	gone := time.NewTicker(time.Millisecond)
	defer gone.Stop()
	for _, exists := m.View().Lease(200); exists; _, exists = m.View().Lease(200) {
		select {
		case <-gone.C:
		case <-ctx.Done():
			t.Fatal("a lease does not end")
		}
	}
	if took := time.Since(granting); took < short*time.Second {
		t.Errorf("the lease ended after %v", took)
	}

	// What other members ask has to make sense.
	if _, err := m.renewals.answer(ctx, 2, make([]byte, 7)); err != fault.Malformed {
		t.Errorf("answered seven bytes: %v", err)
	}
	answer, err := m.renewals.answer(ctx, 2, []byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 200})
	if want := []byte{0, 0, 0, 0, 0, 0, long >> 8, long & 0xff, 0, 0, 0, 0, 0, 0, 0, 0}; err != nil || !slices.Equal(answer, want) {
		t.Errorf("answered %x, %v", answer, err)
	}

	// Who gives up is told why.
	leaving, leave := context.WithCancel(ctx)
	leave()
	if _, err := m.Renew(leaving, []state.LeaseID{1}); err != nil && err != fault.RequestCanceled {
		t.Errorf("gave up: %v", err)
	}
	if err := m.end(); err != nil {
		t.Fatal(err)
	}
}
