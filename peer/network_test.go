package peer

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// proxy is the network between a member and those who call it.
type proxy struct {
	t       *testing.T
	url     string
	l       net.Listener
	target  string
	running sync.WaitGroup
	thawed  atomic.Pointer[chan struct{}] // while set and open, nothing moves

	// meddle sees what callers send: number of the connection, and how much
	// was sent before. It may change it, or end the connection.
	meddle atomic.Pointer[func(conn int, at int64, b []byte) bool]

	mu     sync.Mutex
	conns  []net.Conn
	closed bool
}

func newProxy(t *testing.T, target *node) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	x := &proxy{t: t, l: l, url: "http://" + l.Addr().String(), target: strings.TrimPrefix(target.url, "http://")}
	x.running.Go(x.accept)
	t.Cleanup(func() {
		x.thaw()
		l.Close()
		x.mu.Lock()
		x.closed = true
		x.mu.Unlock()
		x.cut()
		x.running.Wait()
	})
	return x
}

func (x *proxy) accept() {
	for n := 0; ; n++ {
		in, err := x.l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", x.target)
		if err != nil {
			in.Close()
			continue
		}
		x.mu.Lock()
		if x.closed {
			in.Close()
			out.Close()
		}
		x.conns = append(x.conns, in, out)
		x.mu.Unlock()
		x.running.Go(func() { x.pipe(out, in, n, true) })
		x.running.Go(func() { x.pipe(in, out, n, false) })
	}
}

func (x *proxy) pipe(to, from net.Conn, n int, caller bool) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 4096)
	for at := int64(0); ; {
		got, err := from.Read(b)
		if c := x.thawed.Load(); c != nil {
			<-*c
		}
		if f := x.meddle.Load(); f != nil && caller && !(*f)(n, at, b[:got]) {
			from.(*net.TCPConn).SetLinger(0)
			to.(*net.TCPConn).SetLinger(0)
			return
		}
		at += int64(got)
		if _, writeErr := to.Write(b[:got]); err != nil || writeErr != nil {
			return
		}
	}
}

// cut ends all connections, in the middle of whatever they carry.
func (x *proxy) cut() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, c := range x.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			tcp.SetLinger(0)
		}
		c.Close()
	}
	x.conns = nil
}

// freeze keeps all connections open and lets nothing through.
func (x *proxy) freeze() {
	c := make(chan struct{})
	x.thawed.Store(&c)
}

func (x *proxy) thaw() {
	if c := x.thawed.Swap(nil); c != nil {
		close(*c)
	}
}

func (x *proxy) set(f func(conn int, at int64, b []byte) bool) { x.meddle.Store(&f) }

// behind makes a and b members, b reached through a proxy.
func behind(t *testing.T, a, b *node) *proxy {
	x := newProxy(t, b)
	members := []Member{{a.id(), []string{a.url}}, {b.id(), []string{x.url}}}
	a.p.Observe(Membership{Index: 1, Members: members})
	b.p.Observe(Membership{Index: 1, Members: members})
	return x
}

func TestCutConnectionsComeBackWithoutRepeating(t *testing.T) {
	a, b := start(t, 1), start(t, 2)
	x := behind(t, a, b)
	connected(t, a, b)

	var sent uint64
	last := uint64(0)
	got := 0
	take := func() {
		for {
			select {
			case m := <-b.messages:
				if m.GetIndex() <= last {
					t.Fatalf("%d after %d: repeated, or out of order", m.GetIndex(), last)
				}
				last = m.GetIndex()
				got++
				continue
			default:
			}
			return
		}
	}
	for round := range 20 {
		for range 300 {
			sent++
			a.p.Send([]*pb.Message{message(pb.MsgApp, a, b, sent, bytes.Repeat([]byte{1}, 700))})
			if sent%100 == uint64(round) {
				x.cut()
			}
		}
		before := got
		eventually(t, "messages arrive again", func() bool {
			sent++
			a.p.Send([]*pb.Message{message(pb.MsgApp, a, b, sent, nil)})
			take()
			return got > before
		})
	}
	if len(a.lost) == 0 {
		t.Error("nobody was told of what was lost")
	}
	t.Logf("%d of %d arrived over %d cuts", got, sent, 60)
}

