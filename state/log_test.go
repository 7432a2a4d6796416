package state_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/state"
)

// makeLog makes a log of random entries: with commands of all kinds, several
// or none, with nonsense, and with configurations.
func makeLog(t testing.TB, r chance, n int) []state.Entry {
	m := newModel()
	log := make([]state.Entry, n)
	for i := range log {
		e := &log[i]
		e.Index, e.Term = state.Index(i+2), state.Term(1+i/40)
		if r.IntN(30) == 0 {
			e.Configuration = []byte(fmt.Sprint("configuration ", i))
			continue
		}
		for range r.IntN(4) {
			switch n := r.IntN(40); {
			case n == 0:
				e.Commands = append(e.Commands, []byte{byte(1 + r.IntN(6)), 0, 0, 0xff, 0xff})
			case n == 1:
				e.Commands = append(e.Commands, encode(t, state.Command{Kind: state.Alarm, Term: state.Term(r.IntN(4)), Request: &pb.AlarmRequest{
					Action: pb.AlarmRequest_AlarmAction(r.IntN(3)), Alarm: pb.AlarmType(r.IntN(3)), MemberID: r.Uint64N(2),
				}}))
			case n == 2:
				e.Commands = append(e.Commands, encode(t, state.Command{Kind: state.Publish, Request: &pb.Member{
					ID: 1 + r.Uint64N(2), Name: fmt.Sprint("name", i), ClientURLs: []string{"http://c"},
				}}))
			case n == 3:
				id, at := 1+r.Uint64N(9), []string{fmt.Sprint("http://", r.IntN(9))}
				e.Commands = append(e.Commands, encode(t, []state.Command{
					{Kind: state.MemberAdd, Request: &pb.Member{ID: id, PeerURLs: at, IsLearner: r.IntN(2) == 0}},
					{Kind: state.MemberRemove, Request: &pb.MemberRemoveRequest{ID: id}},
					{Kind: state.MemberUpdate, Request: &pb.MemberUpdateRequest{ID: id, PeerURLs: at}},
					{Kind: state.MemberPromote, Request: &pb.MemberPromoteRequest{ID: id}},
				}[r.IntN(4)]))
			default:
				c := r.command(m.revision(), m.compacted)
				m.apply(c)
				e.Commands = append(e.Commands, encode(t, c))
			}
		}
	}
	return log
}

// TestOneLogOneState applies one log to machines that get it in batches of
// different sizes, sweep when they like, crash, lose what was not flushed,
// are restored from each other, and hold different amounts in memory. All of
// them end in the same state, and so do their sums on the way.
func TestOneLogOneState(t *testing.T) {
	runs := 12
	if testing.Short() {
		runs = 2
	}
	for range runs {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := chance{rand.New(rand.NewPCG(seed, 0))}
			log := makeLog(t, r, 300)

			plain := newBed(t, false)
			sums := map[state.Index]string{}
			checksums := map[state.Index]uint64{}
			sizes := map[state.Index]int64{}
			for i := range log {
				if _, err := plain.Apply(log[i : i+1]); err != nil {
					t.Fatal(err)
				}
				sums[log[i].Index] = hashes(t, plain.Machine)
				checksums[log[i].Index] = plain.View().Checksum
				sizes[log[i].Index], _ = plain.Size()
			}

			for _, disk := range []bool{false, true} {
				b := newBed(t, disk)
				b.options.ValueCacheBytes = int64(1 + r.IntN(3000))
				for step := 0; ; step++ {
					applied, durable := b.Applied()
					if durable > applied {
						t.Fatalf("durable %d, applied %d", durable, applied)
					}
					rest := log[applied-1:]
					if len(rest) == 0 {
						break
					}
					batch := append([]state.Entry(nil), rest[:1+r.IntN(min(20, len(rest)))]...)
					for i := range batch {
						batch[i].Wanted = r.IntN(2) == 0
					}
					if _, err := b.Apply(batch); err != nil {
						t.Fatalf("disk %v, step %d: %v", disk, step, err)
					}
					at := batch[len(batch)-1].Index
					if got := hashes(t, b.Machine); got != sums[at] {
						t.Fatalf("disk %v, step %d: %s, want %s", disk, step, got, sums[at])
					}
					for _, mark := range b.View().Marks() {
						if want := checksums[mark.Index]; mark.Checksum != want {
							t.Fatalf("disk %v, step %d: checksum %x at index %d, want %x", disk, step, mark.Checksum, mark.Index, want)
						}
					}
					switch r.IntN(8) {
					case 0, 1:
						if _, err := b.Sweep(r.IntN(30)); err != nil {
							t.Fatal(err)
						}
					case 2:
						if err := b.Flush(); err != nil {
							t.Fatal(err)
						}
						if applied, durable := b.Applied(); applied != durable {
							t.Fatalf("flushed, but applied %d, durable %d", applied, durable)
						}
					case 3, 4:
						_, durable := b.Applied()
						b.crash(t, r.IntN(6))
						applied, _ := b.Applied()
						if applied < durable {
							t.Fatalf("%d is left of what was durable up to %d", applied, durable)
						}
						if got := hashes(t, b.Machine); applied > 1 && got != sums[applied] {
							t.Fatalf("disk %v, after a crash: %s, want %s", disk, got, sums[applied])
						}
					case 5:
						if applied, _ := b.Applied(); applied > 1 {
							restoreElsewhere(t, b)
						}
					}
				}
				for more := true; more; {
					var err error
					if more, err = b.Sweep(100); err != nil {
						t.Fatal(err)
					}
				}
				last := log[len(log)-1].Index
				if got := hashes(t, b.Machine); got != sums[last] {
					t.Fatalf("swept: %s, want %s", got, sums[last])
				}
				for more := true; more; {
					more, _ = plain.Sweep(100)
				}
				a, _ := plain.Size()
				if c, _ := b.Size(); a != c {
					t.Fatalf("disk %v: swept size %d, want %d", disk, c, a)
				}
				b.Close()
			}
		})
	}
}

