package replica

import (
	"fmt"

	"go.etcd.io/raft/v3/confchange"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/internal/mutant"
	"github.com/kvorum/kvorum/replica/internal/raftlog"
)

// Entry is one committed entry of the log, as the machine gets it.
type Entry struct {
	Index, Term uint64
	Commands    [][]byte // valid until Apply returns

	// Configuration is the encoded raftpb.ConfState that holds once this entry
	// is applied, nil where it stays as it was. Such an entry carries one
	// command, or none where raft left a joint membership by itself. If the
	// command is not accepted, the membership stays as it was, too.
	Configuration []byte

	// Wanted says that somebody on this member waits for the results.
	Wanted bool
}

// Mark is a place in the log with the membership that held there.
type Mark = raftlog.Mark

// Machine is what the log is applied to. One goroutine calls all methods.
type Machine[R any] interface {
	// Apply applies entries that follow the last one applied, and returns one
	// result for each command, in order. It must store the index of the last
	// entry, and the newest Configuration, with what the commands change. An
	// error is final: the member stops.
	Apply(entries []Entry) ([]R, error)

	// Applied returns the index of the last entry applied, and of the last
	// that a power loss cannot undo. When a member starts the two are equal;
	// 0 means that this machine waits for a snapshot, 1 that it holds the
	// agreed first state of a cluster.
	Applied() (applied, durable uint64)

	// Configuration returns the encoded membership as of Applied.
	Configuration() []byte

	// Restore makes the machine what the snapshot at m holds, durably. Its
	// data was durable here before the message of it was given to Step, and
	// must be kept until then: after a crash Restore is called again.
	Restore(m Mark) error
}

// Applier feeds a machine with what raft has committed, and gives the results
// to those who wait for them. It starts no goroutine; one calls its methods.
//
// What it promises:
//
//	A1: each committed entry reaches the machine once, in order: also the empty
//	    ones, and those whose commands are refused.
//	A2: the membership is a function of the log: the same on every member at
//	    the same index.
type Applier[R any] struct {
	// Immutable after newApplier.
	machine  Machine[R]
	accepted func(R) bool
	pending  *pending[R]

	at       Mark // the last entry applied
	entries  []Entry
	waiting  []*batch[R] // those who wait, by entry; nil where nobody does
	commands [][]byte
	size     int
}

// applyBytesMax bounds the commands given to the machine in one call.
const applyBytesMax = 4 << 20

func newApplier[R any](machine Machine[R], accepted func(R) bool, pending *pending[R], at Mark) *Applier[R] {
	if accepted == nil {
		accepted = func(R) bool { return true }
	}
	return &Applier[R]{machine: machine, accepted: accepted, pending: pending, at: at}
}

// Applied is what became of one of raft's messages.
type Applied struct {
	Message *pb.Message
	Changes []Change
	At      Mark // the last entry of the message
}

// Apply applies the entries of raft's messages, as few calls of the machine as
// possible, and appends an Applied for each message to done.
func (a *Applier[R]) Apply(messages []*pb.Message, done []Applied) ([]Applied, error) {
	done, err := a.apply(messages, done)
	if err != nil {
		// Whether these commands are executed shows when the member starts again.
		for _, who := range a.waiting {
			if who != nil {
				who.fail(a.pending, fault.Stopped)
			}
		}
		a.waiting = nil
	}
	return done, err
}

func (a *Applier[R]) apply(messages []*pb.Message, done []Applied) ([]Applied, error) {
	first := len(done)
	for _, m := range messages {
		var changes []Change
		for _, e := range m.Entries {
			if e.GetIndex() != a.next() {
				panic(fmt.Sprintf("replica: broken promise: A1: entry %d comes after %d", e.GetIndex(), a.next()-1))
			}
			change, err := a.add(e)
			if err != nil {
				return done, fmt.Errorf("replica: entry %d: %w", e.GetIndex(), err)
			}
			if change == nil && a.size < applyBytesMax {
				continue
			}
			// The membership behind a change hangs on what the machine says to
			// it, so nothing behind it can be prepared yet.
			accepted, err := a.flush()
			if err != nil {
				return done, err
			}
			if change != nil && accepted {
				a.at.Configuration = change.members
				changes = append(changes, Change{e.GetIndex(), change.change})
			}
		}
		done = append(done, Applied{Message: m, Changes: changes, At: a.at})
	}
	if _, err := a.flush(); err != nil {
		return done, err
	}
	for i := range done[first:] {
		at := &done[first+i].At
		e := done[first+i].Message.Entries
		at.Index, at.Term = e[len(e)-1].GetIndex(), e[len(e)-1].GetTerm()
	}
	return done, nil
}

func (a *Applier[R]) next() uint64 { return a.at.Index + uint64(len(a.entries)) + 1 }

// memberChange is a change of the membership that can be made.
type memberChange struct {
	change  *pb.ConfChangeV2
	members *pb.ConfState
}