func TestHalfOpenConnectionsAreNoticed(t *testing.T) {
	a := start(t, 1, func(o *Options) { o.DialTimeout, o.ReadTimeout = time.Second, time.Second })
	b := start(t, 2)
	x := behind(t, a, b)
	connected(t, a, b)
	x.freeze()
	eventually(t, "the silence is noticed", func() bool { return !a.p.Connected(2) })
	eventually(t, "the other direction is not cut", func() bool { return b.p.Connected(1) })
	eventually(t, "what is sent is said to be lost", func() bool {
		a.p.Send([]*pb.Message{message(pb.MsgHeartbeat, a, b, 1, nil), message(pb.MsgApp, a, b, 1, nil)})
		return a.p.o.Metrics.SentFailures.With("2").Value() > 10
	})
	x.thaw()
	connected(t, a, b)
	eventually(t, "messages arrive again", func() bool {
		a.p.Send([]*pb.Message{message(pb.MsgHeartbeat, a, b, 77, nil)})
		select {
		case m := <-b.messages:
			return m.GetIndex() == 77
		default:
			return false
		}
	})
}

func TestFlippedBitsAreNoticed(t *testing.T) {
	a, b := start(t, 1), start(t, 2)
	x := behind(t, a, b)
	connected(t, a, b)
	entry := bytes.Repeat([]byte("entry"), 100)
	for bit := range 60 {
		before := b.p.o.Metrics.ReceivedFailures.With("1").Value()
		x.set(func(_ int, at int64, p []byte) bool {
			if len(p) > 500 { // no hello, no ping
				p[(bit*37)%len(p)] ^= 1 << (bit % 8)
			}
			return true
		})
		eventually(t, "the damage is noticed", func() bool {
			a.p.Send([]*pb.Message{message(pb.MsgApp, a, b, 9, entry)})
			return b.p.o.Metrics.ReceivedFailures.With("1").Value() > before
		})
		x.set(func(int, int64, []byte) bool { return true })
		connected(t, a, b)
	}
	for {
		select {
		case m := <-b.messages:
			if m.GetIndex() != 9 || len(m.Entries) != 1 || !bytes.Equal(m.Entries[0].Data, entry) {
				t.Fatalf("damage came through: %v", m)
			}
			continue
		default:
		}
		break
	}
}

// Heartbeats pass by entries and by a snapshot that are stuck.
func TestUrgentLaneIsNotDelayed(t *testing.T) {
	const backlog = 100 << 20
	stuck := make(chan struct{})
	a := start(t, 1, func(o *Options) {
		o.QueueBytes = 2 * backlog
		o.WriteSnapshot = func(_ context.Context, _ uint64, w io.Writer) (*pb.SnapshotMetadata, error) {
			_, err := w.Write(pattern(8 << 20))
			<-stuck
			return metadata(9), err
		}
	})
	b := start(t, 2, func(o *Options) {
		deliver := o.Deliver
		o.Deliver = func(m *pb.Message) {
			if m.GetType() == pb.MsgApp {
				<-stuck
			}
			deliver(m)
		}
	})
	defer close(stuck)
	meet(a, b)
	connected(t, a, b)
	entry := make([]byte, 1<<20)
	for i := range uint64(backlog / len(entry)) {
		a.p.Send([]*pb.Message{message(pb.MsgApp, a, b, i, entry)})
	}
	a.p.Send([]*pb.Message{snapshot(a, b, 1, 1)})
	var worst time.Duration
	for i := range 50 {
		began := time.Now()
		a.p.Send([]*pb.Message{message(pb.MsgHeartbeat, a, b, uint64(i), nil)})
		for b.next().GetType() != pb.MsgHeartbeat {
		}
		worst = max(worst, time.Since(began))
	}
	if queued := a.p.Status()[0].QueuedBytes; queued < backlog/4 {
		t.Errorf("the backlog has gone: %d bytes are left", queued)
	}
	t.Logf("worst heartbeat: %v", worst)
	if len(a.sent) > 0 {
		t.Error("the snapshot has ended already")
	}
}

