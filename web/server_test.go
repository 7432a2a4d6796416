package web

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// bed is a server whose rest is served by net/http.
type bed struct {
	*Server
	addr string

	mu    sync.Mutex
	waits []*wait
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.addr = l.Addr().String()
	rest := &given{conns: make(chan net.Conn), closed: make(chan struct{})}
	others := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "others: %s %s %d", r.Method, r.URL.Path, len(body))
	})}
	b.Server = New(Options{Handler: b, Rest: rest.give})
	var running sync.WaitGroup
	running.Go(func() { others.Serve(rest) })
	running.Go(func() {
		if err := b.Serve(l); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() {
		others.Close()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		b.Shutdown(ctx)
		running.Wait()
	})
	return b
}

type given struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (g *given) give(c net.Conn, read []byte) {
	select {
	case g.conns <- replayed{c, io.MultiReader(strings.NewReader(string(read)), c)}:
	case <-g.closed:
		c.Close()
	}
}

func (g *given) Accept() (net.Conn, error) {
	select {
	case c := <-g.conns:
		return c, nil
	case <-g.closed:
		return nil, net.ErrClosed
	}
}

func (g *given) Close() error   { g.once.Do(func() { close(g.closed) }); return nil }
func (g *given) Addr() net.Addr { return &net.TCPAddr{} }

type replayed struct {
	net.Conn
	io.Reader
}

func (r replayed) Read(p []byte) (int, error) { return r.Reader.Read(p) }

func (b *bed) Takes(path string) bool { return strings.HasPrefix(path, "/k/") }

func (b *bed) Answer(_ context.Context, r *Request, out []byte) ([]byte, Wait) {
	if r.Query == "wait" {
		w := &wait{closed: make(chan struct{})}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.waits = append(b.waits, w)
		return append(out, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"...), w
	}
	text := fmt.Sprintf("plain: %s %s %s", r.Method, r.Path, r.Body)
	return fmt.Appendf(out, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text), nil
}

func (b *bed) wait(i int) *wait {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waits[i]
}

type wait struct {
	mu     sync.Mutex
	notify func()
	lines  []string
	over   bool
	closed chan struct{}
}

func (w *wait) Notify(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notify = f
}

// Next tells one line at a time.
func (w *wait) Next(out []byte) ([]byte, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.lines) > 0 {
		out = fmt.Appendf(out, "%x\r\n%s\r\n", len(w.lines[0]), w.lines[0])
		w.lines = w.lines[1:]
	}
	over := w.over && len(w.lines) == 0
	if over {
		out = append(out, "0\r\n\r\n"...)
	}
	return out, over
}

func (w *wait) Close() { close(w.closed) }

func (w *wait) tell(line string, over bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines, w.over = append(w.lines, line), over
	if w.notify != nil {
		w.notify()
	}
}

type client struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

func (b *bed) dial(t *testing.T) *client {
	t.Helper()
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &client{t, c, bufio.NewReader(c)}
}

const patience = 20 * time.Second

func (c *client) send(text string) {
	c.t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		c.t.Fatal(err)
	}
}

func request(method, target, body string) string {
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", method, target, len(body), body)
}

// head reads an answer up to its body.
func (c *client) head() *http.Response {
	c.t.Helper()
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp
}

func (c *client) want(text string) {
	c.t.Helper()
	body, err := io.ReadAll(c.head().Body)
	if err != nil || string(body) != text {
		c.t.Fatalf("%q (%v), want %q", body, err, text)
	}
}

func TestPlainRequestsAreAnswered(t *testing.T) {
	c := newBed(t).dial(t)
	for i := range 3 {
		c.send(request("PUT", fmt.Sprintf("/k/%d", i), "body"))
		c.want(fmt.Sprintf("plain: PUT /k/%d body", i))
	}
	// Many at once, and one in pieces.
	c.send(request("GET", "/k/a", "") + request("PUT", "/k/b", "1") + request("DELETE", "/k/c", ""))
	c.want("plain: GET /k/a ")
	c.want("plain: PUT /k/b 1")
	c.want("plain: DELETE /k/c ")
	for _, b := range []byte(request("POST", "/k/d", "slow")) {
		c.send(string(b))
	}
	c.want("plain: POST /k/d slow")
	large := strings.Repeat("x", requestBytesMax-200)
	c.send(request("PUT", "/k/e", large))
	c.want("plain: PUT /k/e " + large)
}

