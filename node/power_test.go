package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/api"
	"github.com/kvorum/kvorum/state"
)

// The promise: what was acknowledged is there after a power loss at any
// moment, at the revision it was acknowledged with, and nothing is there in
// part. Every change that the log or the table makes to the disk is a moment.
//
//	KVORUM_POWER_SEED=n      repeats a run
//	KVORUM_POWER_SECONDS=n   how long to look; default 5

const (
	logDir   = "/data/wal"
	tableDir = "/data/table"
	testID   = 0xa
)

var testMetrics = api.NewMetrics(false)

// testOptions are of a member whose log is cut and whose table is flushed
// after a few entries, so that a short life has everything in it.
func testOptions(fs vfs.FS, fresh bool, keep int) memberOptions {
	return memberOptions{
		FS: fs, LogDir: logDir, TableDir: tableDir,
		Cluster: 0xc, ID: testID, Fresh: fresh,
		Genesis:        genesis(0xc, []state.Member{{ID: testID, PeerURLs: []string{"http://localhost:2380"}}}),
		Tick:           time.Millisecond,
		ElectionTicks:  10,
		KeepEntries:    keep,
		FlushEntries:   3,
		ValueCache:     1 << 20,
		SweepBatch:     3,
		SlowApply:      time.Hour,
		LogSegmentSize: 8 << 10,
		Metrics:        testMetrics,
		Log:            slog.New(slog.DiscardHandler),
	}
}

const (
	keepFew = 4       // the log is cut behind the table
	keepAll = 1 << 20 // the log holds everything, and can be replayed alone
)

