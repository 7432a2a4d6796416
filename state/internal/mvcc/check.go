package mvcc

import "slices"

// check compares what the writer keeps in several places. Its caller holds the
// lock of the writer.
func (s *Store) check() {
	w := &s.writer
	if w.tree.root == nil {
		return
	}
	last, alive := "", 0
	ascend(w.tree.root, "", func(r *record) bool {
		must(r.key > last, "records of the tree are in order")
		last = r.key
		must(s.index.find([]byte(r.key)) == r, "tree and index hold the same records")
		head := r.head.Load()
		if !head.deleted() {
			alive++
		}
		must(head.main <= w.revision, "no version is newer than the store")
		dirty := r.marks.Load()&markDirty != 0
		must(dirty || !head.deleted() && head.prev.Load() == nil, "a record with something to lose is known to the sweep")
		for v := head; v != nil; v = v.prev.Load() {
			if p := v.prev.Load(); p != nil {
				must(p.at().compare(v.at()) < 0, "chains go back in time")
				j := v.jump.Load()
				must(j != nil && j.main <= p.main, "jumps go further back than one version")
			}
			must(v.deleted() == (v.create == 0), "deletions have no creation")
		}
		return true
	})
	must(alive == w.tree.root.live(), "the tree counts the keys that exist")
	existing(w.tree.root, 0, func(r *record) bool {
		must(!r.head.Load().deleted(), "a root knows what exists")
		return true
	})
	must(!slices.Contains(w.dirty, nil), "the sweep's list holds records")
}
