// Package linear judges what clients saw of a store: whether all of it can
// have happened one after the other, each operation between its call and its
// return. It knows nothing of servers, so that it can judge one member, a
// cluster, or anything else that speaks of keys and revisions.
//
// Two judges look at the same history. Check asks porcupine, for each key a
// register with a value and a revision. Order asks only that revisions never
// go back, which it can do for any length of history.
package linear

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// Kind is what an operation does to its key.
type Kind int

const (
	Get Kind = iota
	Put
	Delete
	Swap // puts Value if the key holds Old
)

// Operation is what one client did and saw.
type Operation struct {
	Client       int
	Kind         Kind
	Key          string
	Value        string // put, or to be put; values are unique in a history
	Old          string // of Swap; "" stands for no key
	Call, Return time.Duration

	// Unknown says that nothing came back: the operation may have happened,
	// may happen later, or never. Return and what follows then mean nothing.
	Unknown bool

	Seen     string // by Get, "" for no key
	SeenAt   int64  // mod revision of what Get saw
	Done     bool   // Swap has swapped, Delete has deleted
	Revision int64  // of the answer's header: a write's own revision
}

// writes tells whether the operation is known to have taken a revision.
func (o Operation) writes() bool {
	return !o.Unknown && (o.Kind == Put || o.Done)
}

func (o Operation) String() string {
	var what string
	switch o.Kind {
	case Get:
		what = fmt.Sprintf("get %s = %q mod %d", o.Key, o.Seen, o.SeenAt)
	case Put:
		what = fmt.Sprintf("put %s %q", o.Key, o.Value)
	case Delete:
		what = fmt.Sprintf("delete %s: %v", o.Key, o.Done)
	case Swap:
		what = fmt.Sprintf("swap %s %q %q: %v", o.Key, o.Old, o.Value, o.Done)
	}
	if o.Unknown {
		return fmt.Sprintf("client %d %s from %v, outcome unknown", o.Client, what, o.Call)
	}
	return fmt.Sprintf("client %d %s at %d, %v to %v", o.Client, what, o.Revision, o.Call, o.Return)
}

// register is what a key holds.
type register struct {
	value    string // "" stands for no key
	revision int64  // 0: not known, because nobody was told
}

var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		keys := map[string][]porcupine.Operation{}
		for _, o := range history {
			key := o.Input.(Operation).Key
			keys[key] = append(keys[key], o)
		}
		var parts [][]porcupine.Operation
		for _, part := range keys {
			parts = append(parts, part)
		}
		return parts
	},
	Init:  func() any { return register{} },
	Equal: func(a, b any) bool { return a == b },
	Step: func(state, input, _ any) (bool, any) {
		ok, next := step(state.(register), input.(Operation))
		return ok, next
	},
	DescribeOperation: func(input, _ any) string { return input.(Operation).String() },
}

// step tells whether the operation can have seen what it saw of a register,
// and what the register is then. An unknown one that never happens is one that
// happens after all others.
func step(r register, o Operation) (bool, register) {
	put := register{o.Value, o.Revision}
	if o.Unknown {
		put.revision = 0
	}
	switch o.Kind {
	case Get:
		return o.Seen == r.value && (o.Seen == "" || r.revision == 0 || o.SeenAt == r.revision), r
	case Put:
		return true, put
	case Delete:
		return o.Unknown || o.Done == (r.value != ""), register{}
	default:
		holds := r.value == o.Old
		if holds {
			return o.Unknown || o.Done, put
		}
		return o.Unknown || !o.Done, r
	}
}

// Check returns an error if the history is not linearizable, or if it cannot
// be told within the limit.
func Check(history []Operation, limit time.Duration) error {
	var operations []porcupine.Operation
	for _, o := range history {
		if o.Unknown && o.Kind == Get {
			continue // saw nothing, did nothing
		}
		end := int64(o.Return)
		if o.Unknown {
			end = math.MaxInt64
		}
		operations = append(operations, porcupine.Operation{ClientId: o.Client, Input: o, Call: int64(o.Call), Return: end})
	}
	switch porcupine.CheckOperationsTimeout(model, operations, limit) {
	case porcupine.Illegal:
		for _, part := range model.Partition(operations) {
			if porcupine.CheckOperationsTimeout(model, part, limit) == porcupine.Illegal {
				key := part[0].Input.(Operation).Key
				return fmt.Errorf("the history of key %q is not linearizable:%s", key, tail(part))
			}
		}
		return fmt.Errorf("the history is not linearizable")
	case porcupine.Unknown:
		return fmt.Errorf("the history of %d operations could not be judged in %v", len(operations), limit)
	}
	return nil
}

// tail prints the shortest beginning of a history that is not linearizable,
// as far as one wants to read it.
func tail(part []porcupine.Operation) string {
	slices.SortFunc(part, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
	low, high := 1, len(part)
	for low < high {
		if middle := (low + high) / 2; porcupine.CheckOperations(model, part[:middle]) {
			low = middle + 1
		} else {
			high = middle
		}
	}
	var text string
	for _, o := range part[max(0, low-20):low] {
		text += "\n\t" + o.Input.(Operation).String()
	}
	return text
}

// Order returns an error if a revision goes back: an operation that was called
// after another had returned must not see an older revision, and a write must
// see a newer one, which no other write has.
func Order(history []Operation) error {
	var known []Operation
	owner := map[int64]Operation{}
	for _, o := range history {
		if o.Unknown {
			continue
		}
		known = append(known, o)
		if o.writes() {
			if other, twice := owner[o.Revision]; twice {
				return fmt.Errorf("two writes have revision %d:\n\t%v\n\t%v", o.Revision, other, o)
			}
			owner[o.Revision] = o
		}
	}
	calls := slices.Clone(known)
	slices.SortFunc(calls, func(a, b Operation) int { return int(a.Call - b.Call) })
	slices.SortFunc(known, func(a, b Operation) int { return int(a.Return - b.Return) })

	var newest Operation // of those that have returned
	returned := 0
	for _, o := range calls {
		for ; returned < len(known) && known[returned].Return < o.Call; returned++ {
			if known[returned].Revision > newest.Revision {
				newest = known[returned]
			}
		}
		if o.Revision < newest.Revision || o.writes() && o.Revision == newest.Revision {
			return fmt.Errorf("the revision went back:\n\t%v\n\t%v", newest, o)
		}
	}
	return nil
}
