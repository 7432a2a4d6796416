package wal

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A disk is a file system that knows what a power loss may leave of it, down
// to single sectors. It mirrors the writes of one directory; everything else
// is vfs.MemFS, whose own crash clones are tried as well.
type disk struct {
	vfs.FS
	mem *vfs.MemFS

	names, durable map[string]*inode // by base name
	step           func()            // called around every change
}

type inode struct{ data, synced []byte }

const sectorBytes = 512

func newDisk(mem *vfs.MemFS) *disk {
	d := &disk{FS: mem, mem: mem, names: map[string]*inode{}, durable: map[string]*inode{}, step: func() {}}
	files := readAll(mem)
	for name, data := range files {
		n := &inode{data: data, synced: slices.Clone(data)}
		d.names[name], d.durable[name] = n, n
	}
	return d
}

func (d *disk) base(path string) string { return d.PathBase(path) }

func (d *disk) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := d.FS.OpenReadWrite(name, c, o...)
	if err != nil {
		return nil, err
	}
	n := d.names[d.base(name)]
	if n == nil {
		n = &inode{}
		d.names[d.base(name)] = n
	}
	d.step()
	return &diskFile{File: f, d: d, n: n}, nil
}

func (d *disk) OpenDir(name string) (vfs.File, error) {
	f, err := d.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &diskFile{File: f, d: d, isDir: strings.HasSuffix(name, testDir)}, nil
}

func (d *disk) MkdirAll(name string, perm os.FileMode) error {
	defer d.step()
	return d.FS.MkdirAll(name, perm)
}

func (d *disk) Rename(from, to string) error {
	if err := d.FS.Rename(from, to); err != nil {
		return err
	}
	d.names[d.base(to)] = d.names[d.base(from)]
	delete(d.names, d.base(from))
	d.step()
	return nil
}

func (d *disk) Remove(name string) error {
	if err := d.FS.Remove(name); err != nil {
		return err
	}
	delete(d.names, d.base(name))
	d.step()
	return nil
}

type diskFile struct {
	vfs.File
	d     *disk
	n     *inode
	isDir bool
}

func (f *diskFile) WriteAt(b []byte, offset int64) (int, error) {
	n, err := f.File.WriteAt(b, offset)
	if grow := int(offset) + len(b) - len(f.n.data); grow > 0 {
		f.n.data = append(f.n.data, make([]byte, grow)...)
	}
	copy(f.n.data[offset:], b)
	f.d.step()
	return n, err
}

func (f *diskFile) SyncData() error { return f.Sync() }

func (f *diskFile) Sync() error {
	if err := f.File.Sync(); err != nil {
		return err
	}
	switch {
	case f.n != nil:
		f.n.synced = slices.Clone(f.n.data)
	case f.isDir:
		f.d.durable = maps.Clone(f.d.names)
	}
	f.d.step()
	return nil
}

// powerLoss returns what a power loss may leave: of each directory entry and
// each sector that was not synced the old, the new, or, for sectors, anything.
// The synced bytes of a sector that was written to again stay.
func (d *disk) powerLoss(rng *rand.Rand) map[string][]byte {
	bias := rng.IntN(101) // share of what is lost
	files := map[string][]byte{}
	for _, name := range slices.Sorted(maps.Keys(d.names)) {
		if d.durable[name] != d.names[name] && rng.IntN(100) >= bias {
			files[name] = d.names[name].torn(rng, bias)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.durable)) {
		if files[name] != nil || d.names[name] == nil && rng.IntN(100) >= bias {
			continue
		}
		files[name] = d.durable[name].torn(rng, bias)
	}
	return files
}

func (n *inode) torn(rng *rand.Rand, bias int) []byte {
	size := len(n.data)
	if len(n.synced) < size {
		size = len(n.synced) + rng.IntN(size-len(n.synced)+1)
	}
	b := make([]byte, size)
	copy(b, n.synced)
	for at := 0; at < size; at += sectorBytes {
		end := min(at+sectorBytes, size)
		now := n.data[at:min(end, len(n.data))]
		before := make([]byte, end-at)
		if at < len(n.synced) {
			copy(before, n.synced[at:min(end, len(n.synced))])
		}
		if slices.Equal(before, now) {
			continue
		}
		if rng.IntN(100) >= bias {
			copy(b[at:end], now)
			continue
		}
		// Bytes that the write did not change survive it; the rest may be old,
		// zero or garbage.
		kind := rng.IntN(3)
		for i := range now {
			if before[i] != now[i] && kind > 0 {
				b[at+i] = 0
				if kind == 2 {
					b[at+i] = byte(rng.Uint32())
				}
			}
		}
	}
	return b
}

