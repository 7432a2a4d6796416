package tree

import (
	"encoding/binary"
	"errors"

	"github.com/kvorum/kvorum/state/internal/mvcc"
)

// note is what a request leaves beside the first of its changes:
//
//	action and flags 1 | length of the path uvarint | created uvarint | deadline varint
//
// The path is the beginning of the key that is changed. Created is 0 where it
// is the revision itself.
type note struct {
	action   byte // index in actions
	dir      bool
	refresh  bool
	path     int
	created  mvcc.Revision
	deadline int64
}

const (
	noteAction  byte = 0x0f
	noteDir     byte = 0x10
	noteRefresh byte = 0x20
)

// actions are numbered in rows: none of them ever moves.
var actions = []string{
	1: ActionSet, 2: ActionCreate, 3: ActionUpdate, 4: ActionCompareAndSwap,
	5: ActionDelete, 6: ActionCompareAndDelete, 7: ActionExpire,
}

func actionOf(name string) byte {
	for i, a := range actions {
		if a == name {
			return byte(i)
		}
	}
	panic("tree: no action " + name)
}

// gone tells whether the node is there no more.
func (n note) gone() bool {
	switch actions[n.action] {
	case ActionDelete, ActionCompareAndDelete, ActionExpire:
		return true
	}
	return false
}

func (n note) encode() string {
	head := n.action
	if n.dir {
		head |= noteDir
	}
	if n.refresh {
		head |= noteRefresh
	}
	b := append(make([]byte, 0, 24), head)
	b = binary.AppendUvarint(b, uint64(n.path))
	b = binary.AppendUvarint(b, uint64(n.created))
	b = binary.AppendVarint(b, n.deadline)
	return string(b)
}

var errNote = errors.New("tree: damaged note")

// parseNote reads a note beside a key of so many bytes.
func parseNote[B []byte | string](encoded B, key int) (note, error) {
	b := []byte(encoded)
	if len(b) == 0 {
		return note{}, errNote
	}
	n := note{action: b[0] & noteAction, dir: b[0]&noteDir != 0, refresh: b[0]&noteRefresh != 0}
	if n.action == 0 || int(n.action) >= len(actions) || b[0]&^(noteAction|noteDir|noteRefresh) != 0 {
		return note{}, errNote
	}
	path, a := binary.Uvarint(b[1:])
	if a <= 0 || path == 0 || path > uint64(key) {
		return note{}, errNote
	}
	created, c := binary.Uvarint(b[1+a:])
	if c <= 0 || int64(created) < 0 {
		return note{}, errNote
	}
	deadline, d := binary.Varint(b[1+a+c:])
	if d <= 0 || 1+a+c+d != len(b) {
		return note{}, errNote
	}
	n.path, n.created, n.deadline = int(path), mvcc.Revision(created), deadline
	return n, nil
}

// noteOf returns the note beside what a key holds, empty if there is none.
func noteOf(p mvcc.Pair, key int) note {
	encoded := p.Note()
	if encoded == "" {
		return note{}
	}
	n, err := parseNote(encoded, key)
	must(err == nil, "notes were encoded here")
	return n
}