func TestFullQueueDropsTheNewest(t *testing.T) {
	hold := make(chan struct{})
	a := start(t, 1, func(o *Options) { o.QueueBytes = 16 << 20; o.QueueMessages = 50 })
	b := start(t, 2, func(o *Options) {
		deliver := o.Deliver
		o.Deliver = func(m *pb.Message) { <-hold; deliver(m) }
	})
	meet(a, b)
	connected(t, a, b)
	entry := make([]byte, 1<<20)
	sent := uint64(0)
	eventually(t, "the queue is full", func() bool {
		a.p.Send([]*pb.Message{message(pb.MsgApp, a, b, sent, entry)}) // which does not wait
		sent++
		return len(a.lost) > 0
	})
	if queued := a.p.Status()[0].QueuedBytes; queued > 17<<20 {
		t.Errorf("%d bytes wait", queued)
	}
	close(hold)
	for i := range sent - 1 {
		if m := b.next(); m.GetIndex() != i {
			t.Fatalf("%d arrives, want %d", m.GetIndex(), i)
		}
	}
}

func TestAddressesChangeAndAreTriedInTurn(t *testing.T) {
	a, b := start(t, 1), start(t, 2)
	stranger := start(t, 3) // lives where b is thought to live
	const nobody = "http://127.0.0.1:1"
	stranger.p.Observe(Membership{Index: 1, Members: []Member{{ID: 1, URLs: []string{a.url}}, {ID: 3}}})
	b.p.Observe(Membership{Index: 1, Members: []Member{{ID: 1, URLs: []string{a.url}}, {ID: 2}}})
	members := func(urls ...string) []Member { return []Member{{1, []string{a.url}}, {2, urls}} }
	a.p.Observe(Membership{Index: 1, Members: members(nobody, stranger.url)})
	eventually(t, "the wrong member is found out", func() bool {
		s := a.p.Status()[0]
		return s.Err != nil && strings.Contains(s.Err.Error(), WrongMember.String())
	})
	a.p.Observe(Membership{Index: 2, Members: members(nobody, stranger.url, b.url)})
	connected(t, a, b)
	a.p.Send([]*pb.Message{message(pb.MsgHeartbeat, a, b, 5, nil)})
	if m := b.next(); m.GetIndex() != 5 {
		t.Errorf("%v", m)
	}
	if len(stranger.messages) > 0 {
		t.Error("somebody else got a message")
	}
	b.stop()
	eventually(t, "it is gone", func() bool { return !a.p.Connected(2) })
	again := start(t, 2, func(o *Options) { o.Incarnation = 2 })
	again.p.Observe(Membership{Index: 2, Members: members(again.url)})
	a.p.Observe(Membership{Index: 3, Members: members(again.url)})
	connected(t, a, again)
}

func TestWhoMayTalk(t *testing.T) {
	for _, c := range []struct {
		name    string
		caller  func(*Options)
		observe Membership // of the called one
		want    Reason
	}{
		{"another cluster", func(o *Options) { o.Cluster = 0xbad }, Membership{Index: 1, Members: []Member{{ID: 1}, {ID: 2}}}, WrongCluster},
		{"nobody", nil, Membership{Index: 1, Members: []Member{{ID: 2}}}, Unknown},
		{"a former member", nil, Membership{Index: 1, Members: []Member{{ID: 2}}, Removed: []uint64{1}}, Removed},
		{"a former member that knows more", nil, Membership{Members: []Member{{ID: 2}}, Removed: []uint64{1}}, Removed},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := start(t, 1, func(o *Options) {
				if c.caller != nil {
					c.caller(o)
				}
			}), start(t, 2)
			b.p.Observe(c.observe)
			a.p.Observe(Membership{Index: 1, Members: []Member{{ID: 1, URLs: []string{a.url}}, {ID: 2, URLs: []string{b.url}}}})
			var r Reason
			eventually(t, "it is refused", func() bool { r, _ = refused(a.p.Status()[0].Err); return r != 0 })
			if r != c.want {
				t.Errorf("refused because: %v, want %v", r, c.want)
			}
			if c.want == Removed {
				if by := <-a.evicted; by != 2 {
					t.Errorf("told by %d", by)
				}
			} else {
				// Many attempts, one line on each side.
				attempts := a.p.attempts.Load()
				eventually(t, "it goes on trying", func() bool { return a.p.attempts.Load() > attempts+20 })
				if n := strings.Count(a.log.String(), "cannot connect"); n != 1 {
					t.Errorf("the caller logs %d lines:\n%s", n, a.log)
				}
				if n := strings.Count(b.log.String(), "refused a peer"); n != 1 {
					t.Errorf("the called one logs %d lines:\n%s", n, b.log)
				}
				if len(a.evicted) > 0 {
					t.Error("evicted for nothing")
				}
			}
			if b.p.Connected(1) || a.p.Connected(2) {
				t.Error("connected all the same")
			}
		})
	}
}