// TestSnapshotDamage flips every bit of a snapshot, and cuts it everywhere:
// none of it is restored, and the machine stays as it was.
func TestSnapshotDamage(t *testing.T) {
	r := chance{rand.New(rand.NewPCG(1, 2))}
	from := newBed(t, false)
	log := makeLog(t, r, 40)
	if _, err := from.Apply(log); err != nil {
		t.Fatal(err)
	}
	good := snapshot(t, from.Machine)
	into := newBed(t, false)
	before := hashes(t, into.Machine)
	try := func(what string, damaged []byte) {
		if err := into.Restore(bytes.NewReader(damaged)); err == nil {
			t.Fatalf("%s: restored", what)
		}
		if after := hashes(t, into.Machine); after != before { // a damaged snapshot leaves no trace
			t.Fatalf("%s: %s, was %s", what, after, before)
		}
	}
	for i := range good {
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			try(fmt.Sprintf("bit %d of byte %d", bit, i), bad)
		}
		try(fmt.Sprintf("cut at %d", i), good[:i])
	}
	restore(t, into.Machine, good)
	if a, b := hashes(t, from.Machine), hashes(t, into.Machine); a != b {
		t.Fatalf("restored %s, want %s", b, a)
	}
	before = hashes(t, into.Machine)
	try("the same again", good) // not newer
}

// TestSnapshotFrames loses, repeats and swaps whole frames of a large snapshot.
func TestSnapshotFrames(t *testing.T) {
	from := newBed(t, true)
	defer from.Close()
	for i := range 60 {
		from.apply(t, state.Command{Kind: state.Put, Request: &pb.PutRequest{
			Key: []byte(fmt.Sprint(i)), Value: bytes.Repeat([]byte{byte(i)}, 30_000),
		}})
	}
	good := snapshot(t, from.Machine)
	var frames [][]byte
	for rest := good; len(rest) > 0; {
		n := 12 + int(rest[0])<<24 + int(rest[1])<<16 + int(rest[2])<<8 + int(rest[3])
		frames = append(frames, rest[:n])
		rest = rest[n:]
	}
	if len(frames) < 6 {
		t.Fatalf("%d frames", len(frames))
	}
	into := newBed(t, true)
	defer into.Close()
	for i := range len(frames) - 1 {
		lost := append(append([][]byte(nil), frames[:i]...), frames[i+1:]...)
		twice := append(append([][]byte(nil), frames[:i+1]...), frames[i:]...)
		swapped := append([][]byte(nil), frames...)
		swapped[i], swapped[i+1] = swapped[i+1], swapped[i]
		for _, bad := range [][][]byte{lost, twice, swapped} {
			if err := into.Restore(bytes.NewReader(bytes.Join(bad, nil))); err == nil {
				t.Fatalf("frame %d: restored", i)
			}
		}
	}
	restore(t, into.Machine, good)
	if a, b := hashes(t, from.Machine), hashes(t, into.Machine); a != b {
		t.Fatalf("restored %s, want %s", b, a)
	}
}

