package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

const (
	chunkBytes     = 128 << 10
	syncBytes      = 32 << 20 // received between two syncs, so that the last one is short
	unfinished     = ".part"
	snapshotPrefix = "received-"
)

// SnapshotFile returns the name, within Options.Dir, of the file that holds the
// data of a received snapshot.
func SnapshotFile(m *pb.SnapshotMetadata) string {
	return fmt.Sprintf("%s%016x-%016x", snapshotPrefix, m.GetTerm(), m.GetIndex())
}

// sweep makes the folder, or removes from it what was never finished.
func sweep(dir string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return failure("make folder for snapshots", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return failure("read folder for snapshots", err)
	}
	for _, f := range files {
		if strings.HasPrefix(f.Name(), snapshotPrefix) && strings.HasSuffix(f.Name(), unfinished) {
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
				return failure("remove unfinished snapshot", err)
			}
		}
	}
	return nil
}

// outgoing sends snapshots to one member, one at a time.
type outgoing struct {
	to   *member
	wake chan struct{} // holds one: there is a next one

	mu struct {
		sync.Mutex
		next   *pb.Message
		cancel context.CancelCauseFunc // of the one under way
	}
}

var errReplaced = errors.New("peer: replaced by a newer snapshot")

// put has a snapshot sent, in place of one that is under way: raft would not
// ask for another if it still counted on that.
func (o *outgoing) put(m *pb.Message) {
	o.mu.Lock()
	o.mu.next = m
	if o.mu.cancel != nil {
		o.mu.cancel(errReplaced)
	}
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default: // it is awake
	}
}

func (o *outgoing) run(ctx context.Context) {
	p, to := o.to.p, hex(o.to.id)
	backoff := p.o.BackoffMin
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.wake:
		}
		one, cancel := context.WithCancelCause(ctx)
		o.mu.Lock()
		m := o.mu.next
		o.mu.next, o.mu.cancel = nil, cancel
		o.mu.Unlock()
		if m == nil {
			cancel(nil)
			continue
		}

		p.o.Metrics.SnapshotSending.With(to).Add(1)
		began := time.Now()
		err := o.send(one, m)
		p.o.Metrics.SnapshotSending.With(to).Add(-1)
		if err == nil {
			backoff = p.o.BackoffMin
			p.o.Metrics.SnapshotSent.With(to).Inc()
			p.o.Metrics.SnapshotSendSeconds.With(to).Observe(time.Since(began).Seconds())
			p.o.Logger.Info("sent snapshot", "peer-id", to, "took", time.Since(began))
		} else if one.Err() == nil {
			p.o.Metrics.SnapshotSendFailures.With(to).Inc()
			p.o.Logger.Warn("failed to send snapshot", "peer-id", to, "error", err)
			// Raft tries again as soon as it is told.
			rest(one, backoff/2+time.Duration(p.o.Jitter()*float64(backoff/2)))
			backoff = min(2*backoff, p.o.BackoffMax)
		}
		o.mu.Lock()
		replaced := o.mu.next != nil
		o.mu.cancel = nil
		o.mu.Unlock()
		cancel(nil)
		if !replaced {
			p.o.SnapshotSent(o.to.id, err == nil)
		}
	}
}

func rest(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// send sends a snapshot and waits until the other side has it.
func (o *outgoing) send(ctx context.Context, m *pb.Message) error {
	p := o.to.p
	if p.o.WriteSnapshot == nil {
		return errors.New("peer: there is no snapshot to send")
	}
	k, err := o.to.connect(ctx, Snapshot)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer k.conn.Close()
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { k.conn.Close() })
	defer stop()

	taken := make(chan struct{})
	running.Go(func() {
		if err := o.listen(k); err != nil {
			cancel(err)
			return
		}
		close(taken)
	})
	running.Go(func() { o.ping(ctx, k) })

	err = o.write(ctx, k, m)
	if err == nil {
		select {
		case <-taken:
			return nil
		case <-ctx.Done():
		}
	}
	// What the other side said tells more than that a write failed.
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// ping keeps the connection alive while the machine is slow, or the rate low.
func (o *outgoing) ping(ctx context.Context, k *link) {
	ticker := time.NewTicker(o.to.p.o.PingInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			if k.write(func(w *frameWriter) { k.ping(w, now) }) != nil {
				return // the reader hears of it
			}
		}
	}
}

