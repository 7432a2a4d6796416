// Package member keeps who belongs to the cluster: names and addresses, not
// who votes about what, which is consensus' own. It never forgets an id that
// was removed.
//
// M1: a set never changes; a change makes another.
package member

import (
	"encoding/binary"
	"fmt"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/state/internal/table"
)

// ID names a member for ever.
type ID uint64

// Member is one member of the cluster.
type Member struct {
	ID         ID
	Name       string // empty until it has started
	PeerURLs   []string
	ClientURLs []string
	Learner    bool
}

// Set is the members of a cluster, by id, and the ids of those who were
// removed. The nil set is empty.
type Set struct {
	members []Member
	removed []ID // ascending
}

// Rows takes changes of rows.
type Rows interface {
	Set(key, value []byte)
	Delete(key []byte)
}

// All returns the members in the order of their ids. They are not to be changed.
func (s *Set) All() []Member {
	if s == nil {
		return nil
	}
	return s.members
}

func (s *Set) find(id ID) (int, bool) {
	return slices.BinarySearchFunc(s.All(), id, func(m Member, id ID) int {
		if m.ID < id {
			return -1
		}
		return int(min(m.ID-id, 1))
	})
}

// Find returns the member with an id.
func (s *Set) Find(id ID) (Member, bool) {
	i, ok := s.find(id)
	if !ok {
		return Member{}, false
	}
	return s.members[i], true
}

// Removed returns the ids of former members in their order. They are not to be
// changed.
func (s *Set) Removed() []ID {
	if s == nil {
		return nil
	}
	return s.removed
}

// WasRemoved tells whether an id is that of a former member.
func (s *Set) WasRemoved(id ID) bool {
	_, ok := slices.BinarySearch(s.Removed(), id)
	return ok
}

// At returns the member other than but that has one of the addresses.
func (s *Set) At(peerURLs []string, but ID) (Member, bool) {
	for _, m := range s.All() {
		if m.ID != but && slices.ContainsFunc(peerURLs, func(u string) bool { return slices.Contains(m.PeerURLs, u) }) {
			return m, true
		}
	}
	return Member{}, false
}

// Put adds or replaces a member.
func (s *Set) Put(rows Rows, m Member) *Set {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.Message())
	if err != nil {
		panic(fmt.Sprintf("member: encode: %v", err)) // strings were checked when they came in
	}
	rows.Set(key(m.ID), value)
	return s.with(m)
}

// Remove removes a member. Its row stays, without what it said.
func (s *Set) Remove(rows Rows, id ID) *Set {
	rows.Set(key(id), nil)
	return s.without(id)
}

func (s *Set) with(m Member) *Set {
	i, ok := s.find(m.ID)
	next := slices.Clone(s.All())
	if ok {
		next[i] = m
	} else {
		next = slices.Insert(next, i, m)
	}
	return &Set{next, s.Removed()}
}

func (s *Set) without(id ID) *Set {
	next := &Set{slices.Clone(s.All()), slices.Clone(s.Removed())}
	if i, ok := s.find(id); ok {
		next.members = slices.Delete(next.members, i, i+1)
	}
	i, _ := slices.BinarySearch(next.removed, id)
	next.removed = slices.Insert(next.removed, i, id)
	return next
}

func key(id ID) []byte {
	return binary.BigEndian.AppendUint64([]byte{table.Members}, uint64(id))
}

// Load reads the members from a table.
func Load(r table.Reader) (*Set, error) {
	var s *Set
	var failed error
	err := r.Scan([]byte{table.Members}, []byte{table.Members + 1}, func(key, value []byte) bool {
		if len(value) == 0 && len(key) == 1+8 {
			s = s.without(ID(binary.BigEndian.Uint64(key[1:])))
			return true
		}
		var m pb.Member
		if failed = proto.Unmarshal(value, &m); failed != nil {
			failed = fmt.Errorf("member: decode %x: %w", key, failed)
			return false
		}
		s = s.with(Member{ID(m.ID), m.Name, m.PeerURLs, m.ClientURLs, m.IsLearner})
		return true
	})
	if err == nil {
		err = failed
	}
	return s, err
}

// Message returns the member as clients are told of it.
func (m Member) Message() *pb.Member {
	return &pb.Member{ID: uint64(m.ID), Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, IsLearner: m.Learner}
}
