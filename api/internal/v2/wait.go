package v2

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kvorum/kvorum/state"
	"github.com/kvorum/kvorum/watch"
)

// wait answers at once that it waits, and then with what happens: with the first
// that the client wants to know of, or with everything where it wants a stream.
func (h *Handler) wait(w http.ResponseWriter, r *http.Request, key string, q *request) {
	ctx := r.Context()
	waits, a := h.listen(ctx, key, q)
	if waits == nil {
		send(w, a)
		return
	}
	defer waits.Close()
	a.indexes(w.Header())
	w.Header()["Content-Type"] = jsonType
	w.WriteHeader(a.status)
	flush := http.NewResponseController(w).Flush
	if flush() != nil {
		return
	}
	for {
		m, err := waits.told.Next(ctx)
		if err != nil {
			return // the client finds an answer without an event, or the end of its stream
		}
		lines, done := waits.lines(nil, m)
		for _, line := range lines {
			if _, err := w.Write(line); err != nil {
				return
			}
		}
		if done || len(lines) > 0 && flush() != nil {
			return
		}
	}
}

// waiter is a client that waits.
type waiter struct {
	h                 *Handler
	told              *watch.Stream
	key               string
	recursive, stream bool
	last              state.Revision // that was looked at
}

// listen returns a waiter and the answer that goes on with what it is told, or
// nil and the answer that says why there is none.
func (h *Handler) listen(ctx context.Context, key string, q *request) (*waiter, reply) {
	if err := h.gate.Enter(ctx, true); err != nil {
		return nil, failed(err)
	}
	view := h.backend.View()
	from := view.Revision + 1
	if q.waitIndex > 0 {
		from = state.Revision(min(q.waitIndex, math.MaxInt64))
	}
	if oldest := view.OldestChanges(); from < oldest {
		return nil, lacked(oldest, from, view.Revision).reply()
	}
	w := &waiter{h: h, told: h.backend.Hub().Open(), key: key, recursive: q.recursive, stream: q.stream}
	if err := w.told.Watch(ctx, watch.Request{Span: around(key), From: from}); err != nil {
		w.told.Close()
		return nil, failed(err)
	}
	h.counts.watchers.Add(1)
	return w, reply{status: http.StatusOK, index: view.Revision, agreed: h.gate.Status()}
}

// Close ends the wait.
func (w *waiter) Close() {
	w.told.Close()
	w.h.counts.watchers.Add(-1)
}

// lines appends what a message has to say to the client, and tells whether that
// was all it waits for, or all that there will be.
func (w *waiter) lines(lines [][]byte, m watch.Message) (_ [][]byte, done bool) {
	if m.Canceled {
		return lines, true
	}
	for _, e := range m.Events {
		if e.Revision == w.last || !within(w.key, e.Key) {
			continue
		}
		w.last = e.Revision
		happened, err := w.h.recent.at(w.h.backend.View(), e.Revision)
		if err != nil {
			return lines, true
		}
		for i := range happened.changes {
			if !concerns(&happened.changes[i], w.key, w.recursive) {
				continue
			}
			if lines = append(lines, happened.lines[i]); !w.stream {
				return lines, true
			}
		}
	}
	return lines, false
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
func within[S string | []byte](path string, key S) bool {
	path = strings.TrimSuffix(path, "/")
	return len(key) >= len(path) && string(key[:len(path)]) == path && (len(key) == len(path) || key[len(path)] == '/')
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