func (o *outgoing) write(ctx context.Context, k *link, m *pb.Message) error {
	meta := m.GetSnapshot().GetMetadata()
	header, err := proto.Marshal(&pb.Message{
		Type: m.Type, From: m.From, To: m.To, Term: m.Term,
		Snapshot: &pb.Snapshot{Metadata: meta},
	})
	if err != nil {
		return failure("encode snapshot message", err)
	}
	if err := k.writeFrame(frameSnapshot, header); err != nil {
		return err
	}
	w := &chunkWriter{ctx: ctx, k: k, rate: o.to.p.o.SnapshotRate, began: time.Now(), sum: xxhash.New()}
	is, err := o.to.p.o.WriteSnapshot(ctx, meta.GetIndex(), w)
	if err != nil {
		return failure("write snapshot", err)
	}
	if is.GetIndex() < meta.GetIndex() || is.GetTerm() == 0 || is.GetConfState() == nil {
		return fmt.Errorf("peer: the snapshot is of index %d, term %d, but %d was promised", is.GetIndex(), is.GetTerm(), meta.GetIndex())
	}
	if err := w.flush(); err != nil {
		return err
	}
	encoded, err := proto.Marshal(is)
	if err != nil {
		return failure("encode snapshot metadata", err)
	}
	end := binary.BigEndian.AppendUint64(nil, uint64(w.bytes))
	end = binary.BigEndian.AppendUint64(end, w.sum.Sum64())
	return k.writeFrame(frameSnapshotEnd, append(end, encoded...))
}

// listen waits until the other side has the snapshot.
func (o *outgoing) listen(k *link) error {
	for {
		t, payload, err := k.in.next()
		if err != nil {
			return failure("read", hungUp(err))
		}
		switch t {
		case framePong, frameAlive:
		case frameBye:
			return parseBye(payload)
		case frameSnapshotTaken:
			if len(payload) > 0 {
				return fmt.Errorf("peer: the other side: %s", payload)
			}
			return nil
		default:
			return failure("read", fmt.Errorf("frame of type %d: %w", t, errFrame))
		}
	}
}

// chunkWriter sends what is written to it, no faster than its rate.
type chunkWriter struct {
	ctx   context.Context
	k     *link
	rate  int64 // bytes a second; 0: any
	began time.Time

	chunk []byte
	bytes int64 // sent
	sum   *xxhash.Digest
}

func (w *chunkWriter) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		fits := min(len(b), chunkBytes-len(w.chunk))
		w.chunk = append(w.chunk, b[:fits]...)
		b = b[fits:]
		if len(w.chunk) == chunkBytes {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (w *chunkWriter) flush() error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	if len(w.chunk) == 0 {
		return nil
	}
	if err := w.k.writeFrame(frameChunk, w.chunk); err != nil {
		return err
	}
	w.sum.Write(w.chunk)
	w.bytes += int64(len(w.chunk))
	w.chunk = w.chunk[:0]
	if w.rate > 0 {
		due := time.Duration(float64(w.bytes) / float64(w.rate) * float64(time.Second))
		if ahead := due - time.Since(w.began); ahead > 0 {
			rest(w.ctx, ahead)
		}
	}
	return nil
}

// receiving lets one snapshot come in at a time.
type receiving struct {
	mu struct {
		sync.Mutex
		now *arrival
	}
}

// arrival is a snapshot that comes in.
type arrival struct {
	term, index uint64
	k           *link
	done        chan struct{}
}

// enter makes a the one that comes in. An older one has to make way, and is
// gone when enter returns.
func (r *receiving) enter(a *arrival) error {
	for {
		r.mu.Lock()
		before := r.mu.now
		if before == nil {
			r.mu.now = a
			r.mu.Unlock()
			return nil
		}
		r.mu.Unlock()
		if a.term < before.term || a.term == before.term && a.index < before.index {
			return fmt.Errorf("a newer snapshot, of term %d and index %d, is on its way here", before.term, before.index)
		}
		before.k.conn.Close()
		<-before.done
	}
}

func (r *receiving) leave(a *arrival) {
	r.mu.Lock()
	r.mu.now = nil
	r.mu.Unlock()
	close(a.done)
}

// receive takes the snapshot that a connection brings.
func (p *Peers) receive(ctx context.Context, k *link) (err error) {
	m, err := p.announced(k)
	if err != nil {
		return err
	}
	a := &arrival{term: m.GetTerm(), index: m.GetSnapshot().GetMetadata().GetIndex(), k: k, done: make(chan struct{})}
	if err := p.inbox.receiving.enter(a); err != nil {
		k.taken([]byte(err.Error()))
		return err
	}
	defer p.inbox.receiving.leave(a)

	from := hex(k.id)
	began := time.Now()
	p.o.Metrics.SnapshotReceiving.With(from).Add(1)
	bytes, told, err := p.take(ctx, k, m)
	p.o.Metrics.SnapshotReceiving.With(from).Add(-1)
	var text []byte
	if err == nil {
		p.o.Metrics.SnapshotReceived.With(from).Inc()
		p.o.Metrics.SnapshotReceiveSeconds.With(from).Observe(time.Since(began).Seconds())
		p.o.Logger.Info("received snapshot", "peer-id", from, "bytes", bytes, "took", time.Since(began))
	} else {
		p.o.Metrics.SnapshotReceiveFailures.With(from).Inc()
		text = []byte(err.Error())
	}
	if told {
		k.taken(text)
	}
	return err
}

// taken tells the other side that a snapshot is here, or why not, and lets it
// hang up: closing with a ping unread would tear down the answer on its way. If
// it does not get it, that costs another snapshot and no more.
func (k *link) taken(text []byte) {
	if k.writeFrame(frameSnapshotTaken, text) != nil {
		return
	}
	late := time.AfterFunc(k.p.o.ReadTimeout, func() { k.conn.Close() })
	defer late.Stop()
	for {
		if _, _, err := k.in.next(); err != nil {
			return
		}
	}
}

