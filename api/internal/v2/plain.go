package v2

import (
	"context"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kvorum/kvorum/web"
)

// Takes tells whether requests for a path are answered without net/http, as far
// as they are plain.
func (h *Handler) Takes(p string) bool {
	rest, ok := strings.CutPrefix(p, "/v2/keys")
	return ok && (rest == "" || rest[0] == '/')
}

// Answer answers a plain request for keys.
func (h *Handler) Answer(ctx context.Context, r *web.Request, out []byte) ([]byte, web.Wait) {
	q, refused := parse(r.Method, r.Query, r.ContentType, r.Body)
	key := path.Clean("/" + strings.TrimPrefix(r.Path, "/v2/keys"))
	switch {
	case refused != nil:
		return h.appendReply(out, refused.reply()), nil
	case r.Method != http.MethodGet || !q.wait || q.quorum:
		return h.appendReply(out, h.do(ctx, r.Method, key, &q)), nil
	}
	w, a := h.listen(ctx, key, &q)
	if w == nil {
		return h.appendReply(out, a), nil
	}
	return append(h.appendHead(out, a), "Transfer-Encoding: chunked\r\n\r\n"...), &plainWaiter{w, ctx}
}

func (h *Handler) appendReply(b []byte, a reply) []byte {
	b = append(h.appendHead(b, a), "Content-Length: "...)
	b = strconv.AppendInt(b, int64(len(a.body)), 10)
	b = append(b, "\r\n\r\n"...)
	return append(b, a.body...)
}

// appendHead appends an answer up to what says how long its body is. Whoever has
// pages of some origins only does not use this.
func (h *Handler) appendHead(b []byte, a reply) []byte {
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(a.status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(a.status)...)
	b = append(b, "\r\nAccess-Control-Allow-Headers: accept, content-type, authorization"+
		"\r\nAccess-Control-Allow-Methods: POST, GET, OPTIONS, PUT, DELETE"+
		"\r\nAccess-Control-Allow-Origin: *"+
		"\r\nContent-Type: application/json"+
		"\r\nX-Etcd-Cluster-Id: "...)
	b = strconv.AppendUint(b, uint64(h.backend.Status().Cluster), 16)
	b = append(b, "\r\nX-Etcd-Index: "...)
	b = strconv.AppendInt(b, int64(a.index), 10)
	if a.agreed.Term > 0 {
		b = append(b, "\r\nX-Raft-Index: "...)
		b = strconv.AppendUint(b, uint64(a.agreed.Committed), 10)
		b = append(b, "\r\nX-Raft-Term: "...)
		b = strconv.AppendUint(b, uint64(a.agreed.Term), 10)
	}
	b = append(b, "\r\nDate: "...)
	return append(append(b, h.date.now()...), "\r\n"...)
}

// date is the time of day as answers have it, made once a second.
type date struct{ last atomic.Pointer[dated] }

type dated struct {
	second int64
	text   string
}

func (d *date) now() string {
	now := time.Now()
	last := d.last.Load()
	if last == nil || last.second != now.Unix() {
		last = &dated{now.Unix(), now.UTC().Format(http.TimeFormat)}
		d.last.Store(last)
	}
	return last.text
}

// plainWaiter is told in chunks.
type plainWaiter struct {
	*waiter
	ctx context.Context
}

// Notify has f called when there may be something to tell.
func (w *plainWaiter) Notify(f func()) { w.told.Notify(f) }

// Next appends what one message tells: all history at once may be more than fits
// into memory.
func (w *plainWaiter) Next(out []byte) ([]byte, bool) {
	for {
		m, ok, err := w.told.Try(w.ctx)
		if err == nil && !ok {
			return out, false
		}
		var lines [][]byte
		done := err != nil
		if !done {
			lines, done = w.lines(nil, m)
		}
		for _, line := range lines {
			out = strconv.AppendInt(out, int64(len(line)), 16)
			out = append(out, "\r\n"...)
			out = append(append(out, line...), "\r\n"...)
		}
		if done {
			return append(out, "0\r\n\r\n"...), true
		}
		if len(lines) > 0 {
			return out, false
		}
	}
}
