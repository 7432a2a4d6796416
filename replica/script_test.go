package replica

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"

	"github.com/cockroachdb/datadriven"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

// TestScripts runs the stories in testdata. Each line of a story is one thing
// that happens to a cluster; what its members say is the answer.
//
//	cluster 3 [keep=10] [lazy]   members 1 to 3, started
//	tick 1 [n]                   time passes for a member
//	decide|append|apply 1        one loop of a member runs once
//	propose 1 a b                commands; what becomes of them is told by "settle"
//	barrier 1 / leave            a read; everybody gives up waiting
//	configure 1 v4 [word]        a change of the membership, with a command
//	transfer 1 2
//	cut 1 2 / mend               messages from 1 to 2 are lost
//	lose                         all messages under way are lost
//	wire                         lists them
//	settle                       all happens that needs no time
//	crash 1 / start 1 / add 4
//	break 1                      it fails when it is to restore a snapshot
//	status / lists
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		cryptotest.SetGlobalRandom(t, 1)
		s := &story{t: t}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var out strings.Builder
			for line := range strings.Lines(strings.TrimSpace(d.Cmd + argsOf(d) + "\n" + d.Input)) {
				s.line(&out, strings.Fields(line))
			}
			if out.Len() == 0 {
				return "ok\n"
			}
			return out.String()
		})
	})
}

func argsOf(d *datadriven.TestData) string {
	var b strings.Builder
	for _, a := range d.CmdArgs {
		b.WriteString(" " + a.String())
	}
	return b.String()
}

type story struct {
	*cluster
	t     *testing.T
	waits []named
}

type named struct {
	name string
	m    *member
	r    *Replica[int]
	wait *Wait[int]
}

func (s *story) line(out *strings.Builder, words []string) {
	if len(words) == 0 {
		return
	}
	number := func(i int) uint64 {
		var n uint64
		if _, err := fmt.Sscan(words[i], &n); err != nil {
			s.t.Fatalf("%v: %v", words, err)
		}
		return n
	}
	var m *member
	if s.cluster != nil && len(words) > 1 {
		var id uint64
		if _, err := fmt.Sscan(words[1], &id); err == nil {
			m = s.members[id]
		}
	}
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(out, err)
		}
	}
	switch words[0] {
	case "cluster":
		s.cluster = newCluster(nil, int(number(1)))
		for _, w := range words[2:] {
			fmt.Sscanf(w, "keep=%d", &s.keep)
		}
		for _, id := range s.ids {
			s.members[id].machine.lazy = slices.Contains(words, "lazy")
			fail(s.members[id].start())
		}
	case "tick":
		n := uint64(1)
		if len(words) > 2 {
			n = number(2)
		}
		for range n {
			m.step.Tick()
		}
	case "decide":
		m.step.Decide()
	case "append":
		_, err := m.step.Append()
		fail(err)
	case "apply":
		_, err := m.step.Apply()
		fail(err)
	case "campaign":
		m.r.core.Campaign()
	case "propose":
		for _, c := range words[2:] {
			s.waits = append(s.waits, named{fmt.Sprintf("%v propose %s", m, c), m, m.r, m.step.Propose([]byte(c))})
		}
	case "barrier":
		s.waits = append(s.waits, named{fmt.Sprintf("%v barrier", m), m, m.r, m.step.Barrier()})
	case "transfer":
		s.waits = append(s.waits, named{fmt.Sprintf("%v transfer to %s", m, words[2]), m, m.r, m.step.Transfer(number(2))})
	case "configure":
		command := strings.Join(words[2:], "-")
		if len(words) > 3 && words[len(words)-1] == refuse {
			command = refuse
			words = words[:len(words)-1]
		}
		singles, err := pb.ConfChangesFromString(strings.Join(words[2:], " "))
		if err != nil {
			s.t.Fatal(err)
		}
		change := &pb.ConfChangeV2{Changes: singles, Context: []byte(command)}
		s.waits = append(s.waits, named{fmt.Sprintf("%v configure %s", m, command), m, m.r, m.step.Configure(change)})
	case "leave":
		for _, w := range s.waits {
			w.wait.Leave()
		}
		s.waits = nil
	case "cut":
		s.cut[[2]uint64{number(1), number(2)}] = true
	case "mend":
		clear(s.cut)
	case "lose":
		for len(s.wire) > 0 {
			s.deliver(0, true)
		}
	case "wire":
		for _, msg := range s.wire {
			fmt.Fprintf(out, "%s\n", raft.DescribeMessage(msg, describe))
		}
	case "deliver":
		for n := len(s.wire); n > 0; n-- {
			s.deliver(0, false)
		}
	case "settle":
		fail(s.settle())
	case "crash":
		m.crash(0)
	case "start":
		fail(m.start())
	case "break":
		m.machine.broken = true
	case "add":
		m = s.add(number(1), listState{})
		fail(m.start())
	case "status":
		for _, id := range s.ids {
			m := s.members[id]
			if m.down {
				fmt.Fprintf(out, "%v: down\n", m)
				continue
			}
			st := m.r.Status()
			fmt.Fprintf(out, "%v: %v of term %d, leader %d, commit %d, applied %d, voters %v", m, st.Role, st.Term, st.Leader, st.Commit, st.Applied, st.Voters)
			if len(st.Outgoing) > 0 {
				fmt.Fprintf(out, " from %v", st.Outgoing)
			}
			if len(st.Learners) > 0 {
				fmt.Fprintf(out, ", learners %v", st.Learners)
			}
			out.WriteString("\n")
		}
	case "lists":
		for _, id := range s.ids {
			fmt.Fprintf(out, "%v: %s\n", s.members[id], strings.Join(s.members[id].machine.now.items, " "))
		}
	default:
		s.t.Fatalf("what is %q?", words[0])
	}
	s.answers(out)
}

// answers tells of the waits that have ended.
func (s *story) answers(out *strings.Builder) {
	s.waits = slices.DeleteFunc(s.waits, func(w named) bool {
		if w.m.r != w.r {
			return true
		}
		result, err, there := w.wait.Outcome()
		switch {
		case !there:
			return false
		case err != nil:
			fmt.Fprintf(out, "%s: %v\n", w.name, err)
		default:
			fmt.Fprintf(out, "%s: %d\n", w.name, result)
		}
		return true
	})
}

func describe(data []byte) string {
	name, commands, err := decodeFrame(data, nil)
	if err != nil {
		return fmt.Sprintf("%q", data)
	}
	return fmt.Sprintf("%d.%d.%d %s", name.Origin, name.Incarnation, name.Number, commands)
}