// announced reads what a snapshot says of itself.
func (p *Peers) announced(k *link) (*pb.Message, error) {
	for {
		t, payload, err := k.in.next()
		switch {
		case err != nil:
			return nil, err
		case t == framePing:
			if err := k.pong(payload); err != nil {
				return nil, err
			}
			continue
		case t != frameSnapshot:
			return nil, fmt.Errorf("peer: frame of type %d: %w", t, errFrame)
		}
		m := new(pb.Message)
		if err := proto.Unmarshal(payload, m); err != nil {
			return nil, failure("decode snapshot message", err)
		}
		if m.GetType() != pb.MsgSnap || m.GetFrom() != k.id || m.GetTo() != p.o.ID {
			return nil, fmt.Errorf("peer: %s from %s to %s as head of a snapshot of %s: %w",
				m.GetType(), hex(m.GetFrom()), hex(m.GetTo()), hex(k.id), errFrame)
		}
		return m, nil
	}
}

// take reads the data into a file and announces it. It tells whether somebody
// is there to be told how that went.
func (p *Peers) take(ctx context.Context, k *link, m *pb.Message) (bytes int64, told bool, err error) {
	if p.o.Dir == "" {
		return 0, true, errors.New("peer: there is no folder for snapshots here")
	}
	file, err := os.CreateTemp(p.o.Dir, snapshotPrefix+"*"+unfinished)
	if err != nil {
		return 0, true, failure("receive snapshot", err)
	}
	kept := false
	defer func() {
		if !kept {
			err = errors.Join(err, file.Close(), os.Remove(file.Name()))
		}
	}()
	sum := xxhash.New()
	unsynced := 0
	for {
		t, payload, err := k.in.next()
		if err != nil {
			return bytes, false, failure("receive snapshot", noEOF(err))
		}
		switch t {
		case framePing:
			if err := k.pong(payload); err != nil {
				return bytes, false, err
			}
		case frameChunk:
			if _, err := file.Write(payload); err != nil {
				return bytes, true, failure("receive snapshot", err)
			}
			sum.Write(payload)
			bytes += int64(len(payload))
			if unsynced += len(payload); unsynced >= syncBytes {
				unsynced = 0
				if err := k.whileAlive(file.Sync); err != nil {
					return bytes, true, failure("sync snapshot", err)
				}
			}
		case frameSnapshotEnd:
			if err := checkEnd(payload, bytes, sum.Sum64(), m); err != nil {
				return bytes, true, err
			}
			if err := k.whileAlive(func() error { return p.keep(ctx, file, m, &kept) }); err != nil {
				return bytes, true, failure("keep snapshot", err)
			}
			return bytes, true, nil
		default:
			return bytes, false, fmt.Errorf("peer: frame of type %d: %w", t, errFrame)
		}
	}
}

// checkEnd compares what a snapshot was with what arrived, and writes into its
// message what it really is.
func checkEnd(payload []byte, bytes int64, sum uint64, m *pb.Message) error {
	if len(payload) < 16 {
		return fmt.Errorf("peer: end of snapshot: %w", errFrame)
	}
	if uint64(bytes) != binary.BigEndian.Uint64(payload) || sum != binary.BigEndian.Uint64(payload[8:]) {
		return fmt.Errorf("peer: the snapshot's %d bytes are not those that were sent: %w", bytes, errFrame)
	}
	meta := new(pb.SnapshotMetadata)
	if err := proto.Unmarshal(payload[16:], meta); err != nil {
		return failure("decode snapshot metadata", err)
	}
	if meta.GetIndex() < m.GetSnapshot().GetMetadata().GetIndex() || meta.GetTerm() == 0 || meta.GetConfState() == nil {
		return fmt.Errorf("peer: the snapshot is of index %d, term %d: %w", meta.GetIndex(), meta.GetTerm(), errFrame)
	}
	m.Snapshot = &pb.Snapshot{Metadata: meta}
	return nil
}

// whileAlive runs f and tells the other side meanwhile that it is to wait.
func (k *link) whileAlive(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	ticker := time.NewTicker(k.p.o.PingInterval)
	defer ticker.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-ticker.C:
			k.writeFrame(frameAlive, nil) // if the other side has gone, f still ends
		}
	}
}

// keep makes a received snapshot durable under its name and announces it.
func (p *Peers) keep(ctx context.Context, file *os.File, m *pb.Message, kept *bool) error {
	if err := file.Sync(); err != nil {
		return err
	}
	name := filepath.Join(p.o.Dir, SnapshotFile(m.GetSnapshot().GetMetadata()))
	if err := os.Rename(file.Name(), name); err != nil {
		return err
	}
	*kept = true
	if err := errors.Join(file.Close(), syncFolder(p.o.Dir), ctx.Err()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return p.o.SnapshotReceived(m, name)
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
