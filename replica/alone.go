package replica

import (
	"errors"
	"fmt"
	"math"
	"slices"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/replica/internal/raftlog"
)

// MemberChange is a change of one member that needs a command beside it.
type MemberChange struct {
	Member uint64
	Remove bool // or else it gets a vote
}

var errNoMember = errors.New("this member was removed itself; another one has to go on")

// seize ends a log with entries that make id the only member, in a term of
// their own, and says that all of it is committed. What may have been
// acknowledged stays: this member cannot tell what was, since it need not have
// heard that its last entries were committed. Only a removal of itself is
// undone if it was not. It returns who was dropped, nobody if there was nobody.
//
// A crash leaves the entries or not; then there is as much to do as before.
func seize(log *raftlog.Log, id uint64, command func(MemberChange) []byte) (dropped []uint64, err error) {
	snapshot, err := log.Snapshot()
	if err != nil {
		return nil, fmt.Errorf("this member has never held any data: %w", err)
	}
	at := snapshot.GetMetadata()
	hard, _, err := log.InitialState()
	if err != nil {
		return nil, err
	}
	last, err := log.LastIndex()
	if err != nil {
		return nil, err
	}
	members := at.GetConfState()
	voter := slices.Contains(members.GetVoters(), id)
	if !voter && !slices.Contains(members.GetLearners(), id) {
		return nil, errNoMember
	}
	var tail []*pb.Entry
	if last > at.GetIndex() {
		if tail, err = log.Entries(at.GetIndex()+1, last+1, math.MaxUint64); err != nil {
			return nil, err
		}
	}

	// Everybody who is a member or may become one by the end of the log. A
	// change too many is refused when it is applied, as any that makes no sense.
	others := slices.Concat(members.GetVoters(), members.GetVotersOutgoing(), members.GetLearners(), members.GetLearnersNext())
	for _, e := range tail {
		if e.GetType() == pb.EntryNormal {
			continue
		}
		change, err := decodeChange(e)
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", e.GetIndex(), err)
		}
		leaves := slices.ContainsFunc(change.Changes, func(c *pb.ConfChangeSingle) bool {
			return c.GetType() == pb.ConfChangeRemoveNode && c.GetNodeId() == id
		})
		if leaves && e.GetIndex() <= hard.GetCommit() {
			return nil, errNoMember
		}
		if leaves {
			last = e.GetIndex() - 1
			break
		}
		for _, c := range change.Changes {
			others = append(others, c.GetNodeId())
		}
	}
	slices.Sort(others)
	others = slices.DeleteFunc(slices.Compact(others), func(other uint64) bool { return other == id })
	if len(others) == 0 && voter {
		return nil, nil
	}

	var changes []MemberChange
	if !voter {
		changes = append(changes, MemberChange{Member: id})
	}
	for _, other := range others {
		changes = append(changes, MemberChange{Member: other, Remove: true})
	}
	term := hard.GetTerm() + 1
	var entries []*pb.Entry
	for i, c := range changes {
		kind := pb.ConfChangeAddNode
		if c.Remove {
			kind = pb.ConfChangeRemoveNode
		}
		// A number that no batch of this run will have.
		name := Name{id, log.Incarnation(), math.MaxUint64 - uint64(i)}
		data, err := proto.Marshal(&pb.ConfChangeV2{
			Changes: []*pb.ConfChangeSingle{{Type: kind.Enum(), NodeId: proto.Uint64(c.Member)}},
			Context: appendCommand(appendFrame(nil, name, 1), command(c)),
		})
		if err != nil {
			return nil, err
		}
		entries = append(entries, &pb.Entry{
			Index: proto.Uint64(last + 1 + uint64(i)), Term: proto.Uint64(term),
			Type: pb.EntryConfChangeV2.Enum(), Data: data,
		})
	}
	return others, log.Seize(term, id, entries)
}
