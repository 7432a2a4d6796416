package state_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/state"
)

// TestScripts plays testdata/scripts on a machine in memory and on one on disk.
//
// A line of input is a command, or several joined by ; to be one entry. What
// begins with a slash is done to the machine rather than applied by it.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		for _, disk := range []bool{false, true} {
			s := &script{t: t, bed: newBed(t, disk)}
			datadriven.RunTest(t, path, s.run)
			s.bed.Close()
		}
	})
}

type script struct {
	t    *testing.T
	bed  *bed
	kept *state.View
}

func (s *script) run(t *testing.T, d *datadriven.TestData) string {
	s.t = t
	var out strings.Builder
	switch d.Cmd {
	case "do":
		for line := range strings.Lines(d.Input) {
			s.line(&out, strings.TrimSpace(line))
		}
	case "txn":
		q, rest := parseTxn(t, strings.Split(d.Input, "\n"), "")
		if len(rest) > 0 {
			d.Fatalf(t, "what is %q?", rest[0])
		}
		if d.HasArg("read") {
			r, err := s.bed.View().Txn(q)
			if err != nil {
				return fmt.Sprintln("refused:", err)
			}
			printTxn(&out, "", r)
			return out.String()
		}
		s.apply(&out, state.Command{Kind: state.Txn, Request: q})
	default:
		d.Fatalf(t, "unknown command")
	}
	return out.String()
}

