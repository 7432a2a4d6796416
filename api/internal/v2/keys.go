package v2

import (
	"errors"
	"io"
	"math"
	"mime"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

// formBytesMax is the largest form that is read.
const formBytesMax = 10 << 20

func (h *Handler) keys(w http.ResponseWriter, r *http.Request, key string) {
	if !allow(w, r, http.MethodHead, http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete) {
		return
	}
	h.clusterHeader(w.Header())
	body, refused := readBody(r)
	var q request
	if refused == nil {
		q, refused = parse(r.Method, r.URL.RawQuery, r.Header.Get("Content-Type"), body)
	}
	if refused != nil {
		h.refuse(w, refused)
		return
	}
	key = path.Clean(key)
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		h.write(w, r, key, &q)
	case q.wait && !q.quorum:
		h.wait(w, r, key, &q)
	default:
		h.read(w, r, key, &q)
	}
}

// readBody returns the body of a request that sends a form, and nothing of any
// other.
func readBody(r *http.Request) ([]byte, *refusal) {
	contentType := r.Header.Get("Content-Type")
	if r.Method != http.MethodPut && r.Method != http.MethodPost || r.ContentLength == 0 {
		return nil, nil
	}
	if contentType != formType {
		if parsed, _, _ := mime.ParseMediaType(contentType); parsed != formType {
			return nil, nil
		}
	}
	var body []byte
	var err error
	switch size := r.ContentLength; {
	case size > formBytesMax:
		// Most of it is taken, since who still sends does not hear an answer.
		_, err = io.CopyN(io.Discard, r.Body, formBytesMax+1)
	case size > 0:
		body = make([]byte, size)
		_, err = io.ReadFull(r.Body, body)
	default:
		body, err = io.ReadAll(io.LimitReader(r.Body, formBytesMax+1))
	}
	switch {
	case err != nil:
		return nil, &refusal{code: invalidForm, cause: err.Error()}
	case r.ContentLength > formBytesMax || len(body) > formBytesMax:
		return nil, &refusal{code: invalidForm, cause: "http: POST too large"}
	}
	return body, nil
}

// read answers with a node as it is here, or, where the client wants to know of
// all that was agreed on, with that.
func (h *Handler) read(w http.ResponseWriter, r *http.Request, key string, q *request) {
	ctx := r.Context()
	err := h.gate.Enter(ctx, !q.quorum)
	var view *state.View
	if err == nil {
		view, err = h.gate.View(ctx, q.quorum)
	}
	var node state.Node
	var at state.Revision
	if err == nil {
		node, at, err = view.Node(key, q.recursive)
	}
	h.counts.get.count(err)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	hide(&node)
	b := append(newBuffer(), `{"action":"get","node":`...)
	b = encoder{now: time.Now()}.appendNode(b, &node, false)
	h.answer(w, http.StatusOK, at, append(b, '}', '\n'))
}

// hide leaves out the hidden nodes below n, which itself is named by the client.
func hide(n *state.Node) {
	n.Nodes = slices.DeleteFunc(n.Nodes, func(c state.Node) bool { return hidden(c.Path) })
	for i := range n.Nodes {
		hide(&n.Nodes[i])
	}
}

// hidden tells whether a node is left out where its parent is listed.
func hidden(path string) bool {
	return strings.HasPrefix(path[strings.LastIndexByte(path, '/')+1:], "_")
}

// write has a change made, and answers with what it did.
func (h *Handler) write(w http.ResponseWriter, r *http.Request, key string, q *request) {
	ctx, now := r.Context(), time.Now()
	change := changeOf(r.Method, key, q, now)
	err := h.gate.Enter(ctx, false)
	var out state.Outcome
	if err == nil {
		out, err = h.gate.ProposeNode(ctx, &change)
	}
	h.counts.of(change.Op).count(err)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	status := http.StatusOK
	if done := out.Change; done.Prev == nil && (done.Action == "set" || done.Action == "create") {
		status = http.StatusCreated
	}
	b := newBuffer()
	if q.noValueOnSuccess && !removes(out.Change.Action) {
		b = append(b, `{"action":`...)
		b = appendText(b, out.Change.Action)
		b = append(b, '}', '\n')
	} else {
		b = encoder{now: now}.appendChange(b, out.Change)
	}
	h.answer(w, status, out.Change.Revision, b)
}

// changeOf reads a request as the change that it asks for. What a change does
// not know, such as a comparison where something is created, is left out.
func changeOf(method, key string, q *request, now time.Time) state.HierarchyRequest {
	c := state.HierarchyRequest{Path: key}
	if method == http.MethodDelete {
		c.Op = state.NodeDelete
		c.Dir, c.Recursive = q.dir || q.recursive, q.recursive
		if q.conditional() {
			c.Op = state.NodeCompareAndDelete
			c.PrevValue, c.PrevIndex = q.prevValue, q.prevIndex
		}
		return c
	}
	c.Value, c.Dir = q.value, q.dir
	if q.hasTTL {
		c.Deadline = deadline(now, q.ttl)
	}
	switch {
	case method == http.MethodPost:
		c.Op = state.NodeCreateInOrder
	case q.hasPrevExist && !q.prevExist:
		c.Op = state.NodeCreate
	case q.conditional():
		c.Op, c.Refresh = state.NodeCompareAndSwap, q.refresh
		c.PrevValue, c.PrevIndex = q.prevValue, q.prevIndex
	case q.hasPrevExist:
		c.Op, c.Refresh = state.NodeUpdate, q.refresh
	default:
		c.Op, c.Refresh = state.NodeSet, q.refresh
	}
	return c
}

// deadline is so many seconds from now. What ends after the year 2262, which
// cannot be written down, never does.
func deadline(now time.Time, seconds uint64) int64 {
	if seconds > uint64(math.MaxInt64-now.UnixNano())/uint64(time.Second) {
		return 0
	}
	return now.UnixNano() + int64(seconds)*int64(time.Second)
}

// removes tells whether what is called so leaves nothing at its path.
func removes(action string) bool {
	switch action {
	case "delete", "compareAndDelete", "expire":
		return true
	}
	return false
}

// newBuffer has room for most answers.
func newBuffer() []byte { return make([]byte, 0, 512) }

// answer sends what was asked for, as of an index.
func (h *Handler) answer(w http.ResponseWriter, status int, at state.Revision, body []byte) {
	h.raftHeaders(w.Header(), at)
	writeBody(w, status, body)
}

// raftHeaders say what the answer is as of, and how far agreement is.
func (h *Handler) raftHeaders(header http.Header, at state.Revision) {
	s := h.gate.Status()
	texts := [...]string{
		strconv.FormatInt(int64(at), 10), strconv.FormatUint(uint64(s.Committed), 10), strconv.FormatUint(uint64(s.Term), 10),
	}
	header["X-Etcd-Index"] = texts[0:1:1]
	header["X-Raft-Index"] = texts[1:2:2]
	header["X-Raft-Term"] = texts[2:3:3]
}

// fail tells a client why its request has failed.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // nobody is there to be told
	}
	refused := &refusal{code: internal, cause: err.Error()}
	var node *state.HierarchyError
	switch known := fault.Of(err); {
	case errors.As(err, &node):
		refused = &refusal{code: code(node.Code), cause: node.Cause, index: node.Index}
	case known != nil:
		refused.cause = known.Text
	}
	h.refuse(w, refused)
}

func (h *Handler) refuse(w http.ResponseWriter, refused *refusal) {
	w.Header()["X-Etcd-Index"] = []string{strconv.FormatInt(int64(refused.index), 10)}
	writeBody(w, refused.status(), refused.append(newBuffer()))
}