const testDir = "wal"

func readAll(fs *vfs.MemFS) map[string][]byte {
	files := map[string][]byte{}
	names, err := fs.List("/" + testDir)
	if err != nil {
		return files
	}
	for _, name := range names {
		if name == "LOCK" {
			continue
		}
		b, err := fs.UnsafeGetFileDataBuffer("/" + testDir + "/" + name)
		if err != nil {
			panic(err)
		}
		files[name] = slices.Clone(b)
	}
	return files
}

// newMem returns a file system with these files, all synced.
func newMem(files map[string][]byte) *vfs.MemFS {
	mem := vfs.NewCrashableMem()
	check := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	sync := func(dir string) {
		d, err := mem.OpenDir(dir)
		check(err)
		check(d.Sync())
		check(d.Close())
	}
	check(mem.MkdirAll("/"+testDir, 0o700))
	for name, data := range files {
		f, err := mem.Create("/"+testDir+"/"+name, writeCategory)
		check(err)
		if len(data) > 0 {
			_, err = f.Write(slices.Clone(data))
			check(err)
		}
		check(f.Sync())
		check(f.Close())
	}
	sync("/" + testDir)
	sync("/")
	return mem
}

// A story is a log with what its user knows: batches are numbered from 0, and
// each record says which one of its batch it is and how many there are.
type story struct {
	log      *Log
	starts   []Position // of the batches appended in this run, by batch-from
	from     int
	appended int // batches handed to Append, also when that did not return
	acked    int // batches appended before a Sync that returned
	released int // batches below may be gone
	segment  int64
}

func storyOptions(fs vfs.FS, s *story) Options {
	return Options{
		FS: fs, Dir: "/" + testDir, Identity: [16]byte{7}, SegmentBytes: max(8192, s.segment),
		Salt: func() uint64 { return storySalt },
		Head: func() []Record { return []Record{{headType, []byte(strconv.Itoa(s.appended))}} },
	}
}

const (
	headType  = 9
	storySalt = 0x5a17_5a17_5a17_5a17
)

// open recovers the log and checks it against what must and may be there.
func (s *story) open(fs vfs.FS) error {
	var at Position // of the next record
	batch, record, first, heads := -1, 0, -1, 0
	size := 0
	l, err := Open(storyOptions(fs, s), func(p Position, r Record) error {
		if at != 0 && p != at {
			return fmt.Errorf("position %d after %d", p, at-1)
		}
		at = p + 1
		if r.Type == headType {
			n, _ := strconv.Atoi(string(r.Data))
			heads = max(heads, n)
			if record != size {
				return fmt.Errorf("head inside batch %d", batch)
			}
			return nil
		}
		var b, i, n int
		if _, err := fmt.Sscanf(string(r.Data), "%d/%d/%d ", &b, &i, &n); err != nil {
			return err
		}
		switch {
		case batch < 0:
			first = b
			if i != 0 {
				return fmt.Errorf("the first record is %d of batch %d", i, b)
			}
		case record < size && (b != batch || i != record):
			return fmt.Errorf("record %d/%d inside batch %d", b, i, batch)
		case record == size && (b != batch+1 || i != 0):
			return fmt.Errorf("batch %d/%d after batch %d", b, i, batch)
		}
		batch, record, size = b, i+1, n
		s.appended = b + 1 // the next head says so
		return nil
	})
	if err != nil {
		return err
	}
	s.log = l
	switch {
	case record != size:
		return fmt.Errorf("batch %d ends after %d of %d records", batch, record, size)
	case first > s.released || first < 0 && s.acked > s.released:
		return fmt.Errorf("begins at batch %d, but only those before %d were released", first, s.released)
	case first > 0 && heads < first:
		return fmt.Errorf("begins at batch %d, but the newest head knows %d", first, heads)
	case heads < s.released:
		return fmt.Errorf("the newest head knows %d, but all before %d were released", heads, s.released)
	}
	last := max(batch+1, heads)
	if last < s.acked {
		return fmt.Errorf("ends after batch %d of %d acknowledged", last, s.acked)
	}
	s.appended, s.acked, s.from, s.starts = last, last, last, nil
	return nil
}

func (s *story) append(rng *rand.Rand) error {
	n := 1 + rng.IntN(4)
	var records []Record
	for i := range n {
		size := rng.IntN(300)
		if rng.IntN(40) == 0 {
			size = 12000 // more than a segment
		}
		data := fmt.Appendf(nil, "%d/%d/%d ", s.appended, i, n)
		records = append(records, Record{1 + uint8(rng.IntN(3)), append(data, make([]byte, size)...)})
	}
	p, err := s.log.Append(records...)
	if err != nil {
		return err
	}
	s.appended++
	s.starts = append(s.starts, p)
	return nil
}

