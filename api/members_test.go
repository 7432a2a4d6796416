package api

import (
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

func TestMembersComeAndGo(t *testing.T) {
	m := newMember(t, Options{})
	cluster, ctx := pb.NewClusterClient(m.conn), t.Context()
	wants := func(what string, err error, want *fault.Fault) {
		t.Helper()
		if s := status.Convert(err); want == nil && err != nil || want != nil && (s.Code() != codes.Code(want.Code) || s.Message() != want.Text) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	add := func(url string, learner bool) (*pb.MemberAddResponse, error) {
		return cluster.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{url}, IsLearner: learner})
	}

	two, err := add("http://127.0.0.1:2", true)
	if err != nil {
		t.Fatal(err)
	}
	if h := two.Header; h.Revision != 0 || h.MemberId != self || h.ClusterId == 0 || len(two.Members) != 2 || !two.Member.IsLearner || two.Member.Name != "" {
		t.Errorf("added %v", two)
	}
	id := two.Member.ID
	_, err = add("http://127.0.0.1:3", true)
	wants("a second learner", err, fault.TooManyLearners)
	_, err = add("http://127.0.0.1:2", false)
	wants("its address", err, fault.PeerURLExists)
	_, err = add("127.0.0.1:3", false)
	wants("no address", err, fault.MemberURLs)

	promote := func(id uint64) error {
		_, err := cluster.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: id})
		return err
	}
	wants("promote a voter", promote(self), fault.NotLearner)
	wants("promote nobody", promote(7), fault.MemberNotFound)
	m.set(func(s *sequencer) { s.mu.behind = fault.LearnerNotReady })
	wants("promote one that is behind", promote(id), fault.LearnerNotReady)
	m.set(func(s *sequencer) { s.mu.behind = nil })
	wants("promote", promote(id), nil)

	// Two voters, of which the other one has never run.
	_, err = add("http://127.0.0.1:3", false)
	wants("add beside one that has not started", err, fault.NotEnoughStarted)
	remove := func(id uint64) error {
		_, err := cluster.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: id})
		return err
	}
	wants("remove the one that runs", remove(self), fault.NotEnoughStarted)
	if _, err := m.Propose(ctx, command(t, state.Publish, &pb.Member{ID: id, Name: "two"})); err != nil {
		t.Fatal(err)
	}
	m.set(func(s *sequencer) { s.mu.reachable = map[state.MemberID]time.Time{state.MemberID(id): time.Now()} })
	wants("remove one that has just come up", remove(id), fault.Unhealthy)
	m.set(func(s *sequencer) {
		s.mu.reachable[state.MemberID(id)] = time.Now().Add(-time.Minute)
	})

	_, err = cluster.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: id, PeerURLs: []string{"http://127.0.0.1:2", "http://127.0.0.1:1"}})
	wants("update", err, nil)
	list, err := cluster.MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range list.Members {
		if one.ID == id && (len(one.PeerURLs) != 2 || one.PeerURLs[0] != "http://127.0.0.1:1" || one.IsLearner || one.Name != "two") {
			t.Errorf("updated to %v", one)
		}
	}

	wants("remove", remove(id), nil)
	wants("remove again", remove(id), fault.MemberNotFound)
	wants("remove the last", remove(self), fault.NotEnoughStarted)
}

func command(t *testing.T, kind state.Kind, req *pb.Member) []byte {
	t.Helper()
	b, err := state.Command{Kind: kind, Request: req}.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
