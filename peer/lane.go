package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// member is another member, with all that is on its way there.
type member struct {
	// Immutable.
	p         *Peers
	id        uint64
	lanes     [3]*lane // urgent, log, calls
	snapshots *outgoing
	gone      chan struct{} // closed when it has left

	mu struct {
		sync.Mutex
		urls    []string
		good    string // the address that worked last
		guest   uint64 // index of the membership it claims to be of; 0: it is known here
		left    bool
		active  time.Time
		trip    time.Duration
		trips   Trips
		lost    uint64
		ahead   time.Duration
		version string
		err     error
		told    string // what was logged of err
	}
}

func newMember(p *Peers, id uint64) *member {
	m := &member{p: p, id: id, gone: make(chan struct{})}
	for i, kind := range []Lane{Urgent, Log, Calls} {
		m.lanes[i] = newLane(m, kind)
	}
	m.snapshots = &outgoing{to: m, wake: make(chan struct{}, 1)}
	p.o.Metrics.Known.With(hex(p.o.ID), hex(id)).Set(1)
	p.o.Metrics.Active.With(hex(p.o.ID), hex(id)).Set(0)
	return m
}

func (m *member) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var running sync.WaitGroup
	for _, l := range m.lanes {
		running.Go(func() { l.run(ctx) })
	}
	running.Go(func() { m.snapshots.run(ctx) })
	select {
	case <-m.gone:
		cancel()
	case <-ctx.Done():
	}
	running.Wait()
}

// observe tells where the member is, and whether it is a guest.
func (m *member) observe(urls []string, guest uint64) {
	m.mu.Lock()
	changed := !slices.Equal(m.mu.urls, urls)
	m.mu.urls, m.mu.guest = slices.Clone(urls), guest
	m.mu.Unlock()
	if changed {
		m.kick()
	}
}

func (m *member) guestAsOf() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.guest
}

// leave ends all that goes there.
func (m *member) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.mu.left {
		m.mu.left = true
		close(m.gone)
		own, other := hex(m.p.o.ID), hex(m.id)
		m.p.o.Metrics.Known.Drop(own, other)
		m.p.o.Metrics.Active.Drop(own, other)
	}
}

// showActive sets the gauge, which leave has dropped for good. The caller holds
// mu.
func (m *member) showActive(n int64) {
	if !m.mu.left {
		m.p.o.Metrics.Active.With(hex(m.p.o.ID), hex(m.id)).Set(n)
	}
}

// kick has lanes that wait for a better time try now.
func (m *member) kick() {
	for _, l := range m.lanes {
		select {
		case l.kicked <- struct{}{}:
		default: // it will
		}
	}
}

func (m *member) status() Status {
	s := Status{ID: m.id}
	for _, l := range m.lanes {
		l.mu.Lock()
		s.QueuedBytes += l.mu.bytes
		l.mu.Unlock()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s.URLs, s.Active = slices.Clone(m.mu.urls), m.mu.active
	s.RoundTrip, s.ClockAhead = m.mu.trip, m.mu.ahead
	s.Trips, s.Lost = m.mu.trips, m.mu.lost
	s.Version, s.Err = m.mu.version, m.mu.err
	return s
}

// send queues a message on its lane.
func (m *member) send(message *pb.Message) {
	l := m.lanes[laneOf(message.GetType())-Urgent]
	if !l.put(item{message: message, size: sizeOf(message)}) {
		m.lost(1)
	}
}

// lost counts messages that will not arrive, and tells raft.
func (m *member) lost(n int) {
	m.p.o.Metrics.SentFailures.With(hex(m.id)).Add(uint64(n))
	m.mu.Lock()
	m.mu.lost += uint64(n)
	m.mu.Unlock()
	m.p.o.Lost(m.id)
}

// sizeOf estimates what a message takes in memory.
func sizeOf(m *pb.Message) int {
	n := 64 + len(m.Context)
	for _, e := range m.Entries {
		n += 32 + len(e.Data)
	}
	return n
}

// addresses returns where to look, best first.
func (m *member) addresses() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := slices.Clone(m.mu.urls)
	if i := slices.Index(all, m.mu.good); i > 0 {
		all = slices.Insert(slices.Delete(all, i, i+1), 0, m.mu.good)
	}
	return all
}

var errNoAddress = errors.New("peer: no address is known")