// play does something at random, and looks whether the size is right.
func (s *story) play(rng *rand.Rand) error {
	if err := s.act(rng); err != nil {
		return err
	}
	var size int64
	names, err := s.log.o.FS.List(s.log.o.Dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		info, err := s.log.o.FS.Stat(s.log.o.FS.PathJoin(s.log.o.Dir, name))
		if err != nil {
			return err
		}
		size += info.Size()
	}
	if size != s.log.Size() {
		return fmt.Errorf("the size is %d, not %d", size, s.log.Size())
	}
	return nil
}

func (s *story) act(rng *rand.Rand) error {
	switch k := rng.IntN(20); {
	case k < 10:
		return s.append(rng)
	case k < 17:
		if err := s.log.Sync(); err != nil {
			return err
		}
		s.acked = s.appended
	case k < 18:
		if err := s.log.Settle(); err != nil {
			return err
		}
		s.acked = s.appended
	default:
		// The head of the last segment must cover what is released.
		if len(s.starts) < 6 {
			return nil
		}
		keep := len(s.starts) - 6
		s.released = max(s.released, min(s.from+keep, s.headed()))
		return s.log.Release(s.starts[max(0, s.released-s.from)])
	}
	return nil
}

// headed returns the batches that the last segment's head knows.
func (s *story) headed() int {
	for i, p := range s.starts {
		if p >= s.log.last.first {
			return s.from + i
		}
	}
	return s.from
}

// A crash is the moment of a power loss.
type crash struct {
	files    map[string][]byte
	mem      *vfs.MemFS
	expected story
}

// watch calls lost for the power losses possible at each change to the disk.
func (s *story) watch(d *disk, rng *rand.Rand, each int, lost func(crash)) {
	steps := 0
	d.step = func() {
		steps++
		if steps%each != 0 {
			return
		}
		expected := story{acked: s.acked, released: s.released, segment: s.segment}
		for range 3 {
			lost(crash{files: d.powerLoss(rng), expected: expected})
		}
		for _, percent := range []int{0, 10, 50, 90, 100} {
			lost(crash{mem: d.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng}), expected: expected})
		}
	}
}

func (c crash) disk() *disk {
	if c.mem == nil {
		return newDisk(newMem(c.files))
	}
	return newDisk(c.mem)
}

// TestPowerLoss cuts the power at every change to the disk, recovers, cuts it
// again during the recovery, goes on and looks again.
func TestPowerLoss(t *testing.T) {
	rounds := 3
	if v := os.Getenv("KVORUM_WAL_ROUNDS"); v != "" {
		rounds, _ = strconv.Atoi(v)
	}
	seed := rand.Uint64()
	if v := os.Getenv("KVORUM_WAL_SEED"); v != "" {
		seed, _ = strconv.ParseUint(v, 10, 64)
	}
	states := 0
	for round := range rounds {
		rng := rand.New(rand.NewPCG(seed, uint64(round)))
		fail := func(what string, err error) {
			t.Helper()
			t.Fatalf("KVORUM_WAL_SEED=%d round %d: %s: %v", seed, round, what, err)
		}

		second := func(c crash) {
			states++
			s, d := c.expected, c.disk()
			if err := s.open(d); err != nil {
				fail("second power loss", err)
			}
			s.log.closeFiles()
		}
		first := func(c crash) {
			states++
			s, d := c.expected, c.disk()
			if rng.IntN(20) == 0 {
				s.watch(d, rng, 1, second)
			}
			if err := s.open(d); err != nil {
				fail("power loss", err)
			}
			if rng.IntN(4) > 0 {
				s.log.closeFiles()
				return
			}
			// What was cut must not come back behind what is written now.
			for range 1 + rng.IntN(10) {
				if err := s.play(rng); err != nil {
					fail("go on", err)
				}
			}
			s.log.closeFiles()
			second(crash{files: d.powerLoss(rng), expected: story{acked: s.acked, released: s.released, segment: s.segment}})
		}

		s := &story{segment: 8192 << (round % 2)}
		d := newDisk(vfs.NewCrashableMem())
		s.watch(d, rng, 1, first)
		if err := s.open(d); err != nil {
			fail("open", err)
		}
		for range 60 {
			if rng.IntN(20) == 0 {
				err := s.log.Close()
				if err == nil {
					s.acked = s.appended
					err = s.open(d)
				}
				if err != nil {
					fail("reopen", err)
				}
			}
			if err := s.play(rng); err != nil {
				fail("play", err)
			}
		}
		s.log.closeFiles()
	}
	t.Logf("seed %d: %d crash states", seed, states)
}