// TestRestoreCrash cuts the power after each write of a restore to the disk:
// what is found is the old state or the new one.
func TestRestoreCrash(t *testing.T) {
	r := chance{rand.New(rand.NewPCG(3, 4))}
	log := makeLog(t, r, 60)
	from := newBed(t, true)
	defer from.Close()
	if _, err := from.Apply(log); err != nil {
		t.Fatal(err)
	}
	good := snapshot(t, from.Machine)
	newState := hashes(t, from.Machine)

	into := newBed(t, true)
	if _, err := into.Apply(log[:20]); err != nil {
		t.Fatal(err)
	}
	if err := into.Flush(); err != nil {
		t.Fatal(err)
	}
	oldState := hashes(t, into.Machine)

	var clones []*vfs.MemFS
	cut := newCutter(into, func() { clones = append(clones, into.fs.CrashClone(vfs.CrashCloneCfg{})) })
	into.Close()
	into.options.FS = cut
	into.open(t)
	cut.on.Store(true)
	restore(t, into.Machine, good)
	cut.on.Store(false)
	into.Close()
	seen := map[string]int{}
	for _, fs := range clones {
		m, err := state.Open(state.Options{FS: fs, Dir: into.options.Dir})
		if err != nil {
			t.Fatal(err)
		}
		seen[hashes(t, m)]++
		m.Close()
	}
	if len(seen) != 2 || seen[oldState] == 0 || seen[newState] == 0 {
		t.Fatalf("found %v", seen)
	}
}

// cutter calls back before everything that changes a file system's names or
// makes something durable.
type cutter struct {
	vfs.FS
	on atomic.Bool
	mu sync.Mutex
	at func()
}

func newCutter(b *bed, at func()) *cutter { return &cutter{FS: b.fs, at: at} }

func (c *cutter) cut() {
	if c.on.Load() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.at()
	}
}

type cutterFile struct {
	vfs.File
	c *cutter
}

func (f cutterFile) Sync() error     { f.c.cut(); defer f.c.cut(); return f.File.Sync() }
func (f cutterFile) SyncData() error { f.c.cut(); defer f.c.cut(); return f.File.SyncData() }

func (c *cutter) wrap(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return cutterFile{f, c}, nil
}

func (c *cutter) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	c.cut()
	return c.wrap(c.FS.Create(name, category))
}

func (c *cutter) OpenDir(name string) (vfs.File, error) { return c.wrap(c.FS.OpenDir(name)) }
func (c *cutter) Remove(name string) error              { c.cut(); return c.FS.Remove(name) }
func (c *cutter) RemoveAll(name string) error           { c.cut(); return c.FS.RemoveAll(name) }
func (c *cutter) Rename(from, to string) error          { c.cut(); return c.FS.Rename(from, to) }

// TestRefusesStrangers opens tables that belong to others or to the future.
func TestRefusesStrangers(t *testing.T) {
	b := newBed(t, true)
	b.options.Member = 7
	b.crash(t, 0)
	if err := b.Bootstrap(state.Genesis{Cluster: 1, Index: 1}); err == nil {
		t.Fatal("bootstrapped twice")
	}
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Apply([]state.Entry{{Index: 2, Term: 1}}); err != nil {
		t.Fatal(err)
	}
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	b.Close()
	for _, c := range []struct {
		cluster state.ClusterID
		member  state.MemberID
		text    string
	}{{2, 7, "cluster 1, not to 2"}, {1, 8, "member 7, not to 8"}, {1, 7, ""}, {0, 0, ""}} {
		o := b.options
		o.Cluster, o.Member = c.cluster, c.member
		m, err := state.Open(o)
		if (err == nil) != (c.text == "") || err != nil && !strings.Contains(err.Error(), c.text) {
			t.Fatalf("%+v: %v", c, err)
		}
		if err == nil {
			m.Close()
		}
	}

	other := newBed(t, false)
	other.apply(t)
	strange := state.NewMemory()
	m, err := state.Open(state.Options{Memory: strange, Cluster: 9})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Restore(bytes.NewReader(snapshot(t, other.Machine))); err == nil || !strings.Contains(err.Error(), "cluster 1, not to 9") {
		t.Fatal(err)
	}
}

