package tree

import (
	"errors"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state/internal/mvcc"
)

// Told returns what a revision has changed, in the words of the hierarchy: what
// a request did if it was one, or else what became of each key. It fails with
// mvcc.ErrOvertaken where that cannot be told any more.
func Told(keys mvcc.View, at mvcc.Revision) ([]Change, error) {
	t := teller{before: keys.At(at - 1), after: keys.At(at)}
	var failed error
	err := keys.Revised(at, func(key []byte, deleted bool, encoded []byte) bool {
		if len(encoded) > 0 {
			failed = t.request(key, encoded)
			return false
		}
		failed = t.write(string(key), deleted)
		return failed == nil
	})
	switch {
	case errors.Is(err, fault.Compacted) || t.before.Overtaken():
		return nil, mvcc.ErrOvertaken
	case err == nil:
		err = failed
	}
	return t.changes, err
}

type teller struct {
	before, after mvcc.View
	changes       []Change
}

// request tells what the request did that left a note beside a key.
func (t *teller) request(key, encoded []byte) error {
	n, err := parseNote(encoded, len(key))
	if err != nil {
		return err
	}
	node := Node{Path: string(key[:n.path]), Dir: n.dir, Created: n.created, Modified: t.after.Revision, Deadline: n.deadline}
	if n.created == 0 {
		node.Created = t.after.Revision
	}
	if !n.gone() {
		if node.Value, err = look(t.after, node.Path).value(); err != nil {
			return err
		}
	}
	return t.tell(actions[n.action], n.refresh, look(t.before, node.Path), node)
}

// write tells what became of a key whose writer knows of no hierarchy.
func (t *teller) write(key string, deleted bool) error {
	path, marker, ok := named(key)
	if !ok {
		return nil
	}
	was, is := see(t.before, path), see(t.after, path)
	switch {
	case deleted && (marker && was.dir() && !is.dir() || !marker && was.kind == file):
		n := was.node(t.before)
		n.Modified, n.Deadline = t.after.Revision, 0
		return t.tell(ActionDelete, false, was, n)
	case deleted:
		return nil
	case marker && is.kind == directory && was.kind != implied || !marker && is.kind == file:
		action := ActionSet
		n := is.node(t.after)
		if was.kind == directory && marker {
			action, n.Modified = ActionUpdate, t.after.Revision
		}
		var err error
		if n.Value, err = is.value(); err != nil {
			return err
		}
		return t.tell(action, false, was, n)
	}
	return nil
}

// see is look for what no file hides.
func see(keys mvcc.View, path string) found {
	if a, is := obstacle(keys, path); is && a.kind == file {
		return found{path: path}
	}
	return look(keys, path)
}

func (t *teller) tell(action string, refresh bool, was found, n Node) error {
	c := Change{Action: action, Refresh: refresh, Revision: t.after.Revision, Node: &n}
	if was.kind != nothing {
		prev := was.node(t.before)
		var err error
		if prev.Value, err = was.value(); err != nil {
			return err
		}
		c.Prev = &prev
	}
	t.changes = append(t.changes, c)
	return nil
}