func TestRemovedMemberIsSentAway(t *testing.T) {
	a, b, c := start(t, 1), start(t, 2), start(t, 3)
	meet(a, b, c)
	connected(t, a, b, c)
	b.p.Observe(Membership{Index: 5, Members: []Member{{1, []string{a.url}}, {2, []string{b.url}}}})
	if by := <-c.evicted; by != 2 {
		t.Errorf("told by %d", by)
	}
	eventually(t, "b does not call it either", func() bool { return !c.p.Connected(2) && !b.p.Connected(3) && len(b.p.Status()) == 1 })
	if !a.p.Connected(3) || !c.p.Connected(1) {
		t.Error("others went too")
	}
	b.p.Send([]*pb.Message{message(pb.MsgHeartbeat, b, c, 1, nil), snapshot(b, c, 1, 1)})
	if b.snapshotEnd() || <-b.lost != 3 {
		t.Error("a message to a removed member is not said to be lost")
	}
}

// A member that was away meets only members it has never heard of.
func TestGuests(t *testing.T) {
	old, fresh := start(t, 1), start(t, 7)
	old.p.Observe(Membership{Index: 10, Members: []Member{{1, []string{old.url}}, {2, []string{"http://127.0.0.1:1"}}}})
	now := []Member{{1, []string{old.url}}, {7, []string{fresh.url}}}
	fresh.p.Observe(Membership{Index: 20, Members: now})
	connected(t, old, fresh)
	fresh.p.Send([]*pb.Message{message(pb.MsgApp, fresh, old, 1, nil)})
	old.next()
	old.p.Send([]*pb.Message{message(pb.MsgAppResp, old, fresh, 1, nil)})
	fresh.next()

	old.p.Observe(Membership{Index: 15, Members: []Member{{1, []string{old.url}}}})
	if !old.p.Connected(7) {
		t.Error("the guest was sent away too early")
	}
	old.p.Observe(Membership{Index: 20, Members: now})
	if !old.p.Connected(7) {
		t.Error("the guest was not taken for what it is")
	}
	old.p.Observe(Membership{Index: 21, Members: now[:1]})
	if by := <-fresh.evicted; by != 1 {
		t.Errorf("told by %d", by)
	}
}

func TestNewerRunReplacesOlder(t *testing.T) {
	b := start(t, 2)
	b.p.Observe(Membership{Index: 1, Members: []Member{{ID: 1}, {ID: 2}}})
	say := func(incarnation, attempt uint64) (net.Conn, *hello) {
		c, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
		must(t, err)
		t.Cleanup(func() { c.Close() })
		h := hello{min: 1, max: 9, lane: Log, cluster: cluster, from: 1, to: 2, incarnation: incarnation, attempt: attempt}
		_, err = c.Write(h.append(nil))
		must(t, err)
		answer, err := readHello(c)
		must(t, err)
		return c, answer
	}
	closed := func(c net.Conn) bool {
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err := c.Read(make([]byte, 1))
		return err != nil && !os.IsTimeout(err)
	}
	first, answer := say(5, 3)
	if answer.refusal != 0 || answer.attempt != 3 {
		t.Fatalf("refused: %v", answer.refusal)
	}
	for _, late := range [][2]uint64{{5, 3}, {5, 2}, {4, 9}} {
		if _, answer := say(late[0], late[1]); answer.refusal != Outdated {
			t.Errorf("run %d attempt %d: %v", late[0], late[1], answer.refusal)
		}
	}
	if closed(first) {
		t.Error("an old connection has displaced a new one")
	}
	if _, answer := say(6, 1); answer.refusal != 0 {
		t.Errorf("a new run: %v", answer.refusal)
	}
	wantClosed(t, "the older run", first)
}