func (s *script) line(out *strings.Builder, line string) {
	t := s.t
	if !strings.HasPrefix(line, "/") {
		var commands []state.Command
		for one := range strings.SplitSeq(line, ";") {
			words := strings.Fields(one)
			c := parseCommand(t, words)
			if _, named := options(words); named["term"] != "" {
				c.Term = state.Term(number(t, named["term"]))
			}
			commands = append(commands, c)
		}
		s.apply(out, commands...)
		return
	}
	word := strings.Fields(line)
	args := word[1:]
	switch word[0] {
	case "/get", "/kept":
		v := s.bed.View()
		if word[0] == "/kept" {
			v = s.kept
		}
		q := parseRange(t, args)
		if err := state.CheckRange(q); err != nil {
			fmt.Fprintln(out, "refused:", err)
			return
		}
		a, err := v.Range(q)
		if err != nil {
			fmt.Fprintln(out, "refused:", err)
			return
		}
		printRange(out, "", state.Decode(a))
	case "/keep":
		s.kept = s.bed.View()
	case "/history":
		v := s.bed.View()
		for e, err := range v.History(state.Span{Key: []byte{0}, End: []byte{0}}, state.Revision(number(t, args[0])), v.Revision) {
			if err != nil {
				fmt.Fprintln(out, "refused:", err)
				return
			}
			previous, err := v.Previous(e)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(out, event(e))
			if previous != nil {
				fmt.Fprint(out, " was ", pair(state.Decode(state.Answer{Pairs: [][]byte{previous}}).Kvs[0]))
			}
			fmt.Fprintln(out)
		}
	case "/hash":
		r, err := s.bed.View().HashKV(number(t, args[0]))
		if err != nil {
			fmt.Fprintln(out, "refused:", err)
			return
		}
		fmt.Fprintf(out, "hash %08x at %d compacted %d\n", r.Hash, r.HashRevision, r.CompactRevision)
	case "/sweep":
		for more := true; more; {
			var err error
			if more, err = s.bed.Sweep(3); err != nil {
				t.Fatal(err)
			}
		}
		total, _ := s.bed.Size()
		fmt.Fprintf(out, "swept to %d, size %d\n", s.bed.Swept(), total)
	case "/size":
		total, _ := s.bed.Size()
		fmt.Fprintln(out, "size", total)
	case "/flush":
		if err := s.bed.Flush(); err != nil {
			t.Fatal(err)
		}
	case "/crash":
		s.bed.crash(t, 0)
		applied, _ := s.bed.Applied()
		s.bed.applied = applied
		fmt.Fprintf(out, "index %d revision %d\n", applied, s.bed.View().Revision)
	case "/restore":
		restoreElsewhere(t, s.bed)
	case "/members":
		for _, m := range s.bed.View().Members() {
			fmt.Fprintf(out, "%d %q %v %v", m.ID, m.Name, m.PeerURLs, m.ClientURLs)
			if m.Learner {
				fmt.Fprint(out, " learner")
			}
			fmt.Fprintln(out)
		}
	case "/leases":
		v := s.bed.View()
		for l := range v.Leases() {
			fmt.Fprintf(out, "%d granted %d", l.ID, l.Granted)
			if l.Remaining != 0 {
				fmt.Fprintf(out, " remaining %d", l.Remaining)
			}
			fmt.Fprintf(out, " keys %q\n", slices.Collect(v.LeaseKeys(l.ID)))
		}
	case "/node":
		plain, named := options(args)
		_, recursive := named["recursive"]
		n, at, err := s.bed.View().Node(plain[0], recursive)
		if refused := (*state.HierarchyError)(nil); errors.As(err, &refused) {
			fmt.Fprintln(out, "refused:", nodeError(refused))
			return
		}
		if err != nil || at != s.bed.View().Revision {
			t.Fatal(at, err)
		}
		printNode(out, "", n)
	case "/changes":
		changes, err := s.bed.View().Changes(state.Revision(number(t, args[0])))
		if refused := (*state.HierarchyError)(nil); errors.As(err, &refused) {
			fmt.Fprintln(out, "refused:", nodeError(refused))
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range changes {
			fmt.Fprint(out, nodeChange(c))
		}
	case "/deadlines":
		for d := range s.bed.View().Deadlines() {
			fmt.Fprintln(out, d.At, d.Key)
		}
	case "/alarms":
		fmt.Fprintln(out, alarms(s.bed.View().Alarms(pb.AlarmType_NONE)))
	case "/where":
		applied, _ := s.bed.Applied()
		v := s.bed.View()
		fmt.Fprintf(out, "index %d term %d revision %d compacted %d configuration %q\n", applied, v.Term, v.Revision, v.Compacted, v.Configuration)
	default:
		t.Fatalf("unknown %q", line)
	}
}

func (s *script) apply(out *strings.Builder, commands ...state.Command) {
	for _, o := range s.bed.apply(s.t, commands...) {
		if o.NodeError != nil && o.Refusal != nil {
			fmt.Fprintln(out, "refused:", nodeError(o.NodeError))
			continue
		}
		if o.Refusal != nil {
			fmt.Fprintf(out, "refused: %v\n", o.Refusal)
			if o.Response != nil || o.Events != nil {
				s.t.Fatal("a refusal with an answer")
			}
			continue
		}
		fmt.Fprintf(out, "rev=%d", o.Revision)
		for _, e := range o.Events {
			fmt.Fprint(out, " ", event(e))
		}
		for _, l := range o.Leases {
			fmt.Fprint(out, " ", leaseChange(l))
		}
		fmt.Fprintln(out)
		if o.Change != nil {
			fmt.Fprint(out, "  ", nodeChange(*o.Change))
		}
		switch r := o.Response.(type) {
		case *pb.PutResponse:
			if r.PrevKv != nil {
				fmt.Fprintln(out, "  prev", pair(r.PrevKv))
			}
		case *pb.DeleteRangeResponse:
			fmt.Fprintln(out, "  deleted", r.Deleted)
			for _, kv := range r.PrevKvs {
				fmt.Fprintln(out, "  prev", pair(kv))
			}
		case *pb.TxnResponse:
			printTxn(out, "  ", r)
		case *pb.AlarmResponse:
			fmt.Fprintln(out, "  alarms", alarms(r.Alarms))
		}
	}
}

func nodeError(e *state.HierarchyError) string {
	return fmt.Sprintf("%d %q at %d", e.Code, e.Cause, e.Index)
}

func nodeChange(c state.NodeChange) string {
	var out strings.Builder
	fmt.Fprint(&out, c.Revision, " ", c.Action)
	if c.Refresh {
		fmt.Fprint(&out, " quietly")
	}
	printNode(&out, " ", *c.Node)
	if c.Prev != nil {
		printNode(&out, "    was ", *c.Prev)
	}
	return out.String()
}

func printNode(out *strings.Builder, indent string, n state.Node) {
	fmt.Fprint(out, indent, n.Path)
	if n.Dir {
		fmt.Fprint(out, " dir")
	}
	if !n.Dir || n.Value != "" {
		fmt.Fprintf(out, "=%q", n.Value)
	}
	fmt.Fprintf(out, " created %d modified %d", n.Created, n.Modified)
	if n.Deadline != 0 {
		fmt.Fprint(out, " until ", n.Deadline)
	}
	fmt.Fprintln(out)
	for _, sub := range n.Nodes {
		printNode(out, strings.Repeat(" ", len(indent)+2), sub)
	}
}

func leaseChange(l state.LeaseChange) string {
	switch {
	case l.New:
		return fmt.Sprintf("lease %d granted %d", l.ID, l.Granted)
	case l.Gone:
		return fmt.Sprintf("lease %d gone", l.ID)
	}
	return fmt.Sprintf("lease %d remaining %d", l.ID, l.Remaining)
}

// alarms is a text of its own: that of messages differs from build to build.
func alarms(all []*pb.AlarmMember) (out []string) {
	for _, a := range all {
		out = append(out, fmt.Sprint(a.Alarm, " of ", a.MemberID))
	}
	return out
}

func event(e state.Event) string {
	at := fmt.Sprint(e.Revision)
	if e.Sub > 0 {
		at += fmt.Sprint(".", e.Sub)
	}
	kv := state.Decode(state.Answer{Pairs: [][]byte{e.Pair}}).Kvs[0]
	if e.Deleted {
		return fmt.Sprintf("%s DELETE %s", at, kv.Key)
	}
	return fmt.Sprintf("%s PUT %s", at, pair(kv))
}

func pair(kv *mvccpb.KeyValue) string {
	s := fmt.Sprintf("%s=%q create %d mod %d version %d", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version)
	if kv.Lease != 0 {
		s += fmt.Sprint(" lease ", kv.Lease)
	}
	return s
}

func printRange(out *strings.Builder, indent string, r *pb.RangeResponse) {
	for _, kv := range r.Kvs {
		fmt.Fprintf(out, "%s%s\n", indent, pair(kv))
	}
	fmt.Fprintf(out, "%scount %d", indent, r.Count)
	if r.More {
		fmt.Fprint(out, " more")
	}
	fmt.Fprintln(out)
}

func printTxn(out *strings.Builder, indent string, r *pb.TxnResponse) {
	fmt.Fprintf(out, "%ssucceeded %v rev %d\n", indent, r.Succeeded, r.Header.Revision)
	for _, op := range r.Responses {
		switch op := op.Response.(type) {
		case *pb.ResponseOp_ResponseRange:
			fmt.Fprintf(out, "%s  range rev %d\n", indent, op.ResponseRange.Header.Revision)
			printRange(out, indent+"    ", op.ResponseRange)
		case *pb.ResponseOp_ResponsePut:
			fmt.Fprintf(out, "%s  put rev %d\n", indent, op.ResponsePut.Header.Revision)
		case *pb.ResponseOp_ResponseDeleteRange:
			fmt.Fprintf(out, "%s  deleted %d rev %d\n", indent, op.ResponseDeleteRange.Deleted, op.ResponseDeleteRange.Header.Revision)
		case *pb.ResponseOp_ResponseTxn:
			printTxn(out, indent+"  ", op.ResponseTxn)
		}
	}
}

func number(t *testing.T, s string) int64 {
	n, err := strconv.ParseInt(s, 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// key reads a key; \0 stands for the byte zero and - for nothing.
func key(s string) []byte {
	if s == "-" {
		return nil
	}
	return []byte(strings.ReplaceAll(s, `\0`, "\x00"))
}

// options splits words into those with = and those without.
func options(words []string) (plain []string, named map[string]string) {
	named = map[string]string{}
	for _, w := range words {
		if name, value, ok := strings.Cut(w, ":"); ok {
			named[name] = value
		} else {
			plain = append(plain, w)
		}
	}
	return plain, named
}

// urls are the words that say something, as addresses.
func urls(words []string) (all []string) {
	for _, w := range words {
		if w != "-" {
			all = append(all, "http://"+w)
		}
	}
	return all
}

func parseCommand(t *testing.T, words []string) state.Command {
	plain, named := options(words[1:])
	_, prev := named["prev"]
	int := func(name string) int64 {
		if named[name] == "" {
			return 0
		}
		return number(t, named[name])
	}
	plain = append(plain, "-", "-")
	switch words[0] {
	case "put":
		_, ignoreValue := named["ignore-value"]
		_, ignoreLease := named["ignore-lease"]
		return state.Command{Kind: state.Put, Request: &pb.PutRequest{
			Key: key(plain[0]), Value: key(plain[1]), Lease: int("lease"),
			PrevKv: prev, IgnoreValue: ignoreValue, IgnoreLease: ignoreLease,
		}}
	case "del":
		return state.Command{Kind: state.DeleteRange, Request: &pb.DeleteRangeRequest{
			Key: key(plain[0]), RangeEnd: key(plain[1]), PrevKv: prev,
		}}
	case "compact":
		return state.Command{Kind: state.Compact, Request: &pb.CompactionRequest{Revision: number(t, plain[0])}}
	case "alarm":
		return state.Command{Kind: state.Alarm, Request: &pb.AlarmRequest{
			Action: pb.AlarmRequest_AlarmAction(pb.AlarmRequest_AlarmAction_value[plain[0]]),
			Alarm:  pb.AlarmType(pb.AlarmType_value[plain[1]]), MemberID: uint64(int("member")),
		}}
	case "member-add": // addresses follow the id
		most, learner := named["learner"]
		m := &pb.Member{ID: uint64(number(t, plain[0])), PeerURLs: urls(plain[1:]), IsLearner: learner}
		if most != "" {
			limitLearners(m, number(t, most))
		}
		return state.Command{Kind: state.MemberAdd, Request: m}
	case "member-remove":
		return state.Command{Kind: state.MemberRemove, Request: &pb.MemberRemoveRequest{ID: uint64(number(t, plain[0]))}}
	case "member-update":
		return state.Command{Kind: state.MemberUpdate, Request: &pb.MemberUpdateRequest{
			ID: uint64(number(t, plain[0])), PeerURLs: urls(plain[1:]),
		}}
	case "member-promote":
		return state.Command{Kind: state.MemberPromote, Request: &pb.MemberPromoteRequest{ID: uint64(number(t, plain[0]))}}
	case "publish":
		return state.Command{Kind: state.Publish, Request: &pb.Member{
			ID: uint64(number(t, plain[0])), Name: plain[1], ClientURLs: []string{named["url"]},
		}}
	case "grant": // an id and seconds
		return state.Command{Kind: state.LeaseGrant, Request: &pb.LeaseGrantRequest{ID: number(t, plain[0]), TTL: number(t, plain[1])}}
	case "revoke":
		return state.Command{Kind: state.LeaseRevoke, Request: &pb.LeaseRevokeRequest{ID: number(t, plain[0])}}
	case "expire":
		q := new(pb.LeaseLeasesResponse)
		for _, id := range plain[:len(plain)-2] {
			q.Leases = append(q.Leases, &pb.LeaseStatus{ID: number(t, id)})
		}
		return state.Command{Kind: state.LeaseExpire, Request: q}
	case "checkpoint":
		return state.Command{Kind: state.LeaseCheckpoint, Request: &pb.LeaseCheckpointRequest{
			Checkpoints: []*pb.LeaseCheckpoint{{ID: number(t, plain[0]), Remaining_TTL: number(t, plain[1])}},
		}}
	case "node": // what to do, and the path
		ops := map[string]state.HierarchyOp{
			"set": state.NodeSet, "create": state.NodeCreate, "update": state.NodeUpdate, "cas": state.NodeCompareAndSwap,
			"in-order": state.NodeCreateInOrder, "delete": state.NodeDelete, "cad": state.NodeCompareAndDelete, "expire": state.NodeExpire,
		}
		has := func(name string) bool { _, ok := named[name]; return ok }
		q := state.HierarchyRequest{
			Op: ops[plain[0]], Path: plain[1], Value: named["value"], Deadline: int("deadline"),
			Dir: has("dir"), Recursive: has("recursive"), Refresh: has("refresh"),
			PrevValue: named["prev-value"], PrevIndex: uint64(int("prev-index")),
		}
		if q.Op == state.NodeExpire {
			q.Due = []state.Deadline{{Key: plain[1], At: q.Deadline}}
		}
		return state.Command{Kind: state.Hierarchy, Encoded: q.Append(nil)}
	case "raw":
		n, err := strconv.ParseUint(plain[0], 0, 8)
		if err != nil {
			t.Fatal(err)
		}
		return state.Command{Kind: state.Kind(n), Encoded: []byte(plain[1])}
	}
	t.Fatalf("unknown command %q", words)
	return state.Command{}
}

func parseRange(t *testing.T, words []string) *pb.RangeRequest {
	plain, named := options(words)
	plain = append(plain, "-", "-")
	q := &pb.RangeRequest{Key: key(plain[0]), RangeEnd: key(plain[1])}
	for name, value := range named {
		switch name {
		case "limit":
			q.Limit = number(t, value)
		case "rev":
			q.Revision = number(t, value)
		case "keys":
			q.KeysOnly = true
		case "count":
			q.CountOnly = true
		case "order":
			q.SortOrder = pb.RangeRequest_SortOrder(enum(t, pb.RangeRequest_SortOrder_value, value))
		case "by":
			q.SortTarget = pb.RangeRequest_SortTarget(enum(t, pb.RangeRequest_SortTarget_value, value))
		case "min-mod":
			q.MinModRevision = number(t, value)
		case "max-mod":
			q.MaxModRevision = number(t, value)
		case "min-create":
			q.MinCreateRevision = number(t, value)
		case "max-create":
			q.MaxCreateRevision = number(t, value)
		default:
			t.Fatalf("unknown option %q", name)
		}
	}
	return q
}

func enum(t *testing.T, values map[string]int32, s string) int32 {
	if n, err := strconv.Atoi(s); err == nil {
		return int32(n)
	}
	n, ok := values[s]
	if !ok {
		t.Fatalf("unknown %q, known are %v", s, slices.Sorted(maps.Keys(values)))
	}
	return n
}

// parseTxn reads the lines of a transaction, each with the same indent, up to
// one with less. A nested one follows the line "then txn" with more of it.
func parseTxn(t *testing.T, lines []string, indent string) (*pb.TxnRequest, []string) {
	q := new(pb.TxnRequest)
	for len(lines) > 0 {
		line, ok := strings.CutPrefix(lines[0], indent)
		if !ok || line == "" || line[0] == ' ' {
			break
		}
		lines = lines[1:]
		words := strings.Fields(line)
		if words[0] == "if" {
			q.Compare = append(q.Compare, parseCompare(t, words[1:]))
			continue
		}
		op := new(pb.RequestOp)
		switch words[1] {
		case "txn":
			var nested *pb.TxnRequest
			nested, lines = parseTxn(t, lines, indent+"  ")
			op.Request = &pb.RequestOp_RequestTxn{RequestTxn: nested}
		case "get":
			op.Request = &pb.RequestOp_RequestRange{RequestRange: parseRange(t, words[2:])}
		case "put":
			op.Request = &pb.RequestOp_RequestPut{RequestPut: parseCommand(t, words[1:]).Request.(*pb.PutRequest)}
		case "del":
			op.Request = &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: parseCommand(t, words[1:]).Request.(*pb.DeleteRangeRequest)}
		case "nothing":
		default:
			t.Fatalf("unknown %q", line)
		}
		switch words[0] {
		case "then":
			q.Success = append(q.Success, op)
		case "else":
			q.Failure = append(q.Failure, op)
		default:
			t.Fatalf("unknown %q", line)
		}
	}
	return q, lines
}

func parseCompare(t *testing.T, words []string) *pb.Compare {
	c := &pb.Compare{Key: key(words[1])}
	if len(words) == 5 {
		c.RangeEnd = key(words[2])
	}
	operator, operand := words[len(words)-2], words[len(words)-1]
	c.Result = pb.Compare_CompareResult(map[string]int32{"=": 0, ">": 1, "<": 2, "!=": 3}[operator])
	switch words[0] {
	case "value":
		c.Target, c.TargetUnion = pb.Compare_VALUE, &pb.Compare_Value{Value: key(operand)}
	case "version":
		c.Target, c.TargetUnion = pb.Compare_VERSION, &pb.Compare_Version{Version: number(t, operand)}
	case "create":
		c.Target, c.TargetUnion = pb.Compare_CREATE, &pb.Compare_CreateRevision{CreateRevision: number(t, operand)}
	case "mod":
		c.Target, c.TargetUnion = pb.Compare_MOD, &pb.Compare_ModRevision{ModRevision: number(t, operand)}
	case "lease":
		c.Target, c.TargetUnion = pb.Compare_LEASE, &pb.Compare_Lease{Lease: number(t, operand)}
	default:
		t.Fatalf("unknown %q", words)
	}
	return c
}

func limitLearners(m *pb.Member, most int64) { state.LimitLearners(m, int(most)) }

// FuzzRequests has the machine take whatever comes from a frame.
func FuzzRequests(f *testing.F) {
	kinds := []state.Kind{state.Put, state.DeleteRange, state.Txn, state.Hierarchy}
	for i, q := range []proto.Message{
		&pb.PutRequest{Key: []byte("k"), Value: []byte("v"), PrevKv: true},
		&pb.DeleteRangeRequest{Key: []byte("k"), RangeEnd: []byte{0}},
		&pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k")}}}}},
	} {
		b, err := proto.Marshal(q)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), b)
	}
	f.Add(uint8(3), (&state.HierarchyRequest{Op: state.NodeSet, Path: "/a/b", Value: "v"}).Append(nil))
	b := newBed(f, false)
	f.Fuzz(func(t *testing.T, kind uint8, encoded []byte) {
		b.apply(t, state.Command{Kind: kinds[int(kind)%len(kinds)], Encoded: append([]byte{}, encoded...)})
	})
}