func TestTheRestIsForOthers(t *testing.T) {
	b := newBed(t)
	for _, c := range []struct{ text, want string }{
		{request("HEAD", "/other", ""), ""},
		{request("GET", "/other", ""), "others: GET /other 0"},
		{request("PUT", "/k/a", strings.Repeat("x", requestBytesMax)), fmt.Sprintf("others: PUT /k/a %d", requestBytesMax)},
		{"PUT /k/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "others: PUT /k/a 3"},
		{"GET /k/%61 HTTP/1.1\r\nHost: h\r\n\r\n", "others: GET /k/a 0"},
		{"GET /k/a HTTP/1.1\r\nHost: h\r\nX: " + strings.Repeat("x", requestBytesMax) + "\r\n\r\n", "others: GET /k/a 0"},
	} {
		conn := b.dial(t)
		conn.send(request("GET", "/k/first", ""))
		conn.want("plain: GET /k/first ")
		conn.send(request("GET", "/k/second", "") + c.text)
		conn.want("plain: GET /k/second ")
		if c.want == "" {
			continue
		}
		conn.want(c.want)
		conn.send(request("GET", "/k/after", ""))
		conn.want("others: GET /k/after 0")
	}
}

func TestWaiting(t *testing.T) {
	b := newBed(t)
	c := b.dial(t)
	c.send(request("GET", "/k/a?wait", ""))
	body := bufio.NewReader(c.head().Body)
	for _, text := range []string{"one\n", "two\n"} {
		b.wait(0).tell(text, false)
		if line, err := body.ReadString('\n'); line != text {
			t.Fatalf("%q (%v)", line, err)
		}
	}
	// What is asked meanwhile is answered afterwards.
	c.send(request("GET", "/k/b", ""))
	b.wait(0).tell("three\n", true)
	if rest, err := io.ReadAll(body); string(rest) != "three\n" {
		t.Fatalf("%q (%v)", rest, err)
	}
	c.want("plain: GET /k/b ")
	select {
	case <-b.wait(0).closed:
	default:
		t.Error("the wait was not closed")
	}

	// With the request that waits in the same packet as the next.
	c.send(request("GET", "/k/c?wait", "") + request("GET", "/k/d", ""))
	body = bufio.NewReader(c.head().Body)
	b.wait(1).tell("four\n", true)
	if rest, err := io.ReadAll(body); string(rest) != "four\n" {
		t.Fatalf("%q (%v)", rest, err)
	}
	c.want("plain: GET /k/d ")
}

func TestWhoHangsUpIsForgotten(t *testing.T) {
	b := newBed(t)
	c := b.dial(t)
	c.send(request("GET", "/k/a?wait", ""))
	c.head()
	c.Close()
	select {
	case <-b.wait(0).closed:
	case <-time.After(patience):
		t.Fatal("it waits for ever")
	}
	b.wait(0).tell("too late\n", true) // does no harm
}

func TestShutdown(t *testing.T) {
	b := newBed(t)
	idle, waited, waits := b.dial(t), b.dial(t), b.dial(t)
	idle.send(request("GET", "/k/a", ""))
	idle.want("plain: GET /k/a ")
	waited.send(request("GET", "/k/a?wait", ""))
	told := waited.head().Body
	b.wait(0).tell("news\n", true)
	if all, err := io.ReadAll(told); string(all) != "news\n" {
		t.Fatalf("%q (%v)", all, err)
	}
	waits.send(request("GET", "/k/a?wait", "") + request("GET", "/k/b", ""))
	body := waits.head().Body
	ended := make(chan struct{})
	go func() {
		b.Shutdown(context.Background())
		close(ended)
	}()
	for _, c := range []*client{idle, waited} {
		if _, err := c.in.ReadByte(); !errors.Is(err, io.EOF) {
			t.Errorf("an idle connection: %v", err)
		}
	}
	b.wait(1).tell("last\n", true)
	if rest, err := io.ReadAll(body); string(rest) != "last\n" {
		t.Errorf("one that waits: %q (%v)", rest, err)
	}
	waits.want("plain: GET /k/b ")
	<-ended
	if c, err := net.Dial("tcp", b.addr); err == nil {
		c.Close()
		t.Error("it still listens")
	}
}

// TestManyAtOnce has clients come, ask, wait and leave as they like.
func TestManyAtOnce(t *testing.T) {
	b := newBed(t)
	stop := make(chan struct{})
	var teller sync.WaitGroup
	teller.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			b.mu.Lock()
			waits := b.waits
			b.mu.Unlock()
			for _, w := range waits {
				w.tell("x\n", i%3 == 0)
			}
		}
	})
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for i := range 50 {
				c := b.dial(t)
				c.send(request("GET", "/k/a?wait", ""))
				if i%2 == 0 {
					io.Copy(io.Discard, c.head().Body)
					c.send(request("GET", "/k/b", ""))
					c.want("plain: GET /k/b ")
				}
				c.Close()
			}
		})
	}
	clients.Wait()
	close(stop)
	teller.Wait()
}