// What an old connection still has to deliver comes before a new one begins.
func TestOldConnectionEndsBeforeTheNewBegins(t *testing.T) {
	hold, entered := make(chan struct{}), make(chan struct{}, 1)
	a := start(t, 1, func(o *Options) { o.DialTimeout = 100 * time.Millisecond })
	b := start(t, 2, func(o *Options) {
		deliver := o.Deliver
		o.Deliver = func(m *pb.Message) {
			if m.GetIndex() == 1 {
				entered <- struct{}{}
				<-hold
			}
			deliver(m)
		}
	})
	x := behind(t, a, b)
	a.p.Send([]*pb.Message{message(pb.MsgApp, a, b, 1, nil)})
	<-entered
	x.cut()
	attempts := a.p.attempts.Load()
	eventually(t, "a new connection is tried", func() bool {
		a.p.Send([]*pb.Message{message(pb.MsgApp, a, b, 2, nil)})
		return a.p.attempts.Load() >= attempts+3
	})
	if len(b.messages) > 0 {
		t.Error("a new connection's message has overtaken an old one's")
	}
	close(hold)
	if m := b.next(); m.GetIndex() != 1 {
		t.Errorf("%d comes first", m.GetIndex())
	}
}

func TestNonsenseOnThePort(t *testing.T) {
	b := start(t, 2)
	b.p.Observe(Membership{Index: 1, Members: []Member{{ID: 1}, {ID: 2}}})
	address := strings.TrimPrefix(b.url, "http://")
	good := hello{min: 1, max: 1, lane: Log, cluster: cluster, from: 1, to: 2, incarnation: 1, attempt: 1}
	future := good
	future.min, future.max = 7, 9
	strange := good
	strange.lane = 9
	self := good
	self.from, self.membership = 2, 99
	huge := good.append(nil)
	binary.BigEndian.PutUint32(huge[8:], 1<<31)
	flipped := good.append(nil)
	flipped[30] ^= 4

	for _, c := range []struct {
		name string
		say  []byte
		want string // in the answer, or "" for none
	}{
		{"HTTP", []byte("GET /version HTTP/1.1\r\n\r\n"), ""},
		{"TLS", []byte{0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0}, ""},
		{"magic of another time", []byte("\x8bkvpr\r\n\x01aaaaaaaa"), ""},
		{"huge hello", huge, ""},
		{"flipped bit", flipped, ""},
		{"another version", future.append(nil), Incompatible.String()},
		{"no such lane", strange.append(nil), Malformed.String()},
		{"this member itself", self.append(nil), Unknown.String()},
	} {
		conn, err := net.Dial("tcp", address)
		must(t, err)
		_, err = conn.Write(c.say)
		must(t, err)
		conn.SetReadDeadline(time.Now().Add(patience))
		answer, err := readHello(conn)
		if os.IsTimeout(err) {
			t.Errorf("%s: the connection stays", c.name)
		}
		if c.want == "" && err == nil || c.want != "" && (err != nil || answer.refusal.String() != c.want) {
			t.Errorf("%s: answer %+v, %v", c.name, answer, err)
		}
		conn.Close()
	}

}

// Callers that say nothing, or a byte now and then, hold few places, and not for
// long.
func TestSlowCallers(t *testing.T) {
	b := start(t, 2, func(o *Options) { o.ConnectionsMax = 3; o.DialTimeout = 300 * time.Millisecond })
	b.p.Observe(Membership{Index: 1, Members: []Member{{ID: 1}, {ID: 2}}})
	h := hello{min: 1, max: 1, lane: Log, cluster: cluster, from: 1, to: 2, incarnation: 1, attempt: 1}
	var slow []net.Conn
	for _, said := range []int{0, 3, 20} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
		must(t, err)
		defer conn.Close()
		slow = append(slow, conn)
		for _, one := range h.append(nil)[:said] {
			if _, err := conn.Write([]byte{one}); err != nil {
				break // it was closed already
			}
		}
	}
	a := start(t, 1)
	a.p.Observe(Membership{Index: 1, Members: []Member{{1, []string{a.url}}, {2, []string{b.url}}}})
	eventually(t, "a member gets in", func() bool { return a.p.Connected(2) })
	for _, conn := range slow {
		wantClosed(t, "a slow caller", conn)
	}
}

