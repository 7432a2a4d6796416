// Package listen opens the server's doors: sockets for the addresses it was
// given, TLS on those that want it, and one port shared by gRPC, HTTP/1.1 and
// HTTP/2. It decides who may come in, by certificate alone, and never looks at
// what a caller asks for beyond what tells the protocols apart.
//
// D1: whoever Accept returns has passed every rule of TLS, also when a session
// is resumed; there is one way in for all ports.
// D2: a caller that is slow or silent never delays another, and never stays in
// a handshake longer than its deadline.
// D3: after Close returns, no goroutine of the listener is left.
package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/kvorum/kvorum/metric"
)

// Options tells how to listen. All but Credentials may be left out.
type Options struct {
	// Credentials serve https and unixs addresses.
	Credentials *Credentials

	ReusePort    bool // set SO_REUSEPORT
	ReuseAddress bool // set SO_REUSEADDR on systems where Go does not do so anyway

	HandshakeTimeout time.Duration // default 10 s
	PendingMax       int           // callers in handshake at once, half of them from one address; default 4096

	// Received and Sent count the bytes of all callers, those of TLS included.
	Received, Sent *metric.Counter

	// Rejected hears of each caller that did not get in, and of failures to
	// accept any (with the address of the socket). It is called from several
	// goroutines at once.
	Rejected func(remote net.Addr, err error)
}

// Listener yields the callers of all its sockets, ready to be read: under TLS
// after the handshake. It is a net.Listener.
type Listener struct {
	// Immutable after Listen.
	options Options
	sockets []net.Listener
	ready   chan net.Conn
	pending *pending
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc

	running sync.WaitGroup
}

// door says what may be spoken on a socket.
type door struct{ plain, secure bool }

// Listen opens one socket for each address of urls. An address that is listed
// both with and without TLS takes either. The caller closes the listener.
func Listen(ctx context.Context, urls []url.URL, o Options) (*Listener, error) {
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = 10 * time.Second
	}
	if o.PendingMax == 0 {
		o.PendingMax = 4096
	}
	if o.Rejected == nil {
		o.Rejected = func(net.Addr, error) {}
	}

	type address struct{ network, name string }
	doors := make(map[address]door)
	var order []address
	for _, u := range urls {
		network, name, secure, err := Address(u)
		if err != nil {
			return nil, err
		}
		if secure && o.Credentials == nil {
			return nil, fmt.Errorf("listen: %s needs a certificate", u.String())
		}
		a := address{network, name}
		if !slices.Contains(order, a) {
			order = append(order, a)
		}
		d := doors[a]
		doors[a] = door{d.plain || !secure, d.secure || secure}
	}
	if len(order) == 0 {
		return nil, errors.New("listen: no address")
	}

	l := &Listener{options: o, ready: make(chan net.Conn), pending: newPending(o.PendingMax)}
	for _, a := range order {
		socket, err := open(ctx, a.network, a.name, o)
		if err != nil {
			for _, s := range l.sockets {
				s.Close()
			}
			return nil, err
		}
		l.sockets = append(l.sockets, socket)
	}
	l.ctx, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
	for i, a := range order {
		l.running.Go(func() { l.accept(l.sockets[i], doors[a]) })
	}
	return l, nil
}

// Dial connects to the URL of an address: in clear text, or where it asks for TLS by
// secured, which gets what net.Dial would.
func Dial(ctx context.Context, address string, secured func(ctx context.Context, network, name string) (net.Conn, error)) (net.Conn, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	network, name, secure, err := Address(*u)
	switch {
	case err != nil:
		return nil, err
	case secure:
		return secured(ctx, network, name)
	}
	return new(net.Dialer).DialContext(ctx, network, name)
}

// Address returns what to listen on, or to dial, for u: the host and port, or
// for unix addresses host and path together as the name of a file, relative
// to the working directory unless the host is empty.
func Address(u url.URL) (network, name string, secure bool, err error) {
	switch u.Scheme {
	case "http", "https":
		return "tcp", u.Host, u.Scheme == "https", nil
	case "unix", "unixs":
		return "unix", u.Host + u.Path, u.Scheme == "unixs", nil
	}
	return "", "", false, fmt.Errorf("listen: %s: want http, https, unix or unixs", u.String())
}

func open(ctx context.Context, network, name string, o Options) (net.Listener, error) {
	if network == "unix" {
		if err := removeStale(ctx, name); err != nil {
			return nil, err
		}
	}
	lc := net.ListenConfig{Control: func(network, _ string, raw syscall.RawConn) error {
		if network == "unix" {
			return nil
		}
		return reuse(raw, o.ReusePort, o.ReuseAddress)
	}}
	socket, err := lc.Listen(ctx, network, name)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listen: %s is in use%s: %w", name, holder(name), err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return socket, nil
}

// removeStale deletes the socket file that a killed process left behind. A
// file that is no socket, or that somebody answers on, stays.
func removeStale(ctx context.Context, name string) error {
	info, err := os.Lstat(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil && info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("listen: %s exists and is no socket", name)
	}
	var d net.Dialer
	if c, err := d.DialContext(ctx, "unix", name); err == nil {
		c.Close()
		return fmt.Errorf("listen: %s is in use: %w", name, syscall.EADDRINUSE)
	}
	if err := os.Remove(name); err != nil {
		return fmt.Errorf("listen: remove the socket of a former process: %w", err)
	}
	return nil
}

// Accept waits for the next caller.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ready:
		return c, nil
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Addr returns the first address.
func (l *Listener) Addr() net.Addr { return l.sockets[0].Addr() }

// Addrs returns all addresses, in the order given.
func (l *Listener) Addrs() []net.Addr {
	all := make([]net.Addr, len(l.sockets))
	for i, s := range l.sockets {
		all[i] = s.Addr()
	}
	return all
}

