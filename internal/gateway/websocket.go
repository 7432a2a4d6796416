package gateway

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"

	"github.com/coder/websocket"
)

// upgrades tells whether r wants to become a WebSocket.
func upgrades(r *http.Request) bool {
	for _, value := range r.Header.Values("Connection") {
		for token := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(token), "upgrade") {
				return strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
			}
		}
	}
	return false
}

// bearer is the subprotocol by which a page says its token: it cannot set
// headers. The token is the next one in the list.
const bearer = "Bearer"

// serveSocket speaks with a browser that can send while it receives: each
// message is one JSON text of the body, each line of the answer one message.
func serveSocket(w http.ResponseWriter, r *http.Request, messageBytesMax int64, next http.Handler) {
	token, hasToken := strings.CutPrefix(r.Header.Get("Sec-WebSocket-Protocol"), bearer+",")
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols:       []string{bearer},
		InsecureSkipVerify: true, // Access looks at the origin
	})
	if err != nil {
		return // it has answered
	}
	defer conn.CloseNow()
	conn.SetReadLimit(messageBytesMax)

	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	body, messages := io.Pipe()
	asked := r.Clone(ctx)
	asked.Method, asked.Body, asked.ContentLength = http.MethodPost, body, -1
	for _, header := range []string{"Connection", "Upgrade"} {
		asked.Header.Del(header)
	}
	if hasToken {
		asked.Header.Set("Authorization", bearer+" "+strings.TrimSpace(token))
	}

	read := make(chan struct{})
	go func() {
		defer close(read)
		defer cancel() // who has gone listens no more
		for {
			_, message, err := conn.Read(ctx)
			if err == nil {
				_, err = messages.Write(append(message, '\n'))
			}
			if err != nil {
				messages.CloseWithError(io.EOF)
				return
			}
		}
	}()
	answer := &lines{ctx: ctx, conn: conn, header: http.Header{}}
	next.ServeHTTP(answer, asked)
	if answer.flushLine() == nil {
		conn.Close(websocket.StatusNormalClosure, "")
	}
	cancel()
	body.Close()
	<-read
}

// lines is a response whose every line is sent as a message.
type lines struct {
	ctx    context.Context
	conn   *websocket.Conn
	header http.Header
	begun  []byte // a line without its end
}

func (l *lines) Header() http.Header { return l.header }
func (l *lines) WriteHeader(int)     {}
func (l *lines) Flush()              {} // a line is sent when it ends

func (l *lines) Write(b []byte) (int, error) {
	for rest := b; ; {
		line, more, ended := bytes.Cut(rest, []byte{'\n'})
		l.begun = append(l.begun, line...)
		if !ended {
			return len(b), nil
		}
		if err := l.flushLine(); err != nil {
			return 0, err
		}
		rest = more
	}
}

// flushLine sends the line that was begun, if it holds anything.
func (l *lines) flushLine() error {
	if len(l.begun) == 0 {
		return nil
	}
	err := l.conn.Write(l.ctx, websocket.MessageText, l.begun)
	l.begun = l.begun[:0]
	return err
}
