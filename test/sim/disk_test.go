package sim

import (
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// disk is the file system below the log of a member. It knows of each sector
// what was there at the last sync, and of each name what it meant at the last
// sync of its directory, so that it can show what a power loss leaves.
type disk struct {
	vfs.FS // what the log has no use for panics

	rng            *rand.Rand
	names, durable map[string]*inode
	tear           tearing
	mark           func(name string)

	full     bool // nothing can grow
	failIn   int  // changes until one fails; 0: none will
	dead     bool // one has failed: nothing works any more
	unsynced bool // the one that failed was a sync: nobody knows what is on the disk
}

// tearing says what a power loss does to sectors that are not synced.
type tearing struct {
	lose   int // percent that are not written as they should be
	garble int // percent of those that hold neither old nor new bytes
}

type inode struct {
	data   []byte
	synced int            // length at the last sync
	dirty  map[int][]byte // by number of the sector: its bytes at the last sync
}

const sectorBytes = 512

var errDisk = errors.New("input/output error")

func newDisk(rng *rand.Rand, tear tearing, mark func(string)) *disk {
	return &disk{rng: rng, tear: tear, mark: mark, names: map[string]*inode{}, durable: map[string]*inode{}}
}

// change is called before each change, and fails it if that is due.
func (d *disk) change() error {
	if d.dead {
		return errDisk
	}
	if d.failIn > 0 {
		if d.failIn--; d.failIn == 0 {
			d.dead = true
			return errDisk
		}
	}
	return nil
}

func (n *inode) write(b []byte, offset int) {
	end := offset + len(b)
	for s := offset / sectorBytes; s*sectorBytes < end; s++ {
		if _, known := n.dirty[s]; !known {
			from := min(s*sectorBytes, n.synced)
			before := slices.Clone(n.data[from:min((s+1)*sectorBytes, n.synced)])
			if n.dirty == nil {
				n.dirty = map[int][]byte{}
			}
			n.dirty[s] = before
		}
	}
	if grow := end - len(n.data); grow > 0 {
		n.data = append(n.data, make([]byte, grow)...)
	}
	copy(n.data[offset:], b)
}

func (n *inode) sync() {
	n.synced = len(n.data)
	clear(n.dirty)
}

// kill is the end of a process: what it wrote is with the operating system.
func (d *disk) kill() {
	if d.unsynced {
		d.loseFiles() // the cache says one thing and the disk another
	}
	d.failIn, d.dead, d.unsynced = 0, false, false
}

// lose is a power loss.
func (d *disk) lose() {
	names := map[string]*inode{}
	for _, name := range slices.Sorted(maps.Keys(d.names)) {
		if d.durable[name] == d.names[name] || d.rng.IntN(100) >= d.tear.lose {
			names[name] = d.names[name]
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.durable)) {
		// A name that was removed or given to another file may come back.
		if names[name] == nil && (d.names[name] != nil || d.rng.IntN(100) < d.tear.lose) {
			names[name] = d.durable[name]
			d.mark("power lost: removed file came back")
		}
	}
	// A file that was renamed may be there under both names; they part here.
	seen := map[*inode]bool{}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		n := names[name]
		if seen[n] {
			n = &inode{data: slices.Clone(n.data), synced: n.synced, dirty: maps.Clone(n.dirty)}
			names[name] = n
		}
		seen[n] = true
	}
	d.names = names
	d.loseFiles()
	d.durable = maps.Clone(d.names)
	d.failIn, d.dead, d.unsynced = 0, false, false
}

func (d *disk) loseFiles() {
	for _, name := range slices.Sorted(maps.Keys(d.names)) {
		d.loseOf(d.names[name])
	}
}

