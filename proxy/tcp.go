package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// TCPOptions of a door that forwards connections. Endpoints or Lookup are
// required.
type TCPOptions struct {
	Endpoints []string // host:port; a scheme before it is ignored
	Lookup    func(context.Context) ([]string, error)

	Listen     string        // default 127.0.0.1:23790
	RetryDelay time.Duration // an endpoint that could not be reached is tried again after so long; default 1 min
	Logger     *slog.Logger  // default none

	Listening func(net.Addr) // hears where, once it does; default nobody
}

const dialTimeout = 5 * time.Second

// RunTCP forwards connections to the endpoints in turn until ctx ends. It looks
// into none: TLS and who may do what are between the client and the member.
func RunTCP(ctx context.Context, o TCPOptions) error {
	if o.Listen == "" {
		o.Listen = DefaultListen
	}
	if o.RetryDelay == 0 {
		o.RetryDelay = time.Minute
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	d := &tcpDoor{options: o}
	if err := d.find(ctx); err != nil {
		return err
	}
	var listening net.ListenConfig
	l, err := listening.Listen(ctx, "tcp", o.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if o.Listening != nil {
		o.Listening(l.Addr())
	}
	o.Logger.Info("ready to proxy client requests", "listen-addr", l.Addr().String(), "endpoints", d.addresses())

	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	if o.Lookup != nil {
		running.Go(func() { d.findAgain(ctx) })
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for rest := time.Duration(0); ; {
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil { // mostly too many open files: others will close theirs
			o.Logger.Warn("could not accept", "error", err)
			rest = min(max(2*rest, 5*time.Millisecond), time.Second)
			select {
			case <-time.After(rest):
			case <-ctx.Done():
			}
			continue
		}
		rest = 0
		running.Go(func() { d.forward(ctx, c) })
	}
}

// tcpDoor knows where connections can go.
type tcpDoor struct {
	options TCPOptions

	mu struct {
		sync.Mutex
		endpoints []*endpoint
		turn      int
	}
}

type endpoint struct {
	address string
	rests   time.Time // it could not be reached, and is left alone until then
}

// find makes the endpoints those that were given, or that are found now.
func (d *tcpDoor) find(ctx context.Context) error {
	found := d.options.Endpoints
	if d.options.Lookup != nil {
		var err error
		if found, err = d.options.Lookup(ctx); err != nil {
			return err
		}
	}
	var fresh []*endpoint
	for _, name := range found {
		address := strings.TrimSpace(name)
		if u, err := url.Parse(address); err == nil && u.Host != "" {
			address = u.Host
		}
		if _, _, err := net.SplitHostPort(address); err != nil {
			return fmt.Errorf("endpoint %q: %w", name, err)
		}
		fresh = append(fresh, &endpoint{address: address})
	}
	if len(fresh) == 0 {
		return errors.New("no endpoint is known: --endpoints names them")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, e := range fresh {
		if at := slices.IndexFunc(d.mu.endpoints, func(old *endpoint) bool { return old.address == e.address }); at >= 0 {
			fresh[i] = d.mu.endpoints[at]
		}
	}
	d.mu.endpoints = fresh
	return nil
}

func (d *tcpDoor) findAgain(ctx context.Context) {
	for {
		select {
		case <-time.After(d.options.RetryDelay):
		case <-ctx.Done():
			return
		}
		if err := d.find(ctx); err != nil && ctx.Err() == nil {
			d.options.Logger.Warn("could not look up the endpoints", "error", err)
		}
	}
}

func (d *tcpDoor) addresses() (all []string) {
	for _, e := range d.mu.endpoints {
		all = append(all, e.address)
	}
	return all
}

// next returns the endpoints in the order in which to try them: in turn, and
// those that rest last.
func (d *tcpDoor) next() []*endpoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.turn++
	n := len(d.mu.endpoints)
	var awake, resting []*endpoint
	for i := range n {
		e := d.mu.endpoints[(d.mu.turn+i)%n]
		if time.Now().Before(e.rests) {
			resting = append(resting, e)
		} else {
			awake = append(awake, e)
		}
	}
	return append(awake, resting...)
}

// dial connects to the first endpoint that can be reached.
func (d *tcpDoor) dial(ctx context.Context) (net.Conn, error) {
	var errs []error
	for _, e := range d.next() {
		timed, cancel := context.WithTimeout(ctx, dialTimeout)
		var dialer net.Dialer
		c, err := dialer.DialContext(timed, "tcp", e.address)
		cancel()
		d.mu.Lock()
		if err != nil {
			e.rests = time.Now().Add(d.options.RetryDelay)
		} else {
			e.rests = time.Time{}
		}
		d.mu.Unlock()
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// forward carries one connection until both sides have said all.
func (d *tcpDoor) forward(ctx context.Context, in net.Conn) {
	defer in.Close()
	out, err := d.dial(ctx)
	if err != nil {
		d.options.Logger.Warn("no endpoint can be reached", "error", err)
		return
	}
	defer out.Close()
	stop := context.AfterFunc(ctx, func() {
		in.Close()
		out.Close()
	})
	defer stop()
	var back sync.WaitGroup
	back.Go(func() { carry(in, out) })
	carry(out, in)
	back.Wait()
}

// carry copies until from ends, and tells to. If either breaks, both end.
func carry(to, from net.Conn) {
	_, err := io.Copy(to, from)
	half, ok := to.(interface{ CloseWrite() error })
	if err != nil || !ok || half.CloseWrite() != nil {
		to.Close()
		from.Close()
	}
}
