package tree

import (
	"fmt"

	"github.com/kvorum/kvorum/internal/mutant"
	"github.com/kvorum/kvorum/state/internal/mvcc"
)

// Write is a change of one key, or the deletion of several.
type Write struct {
	Key    string
	End    string // with Delete: of the keys in [Key, End), if not ""
	Value  string
	Delete bool
}

// Plan is what becomes of the keys in the revision after that of a view, and
// what is to be told of it.
type Plan struct {
	Note   string  // beside the first of the changes
	Writes []Write // at least one of them changes something, and so does the first

	change Change
	prev   found
}

// Decide says what a request changes, or refuses with an *Error. Another error
// is a failure of the table.
func Decide(keys mvcc.View, q *Request) (Plan, error) {
	p := &planner{keys: keys, next: keys.Revision + 1}
	if err := p.decide(q); err != nil {
		return Plan{}, err
	}
	return p.plan, nil
}

// Lapse says what the end of a deadline changes: nothing if the key has another
// one by now.
func Lapse(keys mvcc.View, d Deadline) (Plan, bool) {
	path, marker, ok := named(d.Key)
	at := noteOf(keys.Get([]byte(d.Key)), len(d.Key)).deadline
	if !ok || at == 0 || at != d.At && !mutant.On("a deadline of the past counts") {
		return Plan{}, false
	}
	p := &planner{keys: keys, next: keys.Revision + 1}
	if f := look(keys, path); f.kind == file || marker {
		p.remove(ActionExpire, f, marker)
	} else {
		p.plan.Writes = []Write{{Key: d.Key, Delete: true}} // of a file that a directory hides, nobody is told
	}
	return p.plan, true
}

// Tell returns what is to be told of a plan, also once it is made true.
func (p *Plan) Tell() (Change, error) {
	c := p.change
	if c.Prev != nil {
		value, err := p.prev.value()
		if err != nil {
			return Change{}, err
		}
		prev := *c.Prev
		prev.Value = value
		c.Prev = &prev
	}
	return c, nil
}

type planner struct {
	keys mvcc.View
	next mvcc.Revision
	plan Plan
}

func (p *planner) refuse(code int, cause string) error { return refuse(p.keys, code, cause) }

func (p *planner) decide(q *Request) error {
	if q.Path == Root {
		switch q.Op {
		case CreateInOrder:
		case CompareAndDelete:
			return p.refuse(NotFile, "")
		default:
			return p.refuse(RootReadOnly, Root)
		}
	}
	switch q.Op {
	case Set:
		return p.set(q)
	case Create:
		return p.create(q, q.Path)
	case CreateInOrder:
		return p.create(q, child(q.Path, fmt.Sprintf("%020d", p.next)))
	case Update:
		return p.update(q)
	case CompareAndSwap:
		return p.compareAndSwap(q)
	case Delete:
		return p.delete(q)
	case CompareAndDelete:
		return p.compareAndDelete(q)
	}
	panic("tree: request was checked")
}

// place looks at a path where something may be made: its ancestors are
// directories or missing.
func (p *planner) place(path string) (found, error) {
	if a, is := obstacle(p.keys, path); is && a.kind == file {
		return found{}, p.refuse(NotDirectory, a.path)
	}
	return look(p.keys, path), nil
}

func (p *planner) set(q *Request) error {
	f, err := p.place(q.Path)
	if err == nil && q.Refresh && f.kind == nothing {
		_, err = find(p.keys, q.Path) // says what is missing
	}
	switch {
	case err != nil:
		return err
	case f.dir():
		return p.refuse(NotFile, q.Path)
	}
	return p.put(ActionSet, f, q, p.next)
}

func (p *planner) create(q *Request, path string) error {
	f, err := p.place(path)
	switch {
	case err != nil:
		return err
	case f.kind != nothing:
		return p.refuse(KeyExists, path)
	}
	made := *q
	made.Refresh = false
	return p.put(ActionCreate, f, &made, p.next)
}

func (p *planner) update(q *Request) error {
	f, err := find(p.keys, q.Path)
	switch {
	case err != nil:
		return err
	case f.dir() && q.Value != "" && !q.Refresh:
		return p.refuse(NotFile, q.Path)
	}
	as := *q
	as.Dir = f.dir()
	return p.put(ActionUpdate, f, &as, f.created())
}

func (p *planner) compareAndSwap(q *Request) error {
	f, err := p.compare(q)
	if err != nil {
		return err
	}
	as := *q
	as.Dir = false
	return p.put(ActionCompareAndSwap, f, &as, f.created())
}

