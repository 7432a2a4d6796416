package state

import (
	"encoding/binary"
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/internal/wire"
)

// Kind says what a command does, and which message it carries. The numbers are
// in logs: they never change, and none is used twice.
type Kind byte

const (
	Put         Kind = 1 // etcdserverpb.PutRequest
	DeleteRange Kind = 2 // etcdserverpb.DeleteRangeRequest
	Txn         Kind = 3 // etcdserverpb.TxnRequest
	Compact     Kind = 4 // etcdserverpb.CompactionRequest
	Alarm       Kind = 5 // etcdserverpb.AlarmRequest
	Publish     Kind = 6 // etcdserverpb.Member: the name and the client URLs of one that has started

	// Those that change who votes come with a Configuration in their entry.
	MemberAdd     Kind = 7  // etcdserverpb.Member: id, peer URLs, learner; see LimitLearners
	MemberRemove  Kind = 8  // etcdserverpb.MemberRemoveRequest
	MemberUpdate  Kind = 9  // etcdserverpb.MemberUpdateRequest
	MemberPromote Kind = 10 // etcdserverpb.MemberPromoteRequest

	LeaseGrant      Kind = 11 // etcdserverpb.LeaseGrantRequest; its id is chosen by then
	LeaseRevoke     Kind = 12 // etcdserverpb.LeaseRevokeRequest
	LeaseExpire     Kind = 13 // etcdserverpb.LeaseLeasesResponse: those whose time is up
	LeaseCheckpoint Kind = 14 // etcdserverpb.LeaseCheckpointRequest: what is left of their time; 0 is all of it

	Hierarchy Kind = 15 // HierarchyRequest, which encodes itself
)

// inTerm stands before a command that is good for one term only.
const inTerm Kind = 255

// Principal is who asks. The empty one is the cluster itself, or anybody while
// there are no users.
type Principal struct {
	User     string
	Revision uint64 // of users and roles, when the user was let in
}

// Command is a change that somebody wants. It is encoded as
//
//	kind 1 | revision of the principal uvarint | length of the user uvarint | user | request
//
// where the request is the message as it came over the wire, so that a put can
// go from a client's frame to the log without being taken apart. Where it has a
// term, inTerm 1 | term uvarint come first.
type Command struct {
	Kind      Kind
	Principal Principal

	// Term is that of the leader whose decision this is. An entry of another
	// term shows that it leads no more, and the command is refused. 0: whoever
	// leads.
	Term Term

	Request proto.Message

	// Encoded is the request's bytes. If set, Request is not looked at. They
	// need not be valid: what cannot be decoded is refused when it is applied.
	Encoded []byte
}

// Append appends the encoded command.
func (c Command) Append(dst []byte) ([]byte, error) {
	if c.Term != 0 {
		dst = append(dst, byte(inTerm))
		dst = binary.AppendUvarint(dst, uint64(c.Term))
	}
	dst = append(dst, byte(c.Kind))
	dst = binary.AppendUvarint(dst, c.Principal.Revision)
	dst = binary.AppendUvarint(dst, uint64(len(c.Principal.User)))
	dst = append(dst, c.Principal.User...)
	if c.Encoded != nil {
		return append(dst, c.Encoded...), nil
	}
	dst, err := wire.Append(dst, c.Request)
	if err != nil {
		return nil, fmt.Errorf("state: encode command: %w", err)
	}
	return dst, nil
}

var errCommand = errors.New("state: damaged command")

// parseCommand takes a command apart, but for its request. The parts are those
// of b.
func parseCommand(b []byte) (Command, error) {
	if len(b) == 0 {
		return Command{}, errCommand
	}
	var c Command
	if Kind(b[0]) == inTerm {
		term, n := binary.Uvarint(b[1:])
		if n <= 0 || term == 0 || len(b) == 1+n {
			return Command{}, errCommand
		}
		c.Term, b = Term(term), b[1+n:]
	}
	c.Kind, b = Kind(b[0]), b[1:]
	revision, n := binary.Uvarint(b)
	if n <= 0 {
		return Command{}, errCommand
	}
	b = b[n:]
	length, n := binary.Uvarint(b)
	if n <= 0 || length > uint64(len(b)-n) {
		return Command{}, errCommand
	}
	b = b[n:]
	c.Principal = Principal{User: string(b[:length]), Revision: revision}
	c.Encoded = b[length:]
	return c, nil
}

// put is a PutRequest as it lies in the bytes it was decoded from.
type put struct {
	key, value               []byte
	lease                    int64
	prev                     bool
	ignoreValue, ignoreLease bool
}

func putOf(m *pb.PutRequest) put {
	return put{m.Key, m.Value, m.Lease, m.PrevKv, m.IgnoreValue, m.IgnoreLease}
}

func parsePut(b []byte) (put, bool) {
	var m pb.PutRequest
	ok := wire.Put(b, &m)
	return putOf(&m), ok
}