// wantClosed waits until the other side closes a connection on which it says
// nothing.
func wantClosed(t *testing.T, what string, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("%s may stay: %v", what, err)
	}
}

// A member does not believe what its own connection does not vouch for.
func TestForeignMessages(t *testing.T) {
	b := start(t, 2)
	b.p.Observe(Membership{Index: 1, Members: []Member{{ID: 1}, {ID: 2}, {ID: 3}}})
	one, three := &node{p: &Peers{o: Options{ID: 1}}}, &node{p: &Peers{o: Options{ID: 3}}}
	for i, m := range []*pb.Message{
		message(pb.MsgApp, three, b, 1, nil),
		message(pb.MsgApp, one, three, 1, nil),
		message(pb.MsgHup, one, b, 1, nil),
		message(pb.MsgStorageAppendResp, one, b, 1, nil),
		message(pb.MsgSnap, one, b, 1, nil),
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
		must(t, err)
		defer conn.Close()
		h := hello{min: 1, max: 1, lane: Urgent, cluster: cluster, from: 1, to: 2, incarnation: 1, attempt: uint64(i + 1)}
		w := frameWriter{lane: Urgent, buf: h.append(nil)}
		l := newLane(&member{id: 2, p: &Peers{o: options().withDefaults()}}, Urgent)
		l.encode(&w, m)
		_, err = conn.Write(w.buf)
		must(t, err)
		_, err = readHello(conn)
		must(t, err)
		wantClosed(t, m.String(), conn)
	}
	if len(b.messages) > 0 {
		t.Errorf("delivered: %v", <-b.messages)
	}
}

func TestSnapshotCutAnywhere(t *testing.T) {
	const size = 3*chunkBytes + 100
	a, b := start(t, 1, machine(70, size)), start(t, 2)
	x := behind(t, a, b)
	connected(t, a, b)
	for at := int64(0); ; {
		// Hello, then each frame: cut in its head, and in its payload.
		cut := false
		var mu sync.Mutex
		lane := map[int]bool{} // connections that carry a snapshot
		x.set(func(conn int, from int64, p []byte) bool {
			mu.Lock()
			defer mu.Unlock()
			if from == 0 && len(p) > 20 && p[20] == uint8(Snapshot) {
				lane[conn] = true
			}
			if lane[conn] && from+int64(len(p)) > at {
				cut = true
				return false
			}
			return true
		})
		a.p.Send([]*pb.Message{snapshot(a, b, 5, 60)})
		ok := a.snapshotEnd()
		mu.Lock()
		was := cut
		mu.Unlock()
		if ok == was && ok {
			t.Fatalf("cut at %d, and yet it arrived", at)
		}
		if !was {
			break
		}
		eventually(t, "nothing is left of it", func() bool { f, _ := os.ReadDir(b.dir); return len(f) == 0 })
		at += 9000
	}
	b.next()
	got, err := os.ReadFile(<-b.files)
	must(t, err)
	if !bytes.Equal(got, pattern(size)) || len(b.files) > 0 || len(b.messages) > 0 {
		t.Error("it did not arrive once and whole")
	}
}