// TestConfigurationOfARefusedEntry wants the configuration that comes with an
// entry to be stored, unless what it belongs to is refused.
func TestConfigurationOfARefusedEntry(t *testing.T) {
	b := newBed(t, false)
	for i, c := range []struct {
		command state.Command
		want    string
	}{
		{state.Command{Kind: state.Publish, Request: &pb.Member{ID: 1, Name: "known"}}, "new"},
		{state.Command{Kind: state.Publish, Request: &pb.Member{ID: 2, Name: "unknown"}}, "new"},
	} {
		configuration := []byte("new")
		if i > 0 {
			configuration = []byte("refused")
		}
		_, err := b.Apply([]state.Entry{{
			Index: state.Index(i + 2), Commands: [][]byte{encode(t, c.command)}, Configuration: configuration,
		}})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got := string(b.View().Configuration); got != c.want {
				t.Fatalf("configuration %q, want %q", got, c.want)
			}
			b.crash(t, 1000)
		}
	}
}

// TestUnknownCommandStops wants a machine that cannot know what an entry means
// to stop rather than to differ from the others.
func TestUnknownCommandStops(t *testing.T) {
	for _, command := range [][]byte{nil, {99, 0, 0}, {1}, {1, 0, 5, 'a'}} {
		b := newBed(t, false)
		if _, err := b.Apply([]state.Entry{{Index: 2, Commands: [][]byte{command}}}); err == nil {
			t.Fatalf("applied %x", command)
		}
		if _, err := b.Apply([]state.Entry{{Index: 2}}); err == nil {
			t.Fatal("went on")
		}
		if applied, _ := b.Applied(); applied != 1 {
			t.Fatalf("applied %d", applied)
		}
	}
}

// TestReadersBesideWriter reads views again and again while entries are
// applied, versions swept and values dropped from memory: a view never
// changes, until it is compacted.
func TestReadersBesideWriter(t *testing.T) {
	for _, disk := range []bool{false, true} {
		t.Run(fmt.Sprint("disk=", disk), func(t *testing.T) { readersBesideWriter(t, disk) })
	}
}