// loseOf loses what a file may lose.
func (d *disk) loseOf(n *inode) {
	rng, t := d.rng, d.tear
	if len(n.dirty) == 0 && n.synced == len(n.data) {
		return
	}
	if len(n.data) > n.synced && rng.IntN(100) < t.lose {
		n.data = n.data[:n.synced+rng.IntN(len(n.data)-n.synced+1)]
		d.mark("power lost: file cut short")
	}
	for _, s := range slices.Sorted(maps.Keys(n.dirty)) {
		if s*sectorBytes >= len(n.data) {
			continue
		}
		if rng.IntN(100) >= t.lose {
			d.mark("power lost: unsynced sector kept")
			continue
		}
		now := n.data[s*sectorBytes : min((s+1)*sectorBytes, len(n.data))]
		old := make([]byte, len(now))
		copy(old, n.dirty[s])
		if rng.IntN(100) >= t.garble {
			copy(now, old)
			d.mark("power lost: unsynced sector lost")
			continue
		}
		// Bytes that the write left as they were survive it. From some byte on,
		// the others are old, zero or garbage.
		from, kind := rng.IntN(len(now)), rng.IntN(3)
		d.mark([]string{"power lost: sector torn", "power lost: sector zeroed", "power lost: sector garbled"}[kind])
		for i := from; i < len(now); i++ {
			if old[i] == now[i] {
				continue
			}
			switch kind {
			case 0:
				now[i] = old[i]
			case 1:
				now[i] = 0
			case 2:
				now[i] = byte(rng.Uint32())
			}
		}
	}
	n.sync()
}

func (d *disk) PathBase(p string) string               { return path.Base(p) }
func (d *disk) PathJoin(elem ...string) string         { return path.Join(elem...) }
func (d *disk) PathDir(p string) string                { return path.Dir(p) }
func (d *disk) MkdirAll(string, os.FileMode) error     { return d.change() }
func (d *disk) Lock(string) (io.Closer, error)         { return io.NopCloser(nil), nil }
func (d *disk) OpenDir(name string) (vfs.File, error)  { return &folder{d: d, name: name}, nil }
func (d *disk) Stat(name string) (vfs.FileInfo, error) { return d.stat(name) }
func (d *disk) Open(name string, _ ...vfs.OpenOption) (vfs.File, error) {
	n := d.names[name]
	if n == nil {
		return nil, os.ErrNotExist
	}
	return &file{d: d, n: n}, nil
}

func (d *disk) OpenReadWrite(name string, _ vfs.DiskWriteCategory, _ ...vfs.OpenOption) (vfs.File, error) {
	n := d.names[name]
	if n == nil {
		if err := d.change(); err != nil {
			return nil, err
		}
		if d.full {
			d.dead = true
			return nil, syscall.ENOSPC
		}
		n = &inode{}
		d.names[name] = n
	}
	return &file{d: d, n: n}, nil
}

func (d *disk) List(dir string) ([]string, error) {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(d.names)) {
		if rest, ok := strings.CutPrefix(name, dir+"/"); ok {
			names = append(names, rest)
		}
	}
	return names, nil
}

func (d *disk) Rename(from, to string) error {
	if err := d.change(); err != nil {
		return err
	}
	if d.names[from] == nil {
		return os.ErrNotExist
	}
	d.names[to] = d.names[from]
	delete(d.names, from)
	return nil
}

func (d *disk) Remove(name string) error {
	if err := d.change(); err != nil {
		return err
	}
	if d.names[name] == nil {
		return os.ErrNotExist
	}
	delete(d.names, name)
	return nil
}

type fileInfo struct {
	vfs.FileInfo
	size int64
}

func (i fileInfo) Size() int64 { return i.size }

func (d *disk) stat(name string) (vfs.FileInfo, error) {
	n := d.names[name]
	if n == nil {
		return nil, os.ErrNotExist
	}
	return fileInfo{size: int64(len(n.data))}, nil
}

type folder struct {
	vfs.File
	d    *disk
	name string
}

func (f *folder) Close() error { return nil }

func (f *folder) Sync() error {
	if err := f.d.change(); err != nil {
		return err
	}
	f.d.durable = maps.Clone(f.d.names)
	return nil
}

type file struct {
	vfs.File
	d *disk
	n *inode
}

func (f *file) Close() error { return nil }

func (f *file) ReadAt(b []byte, offset int64) (int, error) {
	if offset >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.n.data[offset:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) WriteAt(b []byte, offset int64) (int, error) {
	if err := f.d.change(); err != nil {
		part := f.d.rng.IntN(len(b) + 1)
		f.n.write(b[:part], int(offset))
		return part, err
	}
	if f.d.full && int(offset)+len(b) > len(f.n.data) {
		f.d.dead = true
		return 0, syscall.ENOSPC
	}
	f.n.write(b, int(offset))
	return len(b), nil
}

func (f *file) Sync() error {
	if err := f.d.change(); err != nil {
		f.d.unsynced = true
		return err
	}
	f.n.sync()
	return nil
}

func (f *file) SyncData() error { return f.Sync() }