func TestNewerSnapshotReplacesOlder(t *testing.T) {
	var calls atomic.Int64
	began := make(chan struct{}, 10)
	slow := func(o *Options) {
		o.WriteSnapshot = func(ctx context.Context, index uint64, w io.Writer) (*pb.SnapshotMetadata, error) {
			n := calls.Add(1)
			for range 3 {
				if _, err := w.Write(make([]byte, chunkBytes)); err != nil {
					return nil, err
				}
			}
			began <- struct{}{}
			if n == 1 {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return metadata(index), nil
		}
	}
	t.Run("from the same member", func(t *testing.T) {
		calls.Store(0)
		a, b := start(t, 1, slow), start(t, 2)
		meet(a, b)
		a.p.Send([]*pb.Message{snapshot(a, b, 5, 60)})
		<-began
		a.p.Send([]*pb.Message{snapshot(a, b, 6, 90)})
		if m := b.next(); m.GetTerm() != 6 || m.GetSnapshot().GetMetadata().GetIndex() != 90 {
			t.Errorf("%v", m)
		}
		if !a.snapshotEnd() || len(a.sent) > 0 {
			t.Error("the one that was replaced is reported")
		}
		wantFiles(t, b.dir, SnapshotFile(metadata(90)))
	})
	t.Run("from the next leader", func(t *testing.T) {
		calls.Store(0)
		a, b, c := start(t, 1, slow), start(t, 2), start(t, 3, machine(90, 10))
		meet(a, b, c)
		a.p.Send([]*pb.Message{snapshot(a, b, 5, 60)})
		<-began
		eventually(t, "it is under way", func() bool { return b.p.o.Metrics.SnapshotReceiving.With("1").Value() == 1 })
		c.p.Send([]*pb.Message{snapshot(c, b, 6, 80)})
		if m := b.next(); m.GetTerm() != 6 || m.GetFrom() != 3 {
			t.Errorf("%v", m)
		}
		if !c.snapshotEnd() || a.snapshotEnd() {
			t.Error("reported wrongly")
		}
	})
	t.Run("not the other way round", func(t *testing.T) {
		calls.Store(0)
		a, b, c := start(t, 1, slow), start(t, 2), start(t, 3, machine(90, 10))
		meet(a, b, c)
		a.p.Send([]*pb.Message{snapshot(a, b, 5, 60)})
		<-began
		eventually(t, "it is under way", func() bool { return b.p.o.Metrics.SnapshotReceiving.With("1").Value() == 1 })
		c.p.Send([]*pb.Message{snapshot(c, b, 4, 80)})
		if c.snapshotEnd() {
			t.Error("an older one has displaced a newer one")
		}
	})
}

func TestSnapshotsThatAreNoGood(t *testing.T) {
	a, b := start(t, 1, machine(50, 10)), start(t, 2)
	meet(a, b)
	a.p.Send([]*pb.Message{snapshot(a, b, 5, 60)})
	if a.snapshotEnd() || len(b.files) > 0 {
		t.Error("an older snapshot than promised was sent")
	}
	eventually(t, "nothing is left of it", func() bool { f, _ := os.ReadDir(b.dir); return len(f) == 0 })

	// Damage that the frames do not show: the sum of all does.
	m := snapshot(a, b, 5, 60)
	for _, c := range []struct {
		bytes, sum, index uint64
		good              bool
	}{{7, 1, 60, true}, {8, 1, 60, false}, {7, 2, 60, false}, {7, 1, 59, false}} {
		meta, err := proto.Marshal(metadata(c.index))
		must(t, err)
		end := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, c.bytes), c.sum)
		if err := checkEnd(append(end, meta...), 7, 1, m); (err == nil) != c.good {
			t.Errorf("%+v: %v", c, err)
		}
		if checkEnd(end, 7, 1, m) == nil || checkEnd(end[:9], 7, 1, m) == nil {
			t.Error("half an end is taken for one")
		}
	}
}

func TestStartSweepsUnfinishedSnapshots(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"received-123.part", SnapshotFile(metadata(4)), "other.part"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600))
	}
	o := options()
	o.ID, o.Dir, o.Deliver = 1, dir, func(*pb.Message) {}
	_, err := New(o)
	must(t, err)
	wantFiles(t, dir, "other.part", SnapshotFile(metadata(4)))
}

func TestStopSendsWhatWaits(t *testing.T) {
	a, b := start(t, 1), start(t, 2)
	meet(a, b)
	connected(t, a, b)
	const count = 2000
	a.p.Send([]*pb.Message{message(pb.MsgAppResp, a, b, 0, nil), message(pb.MsgProp, a, b, 0, nil)})
	b.next() // of each lane
	b.next()
	for i := range uint64(count) {
		a.p.Send([]*pb.Message{message(pb.MsgApp, a, b, i, make([]byte, 2000))})
	}
	a.p.Send([]*pb.Message{message(pb.MsgTimeoutNow, a, b, 0, nil)})
	a.stop()
	seen := map[pb.MessageType]int{}
	for range count + 1 {
		seen[b.next().GetType()]++
	}
	if fmt.Sprint(seen) != fmt.Sprint(map[pb.MessageType]int{pb.MsgApp: count, pb.MsgTimeoutNow: 1}) {
		t.Errorf("arrived: %v", seen)
	}
}
