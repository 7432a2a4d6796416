package linear

import (
	"strings"
	"testing"
	"time"
)

// at returns the operation with its times, in milliseconds.
func at(call, ret int, o Operation) Operation {
	o.Call, o.Return = time.Duration(call)*time.Millisecond, time.Duration(ret)*time.Millisecond
	return o
}

func put(value string, revision int64) Operation {
	return Operation{Kind: Put, Key: "k", Value: value, Revision: revision}
}

func get(seen string, mod, revision int64) Operation {
	return Operation{Kind: Get, Key: "k", Seen: seen, SeenAt: mod, Revision: revision}
}

func unknown(o Operation) Operation {
	o.Unknown, o.Revision = true, 0
	return o
}

func TestJudges(t *testing.T) {
	for _, c := range []struct {
		name         string
		history      []Operation
		check, order string // words of the verdict; none: fine
	}{
		{name: "nothing"},
		{name: "a write and a read", history: []Operation{at(0, 1, put("a", 2)), at(2, 3, get("a", 2, 2))}},
		{name: "a lost write", history: []Operation{at(0, 1, put("a", 2)), at(2, 3, get("", 0, 2))}, check: "not linearizable"},
		{name: "a lost write and its revision", history: []Operation{at(0, 1, put("a", 2)), at(2, 3, get("", 0, 1))}, check: "not linearizable", order: "went back"},
		{name: "an older value", history: []Operation{at(0, 1, put("a", 2)), at(2, 3, put("b", 3)), at(4, 5, get("a", 2, 3))}, check: "not linearizable"},
		{name: "another revision of the value", history: []Operation{at(0, 1, put("a", 2)), at(2, 3, get("a", 3, 3))}, check: "not linearizable"},
		{name: "a read beside a write, old and new", history: []Operation{at(0, 9, put("a", 2)), at(1, 2, get("", 0, 1)), at(3, 4, get("a", 2, 2))}},
		{name: "a read beside a write, new and old", history: []Operation{at(0, 9, put("a", 2)), at(1, 2, get("a", 2, 2)), at(3, 4, get("", 0, 1))}, check: "not linearizable", order: "went back"},
		{name: "unknown and never", history: []Operation{at(0, 0, unknown(put("a", 0))), at(2, 3, get("", 0, 1))}},
		{name: "unknown and late", history: []Operation{at(0, 0, unknown(put("a", 0))), at(2, 3, get("", 0, 1)), at(4, 5, get("a", 2, 2))}},
		{name: "unknown and undone", history: []Operation{at(0, 0, unknown(put("a", 0))), at(2, 3, get("a", 2, 2)), at(4, 5, get("", 0, 2))}, check: "not linearizable"},
		{name: "unknown deletion", history: []Operation{at(0, 1, put("a", 2)), at(2, 2, unknown(Operation{Kind: Delete, Key: "k"})), at(4, 5, get("", 0, 3))}},
		{name: "unknown and deleted unseen", history: []Operation{
			at(0, 0, unknown(put("a", 0))),
			at(2, 3, Operation{Kind: Delete, Key: "k", Done: true, Revision: 3}), at(4, 5, get("", 0, 3)),
		}},
		{name: "deleted and never there", history: []Operation{at(2, 3, Operation{Kind: Delete, Key: "k", Done: true, Revision: 3})}, check: "not linearizable"},
		{name: "one swap of two", history: []Operation{
			at(0, 9, Operation{Kind: Swap, Key: "k", Value: "a", Done: true, Revision: 2}),
			at(0, 9, Operation{Kind: Swap, Key: "k", Value: "b", Done: false, Revision: 2}),
		}},
		{name: "two swaps of one value", history: []Operation{
			at(0, 9, Operation{Kind: Swap, Key: "k", Value: "a", Done: true, Revision: 2}),
			at(0, 9, Operation{Kind: Swap, Key: "k", Value: "b", Done: true, Revision: 3}),
		}, check: "not linearizable"},
		{name: "one revision for two", history: []Operation{at(0, 9, put("a", 2)), at(0, 9, put("b", 2))}, order: "two writes"},
		{name: "a write that saw nothing new", history: []Operation{at(0, 1, get("", 0, 5)), at(2, 3, put("b", 5))}, order: "went back"},
	} {
		for judge, verdict := range map[string]error{c.check: Check(c.history, time.Minute), "order:" + c.order: Order(c.history)} {
			want := strings.TrimPrefix(judge, "order:")
			switch {
			case want == "" && verdict != nil:
				t.Errorf("%s: %v", c.name, verdict)
			case want != "" && (verdict == nil || !strings.Contains(verdict.Error(), want)):
				t.Errorf("%s: want %q, got %v", c.name, want, verdict)
			}
		}
	}
}