// Close closes the sockets and all callers that nobody has accepted, and waits
// for them to be gone. Accepted ones are not touched.
func (l *Listener) Close() error {
	l.cancel()
	var errs []error
	for _, s := range l.sockets {
		if err := s.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	l.running.Wait()
	return errors.Join(errs...)
}

const (
	restMin = 5 * time.Millisecond
	restMax = time.Second
)

// accept takes callers from one socket. Whatever may wait for the caller
// happens on a goroutine of its own.
func (l *Listener) accept(socket net.Listener, d door) {
	rest := restMin
	for {
		c, err := socket.Accept()
		if l.ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return
		}
		if err != nil {
			// Mostly too many open files: others will close theirs.
			l.options.Rejected(socket.Addr(), fmt.Errorf("listen: accept: %w", err))
			select {
			case <-time.After(rest):
			case <-l.ctx.Done():
				return
			}
			rest = min(2*rest, restMax)
			continue
		}
		rest = restMin
		c = newSocket(counted{Conn: c, received: l.options.Received, sent: l.options.Sent})
		if !d.secure {
			l.deliver(c)
			continue
		}

		release, err := l.pending.enter(l.ctx, c.RemoteAddr())
		if err != nil {
			c.Close()
			l.options.Rejected(c.RemoteAddr(), err)
			continue
		}
		l.running.Go(func() {
			entered, err := l.welcome(c, d)
			release()
			if err != nil {
				c.Close()
				if l.ctx.Err() == nil {
					l.options.Rejected(c.RemoteAddr(), err)
				}
				return
			}
			l.deliver(entered)
		})
	}
}

// deliver hands c to whoever accepts.
func (l *Listener) deliver(c net.Conn) {
	select {
	case l.ready <- c:
	case <-l.ctx.Done():
		c.Close()
	}
}

// recordHandshake is the first byte of every TLS connection, and of no text.
const recordHandshake = 0x16

// welcome shakes hands with c, unless plain text is allowed and c speaks it.
func (l *Listener) welcome(c net.Conn, d door) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(l.ctx, l.options.HandshakeTimeout)
	defer cancel()
	if d.plain {
		var first [1]byte
		stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
		_, err := io.ReadFull(c, first[:])
		if !stop() {
			return nil, fmt.Errorf("listen: caller said nothing: %w", context.Cause(ctx))
		}
		if err != nil {
			return nil, err
		}
		c = &replay{Conn: c, head: first[:]}
		if first[0] != recordHandshake {
			return c, nil
		}
	}
	secured := tls.Server(c, l.options.Credentials.Server())
	if err := secured.HandshakeContext(ctx); err != nil {
		answerPlain(err)
		return nil, err
	}
	return secured, nil
}

// answerPlain tells a browser or curl that forgot the s of https what is
// wrong; all it would see otherwise is a closed connection.
func answerPlain(err error) {
	var text tls.RecordHeaderError
	if !errors.As(err, &text) || text.Conn == nil {
		return
	}
	switch string(text.RecordHeader[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "DELET":
		text.Conn.SetWriteDeadline(time.Now().Add(time.Second))
		io.WriteString(text.Conn, "HTTP/1.0 400 Bad Request\r\n\r\nthis port speaks https, not http\n")
	}
}

// counted is a connection whose bytes are counted.
type counted struct {
	net.Conn
	received, sent *metric.Counter
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.received.Add(uint64(n))
	return n, err
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.sent.Add(uint64(n))
	return n, err
}

// replay is a connection whose first bytes were read already.
type replay struct {
	net.Conn
	head []byte
}

func (c *replay) Read(p []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(p, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

func (c *replay) beneath() net.Conn { return c.Conn }

// beneath returns the connection that was sorted or partly read to make c. It
// must not be read from: some of what it carries was read already.
func beneath(c net.Conn) net.Conn {
	for {
		wrapped, ok := c.(interface{ beneath() net.Conn })
		if !ok {
			return c
		}
		c = wrapped.beneath()
	}
}

// ConnectionState returns what TLS knows of c, also when c is wrapped by this
// package. It returns false when c is in clear text.
func ConnectionState(c net.Conn) (tls.ConnectionState, bool) {
	if secured, ok := beneath(c).(*tls.Conn); ok {
		return secured.ConnectionState(), true
	}
	return tls.ConnectionState{}, false
}

// pending counts callers in handshake, so that a crowd of silent ones costs
// little, and those of one address cannot keep out the rest.
type pending struct {
	all chan struct{} // holds one token for each

	mu struct {
		sync.Mutex
		of map[netip.Addr]int
	}
}

var errCrowded = errors.New("listen: too many handshakes under way from this address")

func newPending(most int) *pending {
	p := &pending{all: make(chan struct{}, most)}
	p.mu.of = make(map[netip.Addr]int)
	return p
}

// enter waits for room for one more and refuses when remote has its share.
func (p *pending) enter(ctx context.Context, remote net.Addr) (release func(), err error) {
	var from netip.Addr // of unix callers: none
	if tcp, ok := remote.(*net.TCPAddr); ok {
		from = tcp.AddrPort().Addr()
	}
	p.mu.Lock()
	crowded := from.IsValid() && p.mu.of[from] >= max(1, cap(p.all)/2)
	if !crowded {
		p.mu.of[from]++
	}
	p.mu.Unlock()
	if crowded {
		return nil, errCrowded
	}
	leave := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.mu.of[from]--; p.mu.of[from] == 0 {
			delete(p.mu.of, from)
		}
	}
	select {
	case p.all <- struct{}{}:
		return func() { leave(); <-p.all }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
