package v2

import (
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kvorum/kvorum/state"
)

// wait answers at once that it waits, and then with what happens: with the first
// that the client wants to know of, or with everything where it wants a stream.
func (h *Handler) wait(w http.ResponseWriter, r *http.Request, key string, q *request) {
	ctx := r.Context()
	if err := h.gate.Enter(ctx, true); err != nil {
		h.fail(w, r, err)
		return
	}
	view := h.backend.View()
	from := view.Revision + 1
	if q.waitIndex > 0 {
		from = state.Revision(min(q.waitIndex, math.MaxInt64))
	}
	if oldest := view.OldestChanges(); from < oldest {
		h.refuse(w, lacked(oldest, from, view.Revision))
		return
	}
	h.counts.watchers.Add(1)
	defer h.counts.watchers.Add(-1)

	header := w.Header()
	h.raftHeaders(header, view.Revision)
	header["Content-Type"] = jsonType
	w.WriteHeader(http.StatusOK)
	send := http.NewResponseController(w)
	if send.Flush() != nil {
		return
	}
	last := state.Revision(0)
	for e, err := range h.backend.Hub().Follow(ctx, around(key), from) {
		if err != nil {
			return // the client finds an answer without an event, or the end of its stream
		}
		if e.Revision == last || !within(key, string(e.Key)) {
			continue
		}
		last = e.Revision
		happened, err := h.recent.at(h.backend.View(), e.Revision)
		if err != nil {
			return
		}
		for i := range happened.changes {
			if !concerns(&happened.changes[i], key, q.recursive) {
				continue
			}
			if _, err := w.Write(happened.lines[i]); err != nil || !q.stream {
				return
			}
			if send.Flush() != nil {
				return
			}
		}
	}
}

func lacked(oldest, asked, index state.Revision) *refusal {
	return &refusal{code: historyLacked, cause: fmt.Sprintf("the requested history has been cleared [%d/%d]", oldest, asked), index: index}
}

// around is the keys that have to do with a node: its own, its marker, those
// below it; and the few between, whose names begin like its own.
func around(path string) state.Span {
	if path == state.NodeRoot {
		return state.Span{Key: []byte("/"), End: []byte("0")}
	}
	return state.Span{Key: []byte(path), End: append([]byte(path), '0')} // a slash is followed by a zero
}

// within tells whether a key is that of a node or lies below it.
func within(path, key string) bool {
	rest, ok := strings.CutPrefix(key, strings.TrimSuffix(path, "/"))
	return ok && (rest == "" || rest[0] == '/')
}

// concerns tells whether a change is told to those who watch a path, when keys
// at or below the path have changed with it.
func concerns(c *state.NodeChange, path string, recursive bool) bool {
	is := c.Node.Path
	switch {
	case c.Refresh:
		return false
	case is == path:
		return true
	case within(path, is):
		return recursive && !strings.Contains(strings.TrimPrefix(is, strings.TrimSuffix(path, "/")), "/_")
	}
	// What was removed with a directory is gone as well.
	return c.Node.Dir && removes(c.Action) && within(is, path)
}

// happened is what one revision has changed, and how that is told.
type happened struct {
	revision state.Revision
	changes  []state.NodeChange
	lines    [][]byte
}

// recent keeps what was asked for last: many wait for the same.
type recent struct{ last atomic.Pointer[happened] }

func (r *recent) at(view *state.View, revision state.Revision) (*happened, error) {
	if last := r.last.Load(); last != nil && last.revision == revision {
		return last, nil
	}
	changes, err := view.Changes(revision)
	if err != nil {
		return nil, err
	}
	found := &happened{revision: revision, changes: changes, lines: make([][]byte, len(changes))}
	e := encoder{now: time.Now(), told: true}
	for i := range changes {
		found.lines[i] = e.appendChange(nil, &changes[i])
	}
	r.last.Store(found)
	return found, nil
}
