package v3

import (
	"context"
	"sync"
	"time"

	"github.com/kvorum/kvorum/api/internal/gate"
	"github.com/kvorum/kvorum/rpc"
	"github.com/kvorum/kvorum/state"
)

// party is calls of one client that wait together: writes for what becomes of
// their commands, or gets for the round that makes them linear.
type party struct {
	server *server

	// Owned by who lets calls join, until the party begins.
	came     time.Time // the first
	calls    []called
	commands [][]byte // of writes: one for each call
	kept     []byte   // holds commands or requests
	early    func(int)
	all      func()

	// What there was to wait for.
	outcomes []state.Outcome // of writes
	err      error
}

// called is a call that waits.
type called struct {
	ctx  context.Context
	by   concluder
	in   []byte // the request
	left error  // why it waited no more; nil: it waited to the end
}

// concluder is a method whose calls wait.
type concluder interface {
	// conclude appends the answer to the request in, given what it has waited
	// for. o is nil for gets, and where there is err.
	conclude(ctx context.Context, came time.Time, in, out []byte, o *state.Outcome, err error) ([]byte, error)
	End(ctx context.Context, came time.Time, in []byte, answer int, err error) error
}

// Parties are used again: replicas keep nothing of what has ended.
var parties = sync.Pool{New: func() any { return new(party) }}

func newParty(s *server) *party {
	p := parties.Get().(*party)
	p.server, p.came = s, time.Now()
	return p
}

// keptMax is the largest room for requests that is used again.
const keptMax = 64 << 10

// Free lets the party be used again.
func (p *party) Free() {
	clear(p.calls)
	clear(p.commands)
	kept := p.kept[:0]
	if cap(kept) > keptMax {
		kept = nil
	}
	*p = party{calls: p.calls[:0], commands: p.commands[:0], kept: kept}
	parties.Put(p)
}

// room returns where n bytes can be appended that are kept while the party waits.
func (p *party) room(n int) []byte {
	if cap(p.kept)-len(p.kept) < n {
		p.kept = make([]byte, 0, max(n, min(2*cap(p.kept), keptMax)))
	}
	return p.kept[len(p.kept) : len(p.kept) : len(p.kept)+n]
}

// fill tells that b was appended to what room has returned.
func (p *party) fill(b []byte) { p.kept = p.kept[:len(p.kept)+len(b)] }

// joinGet has a get wait.
func (p *party) joinGet(ctx context.Context, by concluder, in []byte) {
	in = append(p.room(len(in)), in...)
	p.fill(in)
	p.calls = append(p.calls, called{ctx: ctx, by: by, in: in})
}

// joinWrite has a write wait, whose command was appended to room and ends with
// its request.
func (p *party) joinWrite(ctx context.Context, by concluder, command []byte, request int) {
	p.fill(command)
	p.commands = append(p.commands, command)
	p.calls = append(p.calls, called{ctx: ctx, by: by, in: command[len(command)-request:]})
}

// Begin has all wait who have joined.
func (p *party) Begin(early func(int), all func()) {
	p.early, p.all = early, all
	if len(p.commands) > 0 {
		p.server.backend.ProposeAll(p, p.commands)
	} else {
		p.server.backend.BarrierAll(p, len(p.calls))
	}
}

// The party is told by the backend what becomes of it.
var _ gate.Party = (*party)(nil)

func (p *party) Context(i int) context.Context { return p.calls[i].ctx }

func (p *party) Leave(i int, err error) {
	p.calls[i].left = err
	p.early(i)
}

func (p *party) End(outcomes []state.Outcome, err error) {
	p.outcomes, p.err = outcomes, err
	p.all()
}

// And by the server that all can be answered.
var _ rpc.Party = (*party)(nil)

func (p *party) Answer(i int, out []byte) ([]byte, error) {
	c := &p.calls[i]
	err := c.left
	var o *state.Outcome
	if err == nil {
		if err = p.err; err == nil && i < len(p.outcomes) {
			o = &p.outcomes[i]
		}
	}
	before := len(out)
	out, err = c.by.conclude(c.ctx, p.came, c.in, out, o, err)
	return out, c.by.End(c.ctx, p.came, c.in, len(out)-before, err)
}