// connect tries the member's addresses in turn.
func (m *member) connect(ctx context.Context, lane Lane) (*link, error) {
	err := errNoAddress
	for i, address := range m.addresses() {
		l, dialErr := m.dial(ctx, address, lane)
		if dialErr == nil {
			m.mu.Lock()
			m.mu.good, m.mu.version = address, l.server
			m.mu.Unlock()
			return l, nil
		}
		dialErr = failure(address, dialErr)
		if i == 0 {
			err = dialErr
		} else {
			err = errors.Join(err, dialErr)
		}
		if ctx.Err() != nil {
			break
		}
	}
	if r, ok := refused(err); ok && r == Removed {
		m.p.evicted.Do(func() { m.p.o.Evicted(m.id) })
	}
	return nil, err
}

func (m *member) dial(ctx context.Context, address string, lane Lane) (_ *link, err error) {
	ctx, cancel := context.WithTimeout(ctx, m.p.o.DialTimeout)
	defer cancel()
	conn, err := m.p.o.Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	late := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer late()

	own := m.p.hello(lane, m.id)
	own.attempt = m.p.attempts.Add(1)
	if _, err := conn.Write(own.append(nil)); err != nil {
		return nil, err
	}
	answer, err := readHello(conn)
	if err != nil {
		return nil, err
	}
	switch {
	case answer.cluster != m.p.o.Cluster:
		return nil, &Refused{WrongCluster, fmt.Sprintf("%s is there", hex(answer.cluster))}
	case answer.from != m.id:
		return nil, &Refused{WrongMember, fmt.Sprintf("%s is there", hex(answer.from))}
	case answer.refusal != 0:
		return nil, &Refused{answer.refusal, answer.text}
	case answer.to != m.p.o.ID || answer.attempt != own.attempt:
		return nil, &Refused{Malformed, "the answer is for somebody else"}
	case !common(answer):
		return nil, &Refused{Incompatible, fmt.Sprintf("%d to %d there", answer.min, answer.max)}
	}
	if !late() {
		return nil, context.Cause(ctx)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return m.p.newLink(conn, lane, answer, nil), nil
}

func common(h *hello) bool {
	return h.min <= h.max && h.min <= versionMax && h.max >= versionMin
}

func dialPlain(ctx context.Context, address string) (net.Conn, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "http" {
		return nil, fmt.Errorf("%s: want http", address)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", u.Host)
}

// item waits on a lane.
type item struct {
	message *pb.Message
	call    *call
	size    int
}

// lane is one connection to a member, and what waits for it.
type lane struct {
	// Immutable.
	to     *member
	kind   Lane
	wake   chan struct{} // holds one: something waits
	kicked chan struct{} // holds one: try to connect now

	// Owned by the sender.
	left  []item // taken from the queue, not yet written
	next  int    // of left
	spare []item

	mu struct {
		sync.Mutex
		queue   []item
		count   int // of the queue and what is left
		bytes   int
		down    bool // there is no connection, and the last attempt to get one was in vain
		pending map[uint64]*call
	}
}

func newLane(m *member, kind Lane) *lane {
	l := &lane{to: m, kind: kind, wake: make(chan struct{}, 1), kicked: make(chan struct{}, 1)}
	l.mu.pending = map[uint64]*call{}
	return l
}

// put queues an item unless there is no room, or no hope. It is the newest that
// is dropped: what is queued already makes no sense with a gap in it, and raft
// closes the gap behind it when it is told.
func (l *lane) put(it item) bool {
	o := &l.to.p.o
	l.mu.Lock()
	if l.mu.down || l.mu.count >= o.QueueMessages || l.mu.count > 0 && l.mu.bytes+it.size > o.QueueBytes {
		l.mu.Unlock()
		return false
	}
	l.mu.queue = append(l.mu.queue, it)
	l.mu.count++
	l.mu.bytes += it.size
	first := len(l.mu.queue) == 1
	l.mu.Unlock()
	if first {
		select {
		case l.wake <- struct{}{}:
		default: // it is awake
		}
	}
	return true
}

// run keeps the lane connected until ctx ends.
func (l *lane) run(ctx context.Context) {
	o := &l.to.p.o
	backoff := o.BackoffMin
	for {
		if l.kind == Calls && !l.wanted(ctx) {
			break
		}
		began := time.Now()
		k, err := l.to.connect(ctx, l.kind)
		connected := err == nil
		if connected {
			began = time.Now()
			l.up(k)
			err = l.converse(ctx, k)
			l.broken(ctx, err)
		}
		if ctx.Err() != nil {
			break
		}
		if !connected {
			l.giveUp(err)
		}
		if connected && time.Since(began) > backoff {
			backoff = o.BackoffMin
			continue
		}
		if !l.rest(ctx, backoff) {
			break
		}
		backoff = min(2*backoff, o.BackoffMax)
		if r, ok := refused(err); ok && r == Removed {
			backoff = 10 * o.BackoffMax // nobody will change their mind
		}
	}
	l.discard(errUnreachable, true)
}

// wanted waits until there is something to send.
func (l *lane) wanted(ctx context.Context) bool {
	l.mu.Lock()
	l.mu.down = false
	waiting := l.mu.count > 0
	l.mu.Unlock()
	if waiting {
		return true
	}
	select {
	case <-l.wake:
		return true
	case <-ctx.Done():
		return false
	}
}

func (l *lane) rest(ctx context.Context, backoff time.Duration) bool {
	select { // a kick from before the last attempt is spent
	case <-l.kicked:
	default:
	}
	timer := time.NewTimer(backoff/2 + time.Duration(l.to.p.o.Jitter()*float64(backoff/2)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.kicked:
	case <-ctx.Done():
		return false
	}
	return true
}

// up notes a new connection.
func (l *lane) up(k *link) {
	l.mu.Lock()
	l.mu.down = false
	l.mu.Unlock()
	if l.kind != Urgent {
		return
	}
	m := l.to
	m.mu.Lock()
	m.mu.active, m.mu.err, m.mu.told = time.Now(), nil, ""
	m.showActive(1)
	m.mu.Unlock()
	m.p.o.Logger.Info("peer became active", "peer-id", hex(m.id), "server-version", k.server)
}

// broken notes the end of a connection.
func (l *lane) broken(ctx context.Context, err error) {
	m := l.to
	if l.kind == Urgent {
		m.mu.Lock()
		m.mu.active, m.mu.err = time.Time{}, err
		m.showActive(0)
		m.mu.Unlock()
	}
	if ctx.Err() != nil {
		return
	}
	if l.kind == Urgent {
		m.p.o.Metrics.Disconnected.With(hex(m.p.o.ID), hex(m.id)).Inc()
		m.p.o.Logger.Warn("peer became inactive", "peer-id", hex(m.id), "error", err)
	}
	m.p.o.Lost(m.id) // what the connection had taken may not have arrived
}

// giveUp notes that there is no connection to be had, and drops what waits: raft
// has newer things to say by the time there is one.
func (l *lane) giveUp(err error) {
	l.discard(fmt.Errorf("%w: %w", errUnreachable, err), true)
	m := l.to
	if l.kind != Urgent {
		return
	}
	m.mu.Lock()
	m.mu.err = err
	text := err.Error()
	if r, ok := refused(err); ok {
		text = r.String() // the rest may differ each time
	}
	again := text == m.mu.told
	m.mu.told = text
	m.mu.Unlock()
	if !again {
		m.p.o.Logger.Warn("cannot connect to peer", explained("peer-id", hex(m.id), err)...)
	}
}

// discard drops all that waits.
func (l *lane) discard(why error, down bool) {
	l.mu.Lock()
	queue := l.mu.queue
	l.mu.queue = nil
	l.mu.count, l.mu.bytes, l.mu.down = 0, 0, down
	l.mu.Unlock()
	messages := 0
	for _, it := range append(l.left[l.next:], queue...) {
		if it.call != nil {
			it.call.end(nil, why)
		} else {
			messages++
		}
	}
	l.left, l.next, l.spare = nil, 0, nil
	if messages > 0 {
		l.to.lost(messages)
	}
}

var errHungUp = errors.New("peer: the other side closed the connection")

// converse sends what comes until the connection breaks or ctx ends, in which
// case it sends what waits.
func (l *lane) converse(ctx context.Context, k *link) error {
	ended := make(chan struct{})
	var readErr error
	go func() {
		defer close(ended)
		readErr = l.listen(k)
		k.conn.Close() // a writer that is stuck must end too
	}()
	writeErr := l.speak(ctx, k, ended)
	if writeErr == nil && ctx.Err() != nil {
		l.drain(k, ended)
	}
	k.conn.Close()
	<-ended
	l.hangUp()
	if writeErr != nil && (readErr == nil || errors.Is(readErr, net.ErrClosed)) {
		return writeErr
	}
	return readErr
}

func (l *lane) speak(ctx context.Context, k *link, ended <-chan struct{}) error {
	interval := l.to.p.o.PingInterval
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	var pinged time.Time
	for {
		now := time.Now()
		ping := now.Sub(pinged) >= interval-interval/8
		if ping {
			pinged = now
		}
		more, err := l.sendSome(k, ping, now)
		if err != nil {
			return err
		}
		if more {
			select {
			case <-ended:
				return nil
			case <-ctx.Done():
				return nil
			default:
			}
			continue
		}
		select {
		case <-l.wake:
		case <-ticker.C:
		case <-ended:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// drain sends what waits, and lets the other side read all of it: closing with
// something unread here would tear down what is still on its way there.
func (l *lane) drain(k *link, ended <-chan struct{}) {
	late := time.AfterFunc(l.to.p.o.DrainTime, func() { k.conn.Close() })
	defer late.Stop()
	for more := true; more; {
		var err error
		if more, err = l.sendSome(k, false, time.Time{}); err != nil {
			return
		}
	}
	if half, ok := k.conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		<-ended
	}
}

// sendSome writes a batch of what waits, and says whether there is more.
func (l *lane) sendSome(k *link, ping bool, now time.Time) (more bool, err error) {
	if l.next == len(l.left) {
		clear(l.left)
		l.spare, l.left, l.next = l.left[:0], nil, 0
		l.mu.Lock()
		l.left, l.mu.queue = l.mu.queue, l.spare
		l.mu.Unlock()
	}
	messages, items, bytes := 0, 0, 0
	err = k.write(func(w *frameWriter) {
		if ping {
			k.ping(w, now)
		}
		for ; l.next < len(l.left) && len(w.buf) < l.to.p.o.BatchBytes; l.next++ {
			it := l.left[l.next]
			l.left[l.next] = item{}
			items++
			bytes += it.size
			if it.call != nil {
				l.encodeCall(w, it.call)
			} else if l.encode(w, it.message) {
				messages++
			}
		}
	})
	l.mu.Lock()
	l.mu.count -= items
	l.mu.bytes -= bytes
	more = l.next < len(l.left) || len(l.mu.queue) > 0
	l.mu.Unlock()
	if err != nil && messages > 0 {
		l.to.lost(messages)
	}
	return more, err
}

func (l *lane) encode(w *frameWriter, m *pb.Message) bool {
	w.open()
	b, err := proto.MarshalOptions{}.MarshalAppend(w.buf, m)
	if err != nil || len(b)-len(w.buf) > l.to.p.o.MessageBytes {
		l.to.p.o.Logger.Error("message cannot be sent", "peer-id", hex(l.to.id), "type", m.GetType(), "bytes", len(b)-len(w.buf), "error", err)
		w.abandon()
		l.to.lost(1)
		return false
	}
	w.buf = b
	w.close(frameMessage)
	return true
}

// listen reads what the other side says on a lane from here.
func (l *lane) listen(k *link) error {
	for {
		t, payload, err := k.in.next()
		if err != nil {
			return failure("read", hungUp(err))
		}
		switch t {
		case framePong:
			l.measure(payload)
		case frameAlive:
		case frameAnswer:
			if err := l.answered(payload); err != nil {
				return err
			}
		case frameBye:
			return parseBye(payload)
		default:
			return failure("read", fmt.Errorf("frame of type %d: %w", t, errFrame))
		}
	}
}

func hungUp(err error) error {
	if isEOF(err) {
		return errHungUp
	}
	return err
}

// measure takes the time of a ping. Only the urgent lane's is a measure of the
// way: on others it waits behind other things.
func (l *lane) measure(pong []byte) {
	if l.kind != Urgent || len(pong) != 16 {
		return
	}
	m := l.to
	now := time.Now()
	trip := now.Sub(m.p.born) - time.Duration(binary.BigEndian.Uint64(pong))
	if trip < 0 {
		return
	}
	there := time.Unix(0, int64(binary.BigEndian.Uint64(pong[8:])))
	m.p.o.Metrics.RoundTrip.With(hex(m.id)).Observe(trip.Seconds())
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.trip, m.mu.ahead = trip, there.Sub(now.Add(-trip/2).Round(0))
	m.mu.trips.add(trip)
}
