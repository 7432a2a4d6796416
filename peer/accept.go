package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// inbox is who talks to this member.
type inbox struct {
	// Immutable after init.
	strangers chan struct{} // holds one token for each caller that has not said who it is

	mu struct {
		sync.Mutex
		seats map[seat]*seated
		told  map[string]string // what was logged, by caller
	}
	receiving receiving
}

// seat is where a member's connection of one kind sits. There is only one, so
// that an old connection's messages never come after a new one's.
type seat struct {
	id   uint64
	lane Lane
}

type seated struct {
	incarnation, attempt uint64
	conn                 net.Conn
	done                 chan struct{}            // closed when it delivers no more
	dismissed            *atomic.Pointer[Refused] // why it was told to go
}

func (in *inbox) init(o Options) {
	in.strangers = make(chan struct{}, o.ConnectionsMax)
	in.mu.seats = map[seat]*seated{}
	in.mu.told = map[string]string{}
}

const (
	acceptRestMin = 5 * time.Millisecond
	acceptRestMax = time.Second
)

// accept takes callers until ctx ends.
func (p *Peers) accept(ctx context.Context, listener net.Listener) error {
	var running sync.WaitGroup
	defer running.Wait()
	rest := acceptRestMin
	for {
		conn, err := listener.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return failure("accept", err)
		case err != nil:
			// Mostly too many open files: others will close theirs.
			p.tell("", "cannot accept peers", err)
			select {
			case <-time.After(rest):
			case <-ctx.Done():
			}
			rest = min(2*rest, acceptRestMax)
			continue
		}
		rest = acceptRestMin
		running.Go(func() { p.serve(ctx, conn) })
	}
}

// tell logs what happened with a caller, unless it is what happened last time.
func (p *Peers) tell(caller, what string, err error) {
	text := what + err.Error()
	in := &p.inbox
	in.mu.Lock()
	again := in.mu.told[caller] == text
	if len(in.mu.told) > 1000 {
		clear(in.mu.told)
	}
	in.mu.told[caller] = text
	in.mu.Unlock()
	if !again {
		p.o.Logger.Warn(what, explained("caller", caller, err)...)
	}
}

// serve talks to one caller.
func (p *Peers) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	h, err := p.greet(conn)
	if err != nil {
		if ctx.Err() == nil {
			host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
			p.tell(host, "refused a caller", err)
		}
		return
	}
	caller := hex(h.from)
	own, err := p.welcome(conn, h)
	if err != nil {
		if ctx.Err() == nil {
			p.tell(caller, "refused a peer", err)
		}
		return
	}
	defer own.leave()
	k := p.newLink(conn, h.lane, h, own.dismissed)
	if m := (*p.members.Load())[h.from]; m != nil {
		m.kick() // it is up: what waits for a better time need not
	}

	switch h.lane {
	case Snapshot:
		err = p.receive(ctx, k)
	case Calls:
		err = p.answerCalls(ctx, k, own.leave)
	default:
		err = p.hear(k)
	}
	switch r := own.dismissed.Load(); {
	case ctx.Err() != nil:
	case r != nil:
		k.bye(r)
	case err != nil && !isEOF(err):
		p.o.Metrics.ReceivedFailures.With(caller).Inc()
		p.tell(caller, "lost the connection from a peer", err)
	}
}

// greet reads who is there. Strangers are few at a time and have little time.
func (p *Peers) greet(conn net.Conn) (*hello, error) {
	select {
	case p.inbox.strangers <- struct{}{}:
		defer func() { <-p.inbox.strangers }()
	default:
		return nil, &Refused{Reason: Crowded}
	}
	if err := conn.SetDeadline(time.Now().Add(p.o.DialTimeout)); err != nil {
		return nil, err
	}
	return readHello(conn)
}