// compare finds the file that a request is about and compares it.
func (p *planner) compare(q *Request) (found, error) {
	f, err := find(p.keys, q.Path)
	if err != nil {
		return f, err
	}
	if f.dir() {
		return f, p.refuse(NotFile, q.Path)
	}
	cause := ""
	if q.PrevValue != "" {
		value, err := f.value()
		if err != nil {
			return f, err
		}
		if value != q.PrevValue {
			cause = fmt.Sprintf("[%s != %s]", q.PrevValue, value)
		}
	}
	if is := uint64(f.pair.Mod); q.PrevIndex != 0 && q.PrevIndex != is {
		if cause != "" {
			cause += " "
		}
		cause += fmt.Sprintf("[%d != %d]", q.PrevIndex, is)
	}
	if cause != "" {
		return f, p.refuse(CompareFailed, cause)
	}
	return f, nil
}

// put plans that a node becomes what a request says. What was there is f.
func (p *planner) put(action string, f found, q *Request, created mvcc.Revision) error {
	n := Node{Path: f.path, Dir: q.Dir, Created: created, Modified: p.next, Deadline: q.Deadline}
	key := f.path
	if q.Dir {
		key += "/"
		if n.Created = p.next; f.kind == directory {
			n.Created = f.pair.Create
		}
	} else if n.Value = q.Value; q.Refresh {
		var err error
		if n.Value, err = f.value(); err != nil {
			return err
		}
	}
	p.tell(action, f, n, q.Refresh)
	p.plan.Writes = append(p.plan.Writes, Write{Key: key, Value: n.Value})
	if q.Dir && f.kind == file {
		p.plan.Writes = append(p.plan.Writes, Write{Key: f.path, Delete: true})
	}
	ancestors(f.path, func(a string) bool {
		if !p.keys.Get([]byte(a + "/")).Exists() {
			p.plan.Writes = append(p.plan.Writes, Write{Key: a + "/"})
		}
		return true
	})
	return nil
}

func (p *planner) delete(q *Request) error {
	f, err := find(p.keys, q.Path)
	switch {
	case err != nil:
		return err
	case f.dir() && !q.Dir && !q.Recursive:
		return p.refuse(NotFile, q.Path)
	case f.dir() && !q.Recursive && !p.vacant(f):
		return p.refuse(NotEmpty, q.Path)
	}
	p.remove(ActionDelete, f, q.Recursive)
	return nil
}

func (p *planner) compareAndDelete(q *Request) error {
	f, err := p.compare(q)
	if err != nil {
		return err
	}
	p.remove(ActionCompareAndDelete, f, false)
	return nil
}

// vacant tells whether a directory holds nothing but its marker.
func (p *planner) vacant(f found) bool {
	_, to := below(f.path)
	for range p.keys.Ascend(child(f.path, "\x00"), to) {
		return false
	}
	return true
}

// remove plans that what was found goes, with all below it if that is wanted.
func (p *planner) remove(action string, f found, all bool) {
	n := f.node(p.keys)
	n.Modified, n.Deadline = p.next, 0
	p.tell(action, f, n, false)

	from, to := below(f.path)
	switch {
	case f.dir() && all:
		p.plan.Writes = []Write{{Key: from, End: to, Delete: true}}
		if p.keys.Get([]byte(f.path)).Exists() {
			p.plan.Writes = append(p.plan.Writes, Write{Key: f.path, Delete: true})
		}
	case f.dir():
		p.plan.Writes = []Write{{Key: from, Delete: true}}
	default:
		p.plan.Writes = []Write{{Key: f.path, Delete: true}}
		if all {
			p.plan.Writes = append(p.plan.Writes, Write{Key: from, End: to, Delete: true})
		}
	}
}

// tell plans what is told of a change that makes n of what was found.
func (p *planner) tell(action string, f found, n Node, refresh bool) {
	p.plan.change = Change{Action: action, Refresh: refresh, Revision: p.next, Node: &n}
	if p.plan.prev = f; f.kind != nothing {
		prev := f.node(p.keys)
		p.plan.change.Prev = &prev
	}
	kept := note{
		action: actionOf(action), dir: n.Dir, refresh: refresh,
		path: len(n.Path), created: n.Created, deadline: n.Deadline,
	}
	if n.Created == n.Modified {
		kept.created = 0
	}
	p.plan.Note = kept.encode()
}
