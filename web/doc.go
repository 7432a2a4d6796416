// Package web serves the plainest requests of HTTP/1.1 at little cost: small
// ones for paths that its Handler takes, with headers that nothing hangs on. A
// connection whose next request is anything else is handed, unread, to who
// serves the rest: what is not understood completely is not touched. So there is
// nothing here to get wrong but what is plain.
//
// One goroutine serves a connection. While a connection is idle, or its client
// waits for something to happen, that goroutine listens to the client, and the
// connection has a kilobyte of memory. Who has something to tell a client that
// waits comes on a goroutine of its own.
package web

import (
	"context"
	"net"
)

// Request is one that was understood. Its bytes are good until it is answered.
type Request struct {
	Method      string // GET, PUT, POST or DELETE
	Path        string // clean, and without escapes
	Query       string // as it came
	ContentType string
	Body        []byte
}

// Handler answers.
type Handler interface {
	// Takes tells whether requests for a path are answered here.
	Takes(path string) bool

	// Answer appends the whole answer to a request, from its status line on. If
	// the answer goes on, it returns what there is to wait for.
	Answer(ctx context.Context, r *Request, out []byte) ([]byte, Wait)
}

// Wait is an answer that goes on. Its methods are not called at the same time.
type Wait interface {
	// Notify has f called whenever Next may have something. It is called once, and
	// f returns at once.
	Notify(f func())

	// Next appends some of what there is to tell now, and nothing only if there is
	// no more of it; done: nor will there be. It does not wait.
	Next(out []byte) (_ []byte, done bool)

	// Close is called at the end, also if the client has gone.
	Close()
}

// Options of a Server.
type Options struct {
	Handler Handler

	// Rest is given connections with what was read of them.
	Rest func(c net.Conn, read []byte)
}
