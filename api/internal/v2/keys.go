package v2

import (
	"context"
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

	"github.com/kvorum/kvorum/api/internal/gate"
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
	key = path.Clean(key)
	switch {
	case refused != nil:
		send(w, refused.reply())
	case r.Method == http.MethodGet && q.wait && !q.quorum:
		h.wait(w, r, key, &q)
	default:
		if a := h.do(r.Context(), r.Method, key, &q); r.Context().Err() == nil {
			send(w, a)
		}
	}
}

// do does what is asked, but for waiting.
func (h *Handler) do(ctx context.Context, method, key string, q *request) reply {
	if method == http.MethodGet || method == http.MethodHead {
		return h.read(ctx, key, q)
	}
	return h.write(ctx, method, key, q)
}

// reply is an answer about keys.
type reply struct {
	status int
	index  state.Revision
	agreed gate.Status // told of if something was asked of the store, and not refused
	body   []byte
}

func send(w http.ResponseWriter, a reply) {
	a.indexes(w.Header())
	writeBody(w, a.status, a.body)
}

// indexes say what the answer is as of, and how far agreement is.
func (a *reply) indexes(header http.Header) {
	header["X-Etcd-Index"] = []string{strconv.FormatInt(int64(a.index), 10)}
	if a.agreed.Term > 0 {
		header["X-Raft-Index"] = []string{strconv.FormatUint(uint64(a.agreed.Committed), 10)}
		header["X-Raft-Term"] = []string{strconv.FormatUint(uint64(a.agreed.Term), 10)}
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
func (h *Handler) read(ctx context.Context, key string, q *request) reply {
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
		return failed(err)
	}
	hide(&node)
	b := append(newBuffer(), `{"action":"get","node":`...)
	b = encoder{now: time.Now()}.appendNode(b, &node, false)
	return reply{http.StatusOK, at, h.gate.Status(), append(b, '}', '\n')}
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

// write has a change made, and answers with what it did. It is where a principal
// would be known: until there are users, anybody may do everything.
func (h *Handler) write(ctx context.Context, method, key string, q *request) reply {
	now := time.Now()
	change := changeOf(method, key, q, now)
	err := h.gate.Enter(ctx, false)
	var out state.Outcome
	if err == nil {
		out, err = h.gate.ProposeNode(ctx, &change)
	}
	h.counts.of(change.Op).count(err)
	if err != nil {
		return failed(err)
	}
	done := out.Change
	a := reply{status: http.StatusOK, index: done.Revision, agreed: h.gate.Status(), body: newBuffer()}
	if done.Prev == nil && (done.Action == "set" || done.Action == "create") {
		a.status = http.StatusCreated
	}
	if q.noValueOnSuccess && !removes(done.Action) {
		a.body = append(a.body, `{"action":`...)
		a.body = appendText(a.body, done.Action)
		a.body = append(a.body, '}', '\n')
	} else {
		a.body = encoder{now: now}.appendChange(a.body, done)
	}
	return a
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

// failed tells a client why its request has failed.
func failed(err error) reply {
	refused := &refusal{code: internal, cause: err.Error()}
	var node *state.HierarchyError
	switch known := fault.Of(err); {
	case errors.As(err, &node):
		refused = &refusal{code: code(node.Code), cause: node.Cause, index: node.Index}
	case known != nil:
		refused.cause = known.Text
	}
	return refused.reply()
}

func (r *refusal) reply() reply {
	return reply{status: r.status(), index: r.index, body: r.append(newBuffer())}
}
