package replica

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

// Role is what a member is in its term.
type Role uint8

const (
	Follower Role = iota
	Candidate
	Leader
)

func (r Role) String() string { return [...]string{"follower", "candidate", "leader"}[r] }

// Status is what a member knows of the cluster. It does not change once it is
// handed out.
type Status struct {
	ID         uint64
	Role       Role
	Leader     uint64 // 0: none is known
	Term       uint64
	Commit     uint64
	Applied    uint64
	Transferee uint64 // leadership is being handed to this member

	Voters   []uint64 // of a joint membership, the incoming ones
	Outgoing []uint64 // of a joint membership, the outgoing voters
	Learners []uint64

	Progress []Progress // of the others, by id; only while leading

	SlowReads uint64 // attempts to have a read answered that had to be repeated
}

// Progress is what a leader knows of a follower. It is renewed with each tick.
type Progress struct {
	ID      uint64
	Match   uint64 // its log agrees up to here
	Next    uint64
	State   string // of raft's flow control: StateProbe, StateReplicate, StateSnapshot
	Active  bool   // has been heard from within an election timeout
	Learner bool
}

// Incarnation numbers the runs of this member, this one included.
func (r *Replica[R]) Incarnation() uint64 { return r.log.Incarnation() }

// Status returns what the core knows as of the last Work. What takes longer to
// find out, Progress and Transferee, is left out unless asked for.
func (c *Core) Status(all bool) Status {
	s := Status{
		ID:        c.o.ID,
		Role:      Follower,
		Leader:    c.lead,
		Term:      c.term,
		Commit:    c.commit,
		Applied:   c.applied,
		Voters:    c.members.GetVoters(),
		Outgoing:  c.members.GetVotersOutgoing(),
		Learners:  c.members.GetLearners(),
		SlowReads: c.reads.slow,
	}
	switch c.role {
	case raft.StateLeader:
		s.Role = Leader
	case raft.StateCandidate, raft.StatePreCandidate:
		s.Role = Candidate
	}
	if all && s.Role == Leader {
		s.Transferee = c.Transferee()
		c.node.WithProgress(func(id uint64, kind raft.ProgressType, p tracker.Progress) {
			if id != c.o.ID {
				s.Progress = append(s.Progress, Progress{
					ID: id, Match: p.Match, Next: p.Next, State: p.State.String(),
					Active: p.RecentActive, Learner: kind == raft.ProgressTypeLearner,
				})
			}
		})
		slices.SortFunc(s.Progress, func(a, b Progress) int {
			if a.ID < b.ID {
				return -1
			}
			return 1
		})
	}
	return s
}

// raftLogger gives raft's own messages to a slog.Logger. What raft finds worth
// telling of its elections is detail here: that the leader changed is told once.
type raftLogger struct{ l *slog.Logger }

func (r raftLogger) log(level slog.Level, text func() string) {
	if r.l != nil && r.l.Enabled(context.Background(), level) {
		r.l.Log(context.Background(), level, text())
	}
}

func (r raftLogger) say(level slog.Level, v []any) {
	r.log(level, func() string { return fmt.Sprint(v...) })
}

func (r raftLogger) sayf(level slog.Level, format string, v []any) {
	r.log(level, func() string { return fmt.Sprintf(format, v...) })
}

func (r raftLogger) Debug(v ...any)                   { r.say(slog.LevelDebug, v) }
func (r raftLogger) Debugf(format string, v ...any)   { r.sayf(slog.LevelDebug, format, v) }
func (r raftLogger) Info(v ...any)                    { r.say(slog.LevelDebug, v) }
func (r raftLogger) Infof(format string, v ...any)    { r.sayf(slog.LevelDebug, format, v) }
func (r raftLogger) Warning(v ...any)                 { r.say(slog.LevelWarn, v) }
func (r raftLogger) Warningf(format string, v ...any) { r.sayf(slog.LevelWarn, format, v) }
func (r raftLogger) Error(v ...any)                   { r.say(slog.LevelError, v) }
func (r raftLogger) Errorf(format string, v ...any)   { r.sayf(slog.LevelError, format, v) }

// Raft ends itself where it finds that a promise was broken.

func (r raftLogger) Fatal(v ...any)                 { panic("raft: " + fmt.Sprint(v...)) }
func (r raftLogger) Fatalf(format string, v ...any) { panic("raft: " + fmt.Sprintf(format, v...)) }
func (r raftLogger) Panic(v ...any)                 { panic("raft: " + fmt.Sprint(v...)) }
func (r raftLogger) Panicf(format string, v ...any) { panic("raft: " + fmt.Sprintf(format, v...)) }