// welcome answers a hello, and seats the caller.
func (p *Peers) welcome(conn net.Conn, h *hello) (*ticket, error) {
	no := p.judge(h)
	var own *ticket
	if no == nil {
		own, no = p.inbox.sit(h, conn)
	}
	if no == nil {
		// Who left between the two was not yet seated when all such were sent away.
		if no = p.admit(h); no != nil {
			own.leave()
		}
	}
	answer := p.hello(h.lane, h.from)
	answer.attempt = h.attempt
	if no != nil {
		answer.refusal, answer.text = no.Reason, no.Text
	}
	_, err := conn.Write(answer.append(nil))
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if no != nil {
		return nil, no
	}
	if err != nil {
		own.leave()
		return nil, err
	}
	return own, nil
}

// judge says why a caller may not come in, if so.
func (p *Peers) judge(h *hello) *Refused {
	switch {
	case h.cluster != p.o.Cluster:
		return &Refused{WrongCluster, fmt.Sprintf("%s called %s", hex(h.cluster), hex(p.o.Cluster))}
	case h.to != p.o.ID:
		return &Refused{WrongMember, fmt.Sprintf("%s was wanted, this is %s", hex(h.to), hex(p.o.ID))}
	case !common(h):
		return &Refused{Incompatible, fmt.Sprintf("%d to %d are spoken here", versionMin, versionMax)}
	case h.lane < Urgent || h.lane > Snapshot || h.refusal != 0 || h.from == 0:
		return &Refused{Reason: Malformed}
	}
	return p.admit(h)
}

// ticket is a caller's right to its seat.
type ticket struct {
	*seated
	leave func()
}

// sit gives a caller the seat of its member and lane. Whoever sat there has
// delivered its last message when sit returns.
func (in *inbox) sit(h *hello, conn net.Conn) (*ticket, *Refused) {
	s := seat{h.from, h.lane}
	own := &seated{
		incarnation: h.incarnation, attempt: h.attempt, conn: conn,
		done: make(chan struct{}), dismissed: new(atomic.Pointer[Refused]),
	}
	in.mu.Lock()
	before := in.mu.seats[s]
	if before != nil && (h.incarnation < before.incarnation || h.incarnation == before.incarnation && h.attempt <= before.attempt) {
		in.mu.Unlock()
		return nil, &Refused{Reason: Outdated}
	}
	in.mu.seats[s] = own
	in.mu.Unlock()
	if before != nil {
		before.conn.Close()
		<-before.done
	}
	return &ticket{own, sync.OnceFunc(func() { close(own.done) })}, nil
}

// review sends those away who are members no more.
func (in *inbox) review(p *Peers) {
	members := *p.members.Load()
	in.mu.Lock()
	defer in.mu.Unlock()
	for s, who := range in.mu.seats {
		if members[s.id] != nil {
			continue
		}
		p.mu.Lock()
		reason := Unknown
		if p.mu.removed[s.id] {
			reason = Removed
		}
		p.mu.Unlock()
		who.dismissed.Store(&Refused{Reason: reason})
		who.conn.SetReadDeadline(time.Unix(1, 0)) // wakes its reader, which says goodbye
		delete(in.mu.seats, s)
	}
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) }

// hear delivers the messages of a connection until it ends.
func (p *Peers) hear(k *link) error {
	for {
		t, payload, err := k.in.next()
		if err != nil {
			return err
		}
		switch t {
		case frameMessage:
			m := new(pb.Message)
			if err := proto.Unmarshal(payload, m); err != nil {
				return failure("decode message", err)
			}
			if !foreign(m) || m.GetFrom() != k.id || m.GetTo() != p.o.ID {
				return fmt.Errorf("peer: %s from %s to %s on a connection of %s: %w",
					m.GetType(), hex(m.GetFrom()), hex(m.GetTo()), hex(k.id), errFrame)
			}
			p.o.Deliver(m)
		case framePing:
			if err := k.pong(payload); err != nil {
				return err
			}
		default:
			return fmt.Errorf("peer: frame of type %d: %w", t, errFrame)
		}
	}
}