func readersBesideWriter(t *testing.T, disk bool) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	b := newBed(t, disk)
	defer b.Close()
	log := makeLog(t, chance{rand.New(rand.NewPCG(seed, 0))}, 4000)
	var done atomic.Bool
	var wg sync.WaitGroup
	spawn := func(f func()) {
		wg.Add(1)
		go func() { defer wg.Done(); f() }()
	}

	spawn(func() { // the writer
		defer done.Store(true)
		r := rand.New(rand.NewPCG(seed, 1))
		for rest := log; len(rest) > 0; {
			n := 1 + r.IntN(min(8, len(rest)))
			if _, err := b.Apply(rest[:n]); err != nil {
				t.Error(err)
				return
			}
			rest = rest[n:]
		}
	})
	spawn(func() { // the sweeper
		for !done.Load() {
			if _, err := b.Sweep(7); err != nil {
				t.Error(err)
				return
			}
			if err := b.Flush(); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(100 * time.Microsecond) // lets the writer in on a machine with one core
		}
	})
	var stable atomic.Int64
	for n := range 3 {
		spawn(func() {
			r := chance{rand.New(rand.NewPCG(seed, uint64(n+2)))}
			for last := false; !last && !t.Failed(); {
				last = done.Load() // also who comes late reads once
				v := b.View()
				type question struct {
					q      *pb.RangeRequest
					answer string
				}
				var asked []question
				ask := func(q *pb.RangeRequest) string {
					a, err := v.Range(q)
					if err == nil && q.Revision <= 0 && a.Revision != v.Revision {
						return "overtaken"
					}
					return fmt.Sprintf("%x %d %v %v", a.Pairs, a.Count, a.More, err)
				}
				for range 10 {
					q := r.read(int64(v.Revision))
					asked = append(asked, question{q, ask(q)})
				}
				nodes := func() (string, state.Revision) {
					n, at, err := v.Node("/", true)
					if err != nil {
						t.Error(err)
					}
					return fmt.Sprint(n), at
				}
				hierarchy, at := nodes()
				told, toldErr := v.Changes(v.Revision)
				hash, hashErr := v.HashKV(0)
				for range 5 {
					for _, x := range asked {
						again := ask(x.q)
						compacted := strings.Contains(again, "compacted") || again == "overtaken"
						if again != x.answer && !compacted {
							t.Errorf("%v at view %d: %s, then %s", x.q, v.Revision, x.answer, again)
							return
						}
						if !compacted {
							stable.Add(1)
						}
					}
				}
				if again, now := nodes(); now == at && again != hierarchy {
					t.Errorf("nodes of view %d: %s, then %s", at, hierarchy, again)
					return
				}
				if again, err := v.Changes(v.Revision); toldErr == nil && err == nil && !reflect.DeepEqual(again, told) {
					t.Errorf("changes of view %d: %v, then %v", v.Revision, told, again)
					return
				}
				again, err := v.HashKV(0)
				if hashErr != nil || err != nil {
					t.Error(hashErr, err)
					return
				}
				if again.HashRevision == hash.HashRevision && again.CompactRevision == hash.CompactRevision && again.Hash != hash.Hash {
					t.Errorf("hash of view %d: %v, then %v", v.Revision, hash, again)
					return
				}
				from := max(v.Compacted, 1)
				last := state.Position{}
				for e, err := range v.History(state.Span{Key: []byte{0}, End: []byte{0}}, from, v.Revision) {
					if err != nil {
						if !errors.Is(err, errCompacted) {
							t.Error(err)
						}
						break
					}
					at := state.Position{Main: e.Revision, Sub: e.Sub}
					if at.Main < last.Main || at.Main == last.Main && at.Sub <= last.Sub && last.Main != 0 {
						t.Errorf("history: %v after %v", at, last)
						return
					}
					last = at
				}
			}
		})
	}
	wg.Wait()
	if stable.Load() == 0 {
		t.Error("no view was read twice")
	}
}

// TestHotKey puts one key again and again, beside one that is created and
// deleted in turns, while its history is read, compacted and swept. None of it
// may take time that grows with the square of the number of versions: here
// that would be hours.
func TestHotKey(t *testing.T) {
	const versions = 200_000
	b := newBed(t, true)
	defer b.Close()
	b.options.MemtableBytes = 0
	b.crash(t, 0)
	hot := encode(t, state.Command{Kind: state.Put, Request: &pb.PutRequest{Key: []byte("hot"), Value: []byte("v")}})
	on := encode(t, state.Command{Kind: state.Put, Request: &pb.PutRequest{Key: []byte("blink")}})
	off := encode(t, state.Command{Kind: state.DeleteRange, Request: &pb.DeleteRangeRequest{Key: []byte("blink")}})
	e := state.Entry{Index: 2}
	for n := 0; n < versions; n += 4 {
		e.Commands = append(e.Commands, hot, on, hot, off)
		if len(e.Commands) == 1000 {
			if _, err := b.Apply([]state.Entry{e}); err != nil {
				t.Fatal(err)
			}
			e.Index, e.Commands = e.Index+1, e.Commands[:0]
		}
	}
	b.applied = e.Index - 1
	old := b.View().Revision
	for _, at := range []state.Revision{old / 3, old / 2, old - 1} {
		b.apply(t, state.Command{Kind: state.Compact, Request: &pb.CompactionRequest{Revision: int64(at)}})
		for i := range state.Revision(1000) {
			a, err := b.View().Range(&pb.RangeRequest{Key: []byte("hot"), Revision: int64(at + i%(old-at))})
			if err != nil || a.Count != 1 {
				t.Fatal(a, err)
			}
		}
		before := hashes(t, b.Machine)
		for more := true; more; {
			var err error
			if more, err = b.Sweep(5000); err != nil {
				t.Fatal(err)
			}
		}
		if after := hashes(t, b.Machine); after != before {
			t.Fatalf("swept %s, was %s", after, before)
		}
	}
	if total, _ := b.Size(); total > 17_000 {
		t.Fatalf("size %d after the sweep", total)
	}
}