// add prepares an entry for the machine. It returns a change that the entry
// brings, which the machine may still refuse.
func (a *Applier[R]) add(e *pb.Entry) (*memberChange, error) {
	entry := Entry{Index: e.GetIndex(), Term: e.GetTerm()}
	var change *memberChange
	frame := e.Data
	var impossible error
	if e.GetType() != pb.EntryNormal {
		cc, err := decodeChange(e)
		if err != nil {
			return nil, err
		}
		frame = cc.Context
		members, err := changeMembers(a.at.Configuration, cc)
		if err != nil {
			impossible = err
		} else {
			change = &memberChange{cc, members}
			entry.Configuration = encodeMembers(members)
		}
	}

	var who *batch[R]
	if len(frame) > 0 {
		start := len(a.commands)
		name, commands, err := decodeFrame(frame, a.commands)
		if err != nil {
			return nil, err
		}
		a.commands = commands
		entry.Commands = commands[start:len(commands):len(commands)]
		who = a.pending.take(name)
	}
	if impossible != nil {
		// The membership cannot become this; on every member alike. So the
		// command that would have recorded it is not carried out either.
		entry.Commands = nil
		if who != nil {
			who.fail(a.pending, fmt.Errorf("replica: change of the membership: %w", impossible))
			who = nil
		}
	}
	entry.Wanted = who != nil
	a.entries = append(a.entries, entry)
	a.waiting = append(a.waiting, who)
	a.size += len(e.Data)
	return change, nil
}

// flush gives the prepared entries to the machine and the results to those who
// wait. It says whether the last command was accepted.
func (a *Applier[R]) flush() (accepted bool, err error) {
	if len(a.entries) == 0 {
		return true, nil
	}
	results, err := a.machine.Apply(a.entries)
	if err != nil {
		return false, fmt.Errorf("replica: apply entries %d to %d: %w", a.entries[0].Index, a.entries[len(a.entries)-1].Index, err)
	}
	rest := results
	for i, e := range a.entries {
		n := len(e.Commands)
		must(n <= len(rest), "A1: one result for each command")
		if who := a.waiting[i]; who != nil {
			who.finish(a.pending, rest[:n])
		}
		rest = rest[n:]
	}
	must(len(rest) == 0, "A1: one result for each command")

	last := a.entries[len(a.entries)-1]
	a.at.Index, a.at.Term = last.Index, last.Term
	accepted = len(last.Commands) == 0 || a.accepted(results[len(results)-1]) || mutant.On("refused change holds")

	clear(a.entries)
	clear(a.waiting)
	clear(a.commands)
	a.entries, a.waiting, a.commands, a.size = a.entries[:0], a.waiting[:0], a.commands[:0], 0
	return accepted, nil
}

// Restore makes the machine what a snapshot holds.
func (a *Applier[R]) Restore(m *pb.Snapshot) error {
	meta := m.GetMetadata()
	at := Mark{Index: meta.GetIndex(), Term: meta.GetTerm(), Configuration: meta.GetConfState()}
	if err := a.machine.Restore(at); err != nil {
		return fmt.Errorf("replica: restore the snapshot at %d: %w", at.Index, err)
	}
	if applied, durable := a.machine.Applied(); applied != at.Index || durable != at.Index {
		return fmt.Errorf("replica: restore the snapshot at %d: the state is at %d, durable up to %d", at.Index, applied, durable)
	}
	if mutant.On("membership survives a snapshot") && len(a.at.Configuration.GetVoters()) > 0 {
		at.Configuration = a.at.Configuration
	}
	a.at = at
	return nil
}

func decodeChange(e *pb.Entry) (*pb.ConfChangeV2, error) {
	if e.GetType() == pb.EntryConfChange {
		var old pb.ConfChange
		if err := proto.Unmarshal(e.Data, &old); err != nil {
			return nil, err
		}
		return old.AsV2(), nil
	}
	change := &pb.ConfChangeV2{}
	return change, proto.Unmarshal(e.Data, change)
}

// changeMembers returns the membership that a change makes of another. It
// fails where there is none, such as without any voter.
func changeMembers(from *pb.ConfState, change *pb.ConfChangeV2) (*pb.ConfState, error) {
	c := confchange.Changer{Tracker: tracker.MakeProgressTracker(1, 0)}
	config, progress, err := confchange.Restore(c, from)
	if err != nil {
		return nil, err
	}
	c.Tracker.Config, c.Tracker.Progress = config, progress
	if change.LeaveJoint() {
		config, _, err = c.LeaveJoint()
	} else if autoLeave, joint := change.EnterJoint(); joint {
		config, _, err = c.EnterJoint(autoLeave, change.Changes...)
	} else {
		config, _, err = c.Simple(change.Changes...)
	}
	if err != nil {
		return nil, err
	}
	c.Tracker.Config = config
	return c.Tracker.ConfState(), nil
}

func encodeMembers(members *pb.ConfState) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(members)
	must(err == nil, "a membership can be encoded")
	return b
}

func decodeMembers(b []byte) (*pb.ConfState, error) {
	members := &pb.ConfState{}
	if err := proto.Unmarshal(b, members); err != nil {
		return nil, fmt.Errorf("replica: the stored membership: %w", err)
	}
	return members, nil
}

func must(ok bool, promise string) {
	if !ok {
		panic("replica: broken promise: " + promise)
	}
}