func command(t testing.TB, kind state.Kind, request proto.Message) []byte {
	t.Helper()
	b, err := state.Command{Kind: kind, Request: request}.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A history is what was acknowledged: the events of each revision.
type history struct {
	sync.Mutex
	events    map[state.Revision][]string
	last      state.Revision // newest acknowledged
	compacted state.Revision // newest acknowledged compaction
	sums      map[state.Index]uint64

	// pending is a command that was proposed and not acknowledged: the next
	// revision may be its, whole.
	pending []string // the events it can have, without what they hang on
}

func newHistory() *history {
	return &history{events: map[state.Revision][]string{}, last: 1, compacted: -1, sums: map[state.Index]uint64{}}
}

func render(e state.Event) string {
	if e.Deleted {
		return fmt.Sprintf("delete %s", e.Key)
	}
	var kv mvccpb.KeyValue
	if err := proto.Unmarshal(e.Pair, &kv); err != nil {
		return fmt.Sprintf("damaged pair of %s: %v", e.Key, err)
	}
	return fmt.Sprintf("put %s %s create=%d version=%d mod=%d", kv.Key, kv.Value, kv.CreateRevision, kv.Version, kv.ModRevision)
}

// acknowledge takes note of an outcome.
func (h *history) acknowledge(out state.Outcome) error {
	h.Lock()
	defer h.Unlock()
	for _, e := range out.Events {
		if e.Revision != out.Revision {
			return fmt.Errorf("an event of revision %d in the outcome of revision %d", e.Revision, out.Revision)
		}
	}
	if len(out.Events) > 0 {
		if _, twice := h.events[out.Revision]; twice {
			return fmt.Errorf("revision %d was given twice", out.Revision)
		}
		for _, e := range out.Events {
			h.events[out.Revision] = append(h.events[out.Revision], render(e))
		}
	}
	h.last = max(h.last, out.Revision)
	h.pending = nil
	return nil
}

func (h *history) acknowledged() (revision, compacted state.Revision) {
	h.Lock()
	defer h.Unlock()
	return h.last, h.compacted
}

// sample remembers the checksum at an index.
func (h *history) sample(v *state.View) error {
	h.Lock()
	defer h.Unlock()
	if sum, known := h.sums[v.Index]; known && sum != v.Checksum {
		return fmt.Errorf("checksum %x at index %d, but it was %x", v.Checksum, v.Index, sum)
	}
	h.sums[v.Index] = v.Checksum
	return nil
}

// fork returns a history that can go another way from here.
func (h *history) fork(last, compacted state.Revision) *history {
	h.Lock()
	defer h.Unlock()
	f := newHistory()
	for rev, events := range h.events {
		if rev <= last {
			f.events[rev] = events
		}
	}
	f.last, f.compacted, f.pending = last, compacted, h.pending
	return f
}

// check compares a view with the history: each revision behind the last
// compaction, and what all of them together amount to.
func (h *history) check(v *state.View) error {
	h.Lock()
	defer h.Unlock()
	got := map[state.Revision][]string{}
	everything := state.Span{Key: []byte{0}, End: []byte{0}}
	from := max(v.Compacted, 1) + 1
	for e, err := range v.History(everything, from, v.Revision) {
		if err != nil {
			return fmt.Errorf("read history from %d to %d: %w", from, v.Revision, err)
		}
		got[e.Revision] = append(got[e.Revision], render(e))
	}
	want := map[string]string{} // by key
	for rev := state.Revision(2); rev <= v.Revision; rev++ {
		events, known := h.events[rev]
		if !known && rev == v.Revision && h.wholly(got[rev]) {
			events, known = got[rev], true
			h.events[rev] = events
		}
		if !known {
			return fmt.Errorf("revision %d of %d was never given to anybody", rev, v.Revision)
		}
		if rev >= from && !slices.Equal(got[rev], events) {
			return fmt.Errorf("revision %d holds %q, acknowledged was %q", rev, got[rev], events)
		}
		for _, e := range events {
			verb, rest, _ := strings.Cut(e, " ")
			key, _, _ := strings.Cut(rest, " ")
			if delete(want, key); verb == "put" {
				want[key] = e
			}
		}
	}
	answer, err := v.Range(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	if err != nil {
		return fmt.Errorf("read everything: %w", err)
	}
	for _, pair := range answer.Pairs {
		is := render(state.Event{Pair: pair})
		key := strings.Fields(is)[1]
		if is != want[key] {
			return fmt.Errorf("at revision %d there is %q, should be %q", v.Revision, is, want[key])
		}
		delete(want, key)
	}
	if len(want) > 0 {
		return fmt.Errorf("at revision %d there is nothing of %q", v.Revision, want)
	}
	return nil
}

// wholly tells whether events are those of the pending command: all of its
// puts, and only deletions beside them.
func (h *history) wholly(events []string) bool {
	puts := 0
	for _, e := range events {
		switch {
		case strings.HasPrefix(e, "delete "):
		case slices.ContainsFunc(h.pending, func(p string) bool { return strings.HasPrefix(e, p) }):
			puts++
		default:
			return false
		}
	}
	return h.pending != nil && puts == len(h.pending)
}

// running is a member with its loops.
type running struct {
	*member
	stop context.CancelFunc
	done chan error
}

func start(m *member) *running {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{member: m, stop: cancel, done: make(chan error, 1)}
	go func() { r.done <- m.run(ctx) }()
	return r
}

func (r *running) end() error {
	r.stop()
	return <-r.done
}

// A load is what several proposers do to a member, at random.
type load struct {
	seed      uint64
	proposers int
	commands  int // of each
	large     int // n: one value in n takes a good part of a segment
}

// play proposes until everything is acknowledged or something fails.
func (l load) play(t testing.TB, m *member, h *history) error {
	return l.playUntil(t.Context(), t, m, h)
}

func (l load) playUntil(ctx context.Context, t testing.TB, m *member, h *history) error {
	var g errgroup.Group
	for p := range l.proposers {
		g.Go(func() error {
			rng := rand.New(rand.NewPCG(l.seed, uint64(p)))
			for i := range l.commands {
				if err := l.step(ctx, t, m, h, rng, fmt.Sprintf("%d.%d", p, i)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func (l load) step(ctx context.Context, t testing.TB, m *member, h *history, rng *rand.Rand, id string) error {
	key := fmt.Sprintf("key-%d", rng.IntN(6))
	value := id
	if rng.IntN(max(l.large, 1)) == 0 && l.large > 0 {
		value += strings.Repeat("x", 3000)
	}
	put := func(key string) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}}}
	}
	pending := []string{}
	for _, key := range []string{"left", "middle", "right"} {
		pending = append(pending, fmt.Sprintf("put %s %s ", key, value))
	}
	var b []byte
	var compaction state.Revision
	switch k := rng.IntN(20); {
	case k < 9:
		pending = []string{fmt.Sprintf("put %s %s ", key, value)}
		b = command(t, state.Put, &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
	case k < 14: // several keys at once, or none
		b = command(t, state.Txn, &pb.TxnRequest{Success: []*pb.RequestOp{
			put("left"), put("middle"), put("right"),
			{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key)}}},
		}})
	case k < 17:
		pending = []string{} // deletions alone
		b = command(t, state.DeleteRange, &pb.DeleteRangeRequest{Key: []byte("key-2"), RangeEnd: []byte("key-5")})
	case k < 19:
		compaction = m.View().Revision - state.Revision(rng.IntN(5))
		b = command(t, state.Compact, &pb.CompactionRequest{Revision: int64(compaction)})
	default: // refused, and yet an entry of the log
		b = command(t, state.Compact, &pb.CompactionRequest{Revision: 1 << 40})
	}
	if l.proposers == 1 {
		h.Lock()
		h.pending = pending
		h.Unlock()
	}
	out, err := m.Propose(ctx, b)
	if err != nil {
		return err
	}
	if err := h.acknowledge(out); err != nil {
		return err
	}
	if compaction > 0 && out.Refusal == nil {
		h.Lock()
		h.compacted = max(h.compacted, compaction)
		h.Unlock()
	}
	return h.sample(m.View())
}

// A crash is the moment of a power loss: what it left of the disk, and what
// had been acknowledged.
type crash struct {
	mem             *vfs.MemFS
	last, compacted state.Revision
	what            string // the change to the disk that it came before
}

// cutter cuts the power before changes to the disk.
type cutter struct {
	disk *disk
	h    *history
	rng  *rand.Rand
	each int  // n: before each n-th change
	all  bool // all shares of unsynced data for each change, else one of them

	mu struct {
		sync.Mutex
		changes int
		crashes []crash
	}
}

var shares = []int{0, 10, 50, 90, 100} // of what was not synced and survives, percent

func (c *cutter) String() string { return "cutter" }

func (c *cutter) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() == errorfs.OpIsRead || op.Kind == errorfs.OpFileClose {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.changes++
	if c.mu.changes%c.each != 0 {
		return nil
	}
	left := shares
	if !c.all {
		left = shares[c.rng.IntN(len(shares)):][:1]
	}
	for _, percent := range left {
		for _, tear := range []bool{false, true} {
			if !c.all && tear != (c.rng.IntN(2) == 0) {
				continue
			}
			// What is acknowledged is asked first, so that a crash has at least that.
			k := crash{what: fmt.Sprintf("change %d (kind %d of %s), %d %%, torn %v", c.mu.changes, op.Kind, op.Path, percent, tear)}
			k.last, k.compacted = c.h.acknowledged()
			k.mem = c.disk.powerLoss(c.rng, percent, tear)
			c.mu.crashes = append(c.mu.crashes, k)
		}
	}
	return nil
}

func (c *cutter) fs() vfs.FS { return errorfs.Wrap(c.disk, c) }

// outage plays a load on a fresh member while the power is cut, and looks at
// what is left each time.
type outage struct {
	t     testing.TB
	seed  uint64
	keep  int
	flush uint64 // entries after which the table is flushed
	load  load

	each  int
	all   bool
	again int // n: the power is cut again during one in n recoveries

	mu struct {
		sync.Mutex
		rng           *rand.Rand
		first, second int // states looked at
	}
}

func (o *outage) chance(one int) (*rand.Rand, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return rand.New(rand.NewPCG(o.mu.rng.Uint64(), 0)), o.mu.rng.IntN(one) == 0
}

func (o *outage) options(fs vfs.FS, fresh bool) memberOptions {
	options := testOptions(fs, fresh, o.keep)
	options.FlushEntries = o.flush
	return options
}

func (o *outage) run() error {
	o.mu.rng = rand.New(rand.NewPCG(o.seed, 1))
	rng, _ := o.chance(1)
	h := newHistory()
	c := &cutter{disk: newDisk(vfs.NewCrashableMem()), h: h, rng: rng, each: o.each, all: o.all}
	if err := c.disk.MkdirAll("/data", 0o700); err != nil {
		return err
	}
	// The caller has made the directory durable: identity.json is in it.
	if err := syncDir(c.disk, "/"); err != nil {
		return err
	}

	// Twice, so that a start on what was left in peace is among the moments.
	for life := range 2 {
		m, err := openMember(o.options(c.fs(), true))
		if err != nil {
			return fmt.Errorf("open: %w", err)
		}
		r := start(m)
		l := o.load
		l.seed += uint64(life)
		if err := l.play(o.t, m, h); err != nil {
			return errors.Join(fmt.Errorf("life %d: %w", life, err), r.end())
		}
		if err := r.end(); err != nil {
			return fmt.Errorf("end: %w", err)
		}
	}

	var g errgroup.Group
	g.SetLimit(4)
	for _, k := range c.mu.crashes {
		g.Go(func() error {
			if err := o.recover(k, h, 1); err != nil {
				return fmt.Errorf("power loss before %s: %w", k.what, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// recover starts a member on what a power loss left.
func (o *outage) recover(k crash, h *history, depth int) error {
	o.mu.Lock()
	if depth == 1 {
		o.mu.first++
	} else {
		o.mu.second++
	}
	o.mu.Unlock()

	// A replay of the whole log onto an empty table is the reference.
	var reference *vfs.MemFS
	if o.keep == keepAll {
		reference = k.mem.CrashClone(vfs.CrashCloneCfg{})
		if err := reference.RemoveAll(tableDir); err != nil {
			return err
		}
	}

	f := h.fork(1<<62, k.compacted)
	f.last = k.last
	rng, again := o.chance(o.again)
	disk := newDisk(k.mem)
	c := &cutter{disk: disk, h: f, rng: rng, each: 1 + rng.IntN(3)}
	fs := vfs.FS(disk)
	if again && depth == 1 {
		fs = c.fs()
	}

	m, err := openMember(o.options(fs, k.last == 1))
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	v := m.View()
	if err := errors.Join(h.check(v), h.sample(v)); err != nil {
		return errors.Join(fmt.Errorf("the table at index %d: %w", v.Index, err), m.close())
	}
	r := start(m)
	err = o.look(r, k, f)
	if err := errors.Join(err, r.end()); err != nil {
		return err
	}
	if reference != nil {
		if err := o.replay(reference, f); err != nil {
			return fmt.Errorf("replay of the log alone: %w", err)
		}
	}
	for _, second := range c.mu.crashes {
		if err := o.recover(second, f, depth+1); err != nil {
			return fmt.Errorf("and again before %s: %w", second.what, err)
		}
	}
	return nil
}

// look checks a member that has recovered, and has it accept a write.
func (o *outage) look(r *running, k crash, f *history) error {
	if err := r.Barrier(o.t.Context()); err != nil {
		return fmt.Errorf("barrier: %w", err)
	}
	v := r.View()
	switch {
	case v.Revision < k.last:
		return fmt.Errorf("revision %d, but %d was acknowledged", v.Revision, k.last)
	case v.Compacted < k.compacted:
		return fmt.Errorf("compacted at %d, but %d was acknowledged", v.Compacted, k.compacted)
	}
	if err := f.check(v); err != nil {
		return err
	}
	// Behind what is there, history goes on another way.
	f.Lock()
	for rev := range f.events {
		if rev > v.Revision {
			delete(f.events, rev)
		}
	}
	f.sums = map[state.Index]uint64{v.Index: v.Checksum}
	// Second power losses so far were checked against less; from here all of
	// what was read must stay.
	f.last, f.compacted = v.Revision, v.Compacted
	f.Unlock()

	out, err := r.Propose(o.t.Context(), command(o.t, state.Put, &pb.PutRequest{Key: []byte("after"), Value: []byte(k.what)}))
	if err != nil {
		return fmt.Errorf("put after recovery: %w", err)
	}
	if out.Revision != v.Revision+1 {
		return fmt.Errorf("put after recovery has revision %d, after %d", out.Revision, v.Revision)
	}
	if err := f.acknowledge(out); err != nil {
		return err
	}
	return f.check(r.View())
}

// replay compares what the log alone amounts to with what was seen.
func (o *outage) replay(mem *vfs.MemFS, f *history) error {
	m, err := openMember(testOptions(mem, true, keepAll))
	if err != nil {
		return err
	}
	r := start(m)
	err = r.Barrier(o.t.Context())
	if err == nil {
		err = f.sample(r.View()) // the entry of a new leader is like that of the other
	}
	if err == nil {
		err = f.check(r.View())
	}
	return errors.Join(err, r.end())
}

func setting(t testing.TB, name string, otherwise uint64) uint64 {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestPowerLoss first cuts the power before every single change to the disk of
// a short life, with every share of unsynced data, then at random in longer
// ones.
func TestPowerLoss(t *testing.T) {
	seed := setting(t, "KVORUM_POWER_SEED", rand.Uint64N(1<<32))
	until := time.Now().Add(time.Duration(setting(t, "KVORUM_POWER_SECONDS", 5)) * time.Second)
	first, second, rounds := 0, 0, 0
	for round := uint64(0); round < 3 || time.Now().Before(until); round++ {
		o := &outage{t: t, seed: seed + round*100, keep: keepFew, flush: 3, each: 1, all: true, again: 80}
		o.load = load{seed: o.seed, proposers: 1, commands: 2, large: 10}
		if round > 0 {
			o.all, o.each, o.again = false, 1+int(round%3), 16
			o.load.proposers, o.load.commands = 4, 12
		}
		switch round % 3 {
		case 1: // memory and files forget entries that the table has not flushed
			o.keep, o.flush, o.load.large = 1, 12, 2
		case 2:
			o.keep = keepAll
		}
		if err := o.run(); err != nil {
			t.Fatalf("KVORUM_POWER_SEED=%d, round %d: %v", seed, round, err)
		}
		first, second, rounds = first+o.mu.first, second+o.mu.second, rounds+1
	}
	t.Logf("seed %d: %d rounds, %d power losses, %d during recovery", seed, rounds, first, second)
}

func TestLostLogIsRefused(t *testing.T) {
	mem := vfs.NewCrashableMem()
	m, err := openMember(testOptions(mem, true, keepFew))
	if err != nil {
		t.Fatal(err)
	}
	r := start(m)
	if err := (load{proposers: 1, commands: 10}).play(t, m, newHistory()); err != nil {
		t.Fatal(err)
	}
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
	if err := mem.RemoveAll(logDir); err != nil {
		t.Fatal(err)
	}
	before := mem.String()
	if _, err := openMember(testOptions(mem, false, keepFew)); err == nil || mem.String() != before {
		t.Errorf("a start without the log was not refused, or changed something: %v\n%s", err, mem)
	}
	for _, fresh := range []bool{false, true} { // also where the identity says it never started
		_, err = openMember(testOptions(mem, fresh, keepFew))
		if err == nil || !strings.Contains(err.Error(), "has lost its log") || !strings.Contains(err.Error(), "add it again") {
			t.Errorf("fresh %v: a member without its log: %v", fresh, err)
		}
	}
}
