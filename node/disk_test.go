package node

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A disk is a file system in memory that knows what a power loss may leave of
// it. That of a MemFS keeps or loses blocks of 4 KiB; for the log, which is
// written over old contents, this one also knows sectors of 512 bytes, each of
// which a power loss leaves old, new, as zeros or as garbage.
type disk struct {
	vfs.FS
	mem *vfs.MemFS

	mu struct {
		sync.Mutex
		files map[string]*contents // of the log, by path
	}
}

type contents struct {
	data, synced []byte
	named        bool // the name is durable
}

const sectorBytes = 512

// newDisk returns a disk with everything synced that mem holds.
func newDisk(mem *vfs.MemFS) *disk {
	d := &disk{FS: mem, mem: mem}
	d.mu.files = map[string]*contents{}
	names, err := mem.List(logDir)
	if err != nil {
		return d // there is none yet
	}
	for _, name := range names {
		path := mem.PathJoin(logDir, name)
		b, err := mem.UnsafeGetFileDataBuffer(path)
		if err != nil {
			panic(fmt.Sprintf("read %s: %v", path, err))
		}
		d.mu.files[path] = &contents{slices.Clone(b), slices.Clone(b), true}
	}
	return d
}

func (d *disk) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	if !strings.HasPrefix(name, logDir+"/") {
		return d.FS.OpenReadWrite(name, c, o...)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.FS.OpenReadWrite(name, c, o...)
	if err != nil {
		return nil, err
	}
	if d.mu.files[name] == nil {
		d.mu.files[name] = &contents{}
	}
	return &diskFile{f, d, d.mu.files[name]}, nil
}

// Lock keeps clones away: the Lock of a MemFS waits for ever if one is wanted
// while it makes its file.
func (d *disk) Lock(name string) (io.Closer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.FS.Lock(name)
}

func (d *disk) OpenDir(name string) (vfs.File, error) {
	f, err := d.FS.OpenDir(name)
	if err != nil || name != logDir {
		return f, err
	}
	return &diskFile{f, d, nil}, nil
}

func (d *disk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.FS.Rename(from, to); err != nil {
		return err
	}
	if c := d.mu.files[from]; c != nil {
		c.named = false
		d.mu.files[to] = c
		delete(d.mu.files, from)
	}
	return nil
}

func (d *disk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.FS.Remove(name); err != nil {
		return err
	}
	delete(d.mu.files, name)
	return nil
}

type diskFile struct {
	vfs.File
	disk *disk
	c    *contents // nil of a directory
}

func (f *diskFile) WriteAt(b []byte, offset int64) (int, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	n, err := f.File.WriteAt(b, offset)
	if grow := int(offset) + n - len(f.c.data); grow > 0 {
		f.c.data = append(f.c.data, make([]byte, grow)...)
	}
	copy(f.c.data[offset:], b[:n])
	return n, err
}

func (f *diskFile) SyncData() error { return f.Sync() }

func (f *diskFile) Sync() error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if err := f.File.Sync(); err != nil {
		return err
	}
	if f.c != nil {
		f.c.synced = slices.Clone(f.c.data)
		return nil
	}
	for _, c := range f.disk.mu.files {
		c.named = true
	}
	return nil
}

// powerLoss returns what a power loss at this moment may leave, with about a
// share of what was not synced.
func (d *disk) powerLoss(rng *rand.Rand, percent int, tear bool) *vfs.MemFS {
	d.mu.Lock()
	defer d.mu.Unlock()
	left := d.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
	if !tear {
		return left
	}
	for path, c := range d.mu.files {
		// Which contents an unsynced name has is the clone's to say.
		if !c.named || bytes.Equal(c.data, c.synced) {
			continue
		}
		if err := write(left, path, c.torn(rng, percent)); err != nil {
			panic(fmt.Sprintf("tear %s: %v", path, err))
		}
	}
	return left
}

func (c *contents) torn(rng *rand.Rand, percent int) []byte {
	size := len(c.data)
	if size > len(c.synced) {
		size = len(c.synced) + rng.IntN(size-len(c.synced)+1)
	}
	b := make([]byte, size)
	copy(b, c.synced)
	for at := 0; at < size; at += sectorBytes {
		was, is := b[at:min(at+sectorBytes, size)], c.data[at:min(at+sectorBytes, size)]
		if rng.IntN(100) < percent {
			copy(was, is)
			continue
		}
		kind := rng.IntN(3) // old, zeros or garbage; bytes that did not change survive
		for i := range is {
			if was[i] != is[i] && kind > 0 {
				was[i] = 0
				if kind == 2 {
					was[i] = byte(rng.Uint32())
				}
			}
		}
	}
	return b
}

func write(fs vfs.FS, path string, data []byte) error {
	f, err := fs.Create(path, "test")
	if err != nil {
		return err
	}
	if _, err := f.Write(slices.Clone(data)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return syncDir(fs, fs.PathDir(path))
}

func syncDir(fs vfs.FS, path string) error {
	dir, err := fs.OpenDir(path)
	if err != nil {
		return err
	}
	if err := dir.Sync(); err != nil {
		return err
	}
	return dir.Close()
}
