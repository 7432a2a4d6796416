package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"time"

	"github.com/kvorum/kvorum/internal/histogram"
)

// Form is a load of the v2 API: PUTs of forms, or GETs, over connections of
// HTTP/1.1 that are kept, each with one request under way.
type Form struct {
	Keys  Keys
	Value int  // bytes
	Get   bool // instead of putting
}

// RunForm drives the load as Run does another. Options.Streams and TLS mean
// nothing to it.
func RunForm(ctx context.Context, load Form, o Options) (*Result, error) {
	r := newRun(o)
	load.Keys = load.Keys.filled()
	callers := make([]*formCaller, r.options.Conns)
	loops := make([]func(), len(callers))
	for i := range callers {
		c := &formCaller{run: r, load: load, random: r.random(i)}
		var err error
		if c.net, err = connect(o.addr(i), nil); err != nil {
			return nil, err
		}
		defer c.net.Close()
		c.in = bufio.NewReader(c.net)
		callers[i], loops[i] = c, c.loop
	}
	result, err := r.drive(ctx, loops)
	for _, c := range callers {
		result.Requests += c.done
		result.Latency.Merge(&c.latency)
		if c.wrong != nil {
			result.Errors++
			result.FirstError = c.wrong
		}
	}
	return result, err
}

type formCaller struct {
	run    *run
	load   Form
	random *rand.Rand
	net    net.Conn
	in     *bufio.Reader
	out    []byte

	done    int64
	wrong   error
	latency histogram.Histogram
}

func (c *formCaller) loop() {
	for c.wrong == nil {
		turn, more := c.run.turn()
		if !more {
			return
		}
		began := time.Now()
		if c.wrong = c.ask(turn); c.wrong == nil && c.run.measuring.Load() {
			c.done++
			c.latency.Add(time.Since(began))
		}
	}
}

func (c *formCaller) ask(turn uint64) error {
	l := c.load
	n := c.random.Uint64N(l.Keys.Count)
	if c.run.options.Requests > 0 {
		n = scatter(turn, l.Keys.Count) // every key once
	}
	if l.Get {
		c.out = append(l.Keys.append(append(c.out[:0], "GET /v2/keys/"...), n), " HTTP/1.1\r\nHost: bench\r\n\r\n"...)
	} else {
		c.out = append(l.Keys.append(append(c.out[:0], "PUT /v2/keys/"...), n), " HTTP/1.1\r\nHost: bench\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: "...)
		c.out = strconv.AppendInt(c.out, int64(len("value=")+l.Value), 10)
		c.out = append(c.out, "\r\n\r\nvalue="...)
		for _, b := range valueOf(l.Value, c.random) {
			c.out = append(c.out, 'a'+b&15) // needs no escape
		}
	}
	if err := c.net.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.net.Write(c.out); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	status, size, err := readHead(c.in)
	if err != nil {
		return err
	}
	body, err := c.in.Peek(min(size, 32))
	if err == nil {
		_, err = c.in.Discard(size)
	}
	want := `{"action":"set","node":{"key":"/`
	if l.Get {
		want = `{"action":"get","node":{"key":"/`
	}
	if err != nil || status/100 != 2 || !bytes.Equal(body, []byte(want)) {
		return fmt.Errorf("load: answered %d %q (%v)", status, body, err)
	}
	return nil
}

// readHead reads an answer up to its body, and returns the body's size; of one
// in chunks, 0.
func readHead(in *bufio.Reader) (status, size int, err error) {
	for first := true; ; first = false {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return 0, 0, fmt.Errorf("load: %w", err)
		}
		line = bytes.TrimSuffix(line, []byte("\r\n"))
		name, value, _ := bytes.Cut(line, []byte(" "))
		switch {
		case first:
			if len(value) < 3 || !bytes.Equal(name, []byte("HTTP/1.1")) {
				return 0, 0, fmt.Errorf("load: answered %q", line)
			}
			status, err = strconv.Atoi(string(value[:3]))
		case bytes.Equal(name, []byte("Content-Length:")):
			size, err = strconv.Atoi(string(value))
		case len(line) == 0:
			return status, size, nil
		}
		if err != nil {
			return 0, 0, fmt.Errorf("load: %w", err)
		}
	}
}

// Polls are requests of the v2 API that wait.
type Polls struct{ conns []net.Conn }

// Poll opens so many connections, each of which waits for a key of its own.
func Poll(ctx context.Context, keys Keys, o Options) (*Polls, error) {
	p := &Polls{}
	keys = keys.filled()
	for i := range o.Conns {
		c, err := connect(o.addr(i), nil)
		if err == nil {
			p.conns = append(p.conns, c)
			request := append(keys.append([]byte("GET /v2/keys/"), uint64(i)), "?wait=true HTTP/1.1\r\nHost: bench\r\n\r\n"...)
			_, err = c.Write(request)
		}
		if err == nil {
			err = c.SetReadDeadline(time.Now().Add(patience))
		}
		if err == nil {
			var status int
			if status, _, err = readHead(bufio.NewReaderSize(c, 1024)); err == nil && status != 200 {
				err = fmt.Errorf("load: a poll is answered %d", status)
			}
		}
		if err := errors.Join(err, ctx.Err()); err != nil {
			p.Close()
			return nil, err
		}
	}
	return p, nil
}

// Silent is an error if anybody was told anything.
func (p *Polls) Silent() error {
	var b [1]byte
	for _, c := range p.conns {
		if err := c.SetReadDeadline(time.Now().Add(time.Microsecond)); err != nil {
			return err
		}
		var late net.Error
		if _, err := c.Read(b[:]); !errors.As(err, &late) || !late.Timeout() {
			return fmt.Errorf("load: a poll did not wait: %q (%v)", b, err)
		}
	}
	return nil
}

// Close hangs up.
func (p *Polls) Close() {
	for _, c := range p.conns {
		c.Close()
	}
}
