// Package alarm keeps which member has raised which alarm.
//
// A1: a set never changes; a change makes another.
package alarm

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/state/internal/table"
)

// Alarm is raised by a member until somebody ends it.
type Alarm struct {
	Type   pb.AlarmType
	Member uint64
}

func compare(a, b Alarm) int {
	return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Member, b.Member))
}

// Set is the alarms of a cluster. The nil set is empty.
type Set struct{ alarms []Alarm }

// Rows takes changes of rows.
type Rows interface {
	Set(key, value []byte)
	Delete(key []byte)
}

// All returns the alarms of a type, or all of them if it is NONE.
func (s *Set) All(t pb.AlarmType) []Alarm {
	if s == nil {
		return nil
	}
	if t == pb.AlarmType_NONE {
		return s.alarms
	}
	return slices.DeleteFunc(slices.Clone(s.alarms), func(a Alarm) bool { return a.Type != t })
}

// Has tells whether an alarm is raised.
func (s *Set) Has(a Alarm) bool {
	if s == nil {
		return false
	}
	_, ok := s.find(a)
	return ok
}

// Drop ends all alarms of a member.
func (s *Set) Drop(rows Rows, member uint64) *Set {
	for _, a := range s.All(pb.AlarmType_NONE) {
		if a.Member == member {
			s, _ = s.End(rows, a)
		}
	}
	return s
}

func (s *Set) find(a Alarm) (int, bool) {
	return slices.BinarySearchFunc(s.All(pb.AlarmType_NONE), a, compare)
}

// Raise adds an alarm; raising it again changes nothing.
func (s *Set) Raise(rows Rows, a Alarm) *Set {
	if _, ok := s.find(a); ok {
		return s
	}
	rows.Set(key(a), nil)
	return s.with(a)
}

func (s *Set) with(a Alarm) *Set {
	i, _ := s.find(a)
	return &Set{slices.Insert(slices.Clone(s.All(pb.AlarmType_NONE)), i, a)}
}

// End removes an alarm and tells whether it was raised.
func (s *Set) End(rows Rows, a Alarm) (*Set, bool) {
	i, ok := s.find(a)
	if !ok {
		return s, false
	}
	rows.Delete(key(a))
	return &Set{slices.Delete(slices.Clone(s.alarms), i, i+1)}, true
}

func key(a Alarm) []byte {
	k := binary.BigEndian.AppendUint32([]byte{table.Alarms}, uint32(a.Type))
	return binary.BigEndian.AppendUint64(k, a.Member)
}

// Load reads the alarms from a table.
func Load(r table.Reader) (*Set, error) {
	var s *Set
	var failed error
	err := r.Scan([]byte{table.Alarms}, []byte{table.Alarms + 1}, func(key, _ []byte) bool {
		if len(key) != 1+4+8 {
			failed = fmt.Errorf("alarm: damaged row %x", key)
			return false
		}
		s = s.with(Alarm{pb.AlarmType(binary.BigEndian.Uint32(key[1:])), binary.BigEndian.Uint64(key[5:])})
		return true
	})
	if err == nil {
		err = failed
	}
	return s, err
}

// Messages returns alarms as clients are told of them.
func Messages(alarms []Alarm) []*pb.AlarmMember {
	var out []*pb.AlarmMember
	for _, a := range alarms {
		out = append(out, &pb.AlarmMember{MemberID: a.Member, Alarm: a.Type})
	}
	return out
}
