package node

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// tableFS is the file system as the table's engine sees it. Two habits of the
// engine do not suit a member that promises to lose nothing:
//
// It says by a name that begins with "marker." which of its files is the valid
// one: it makes the file, then the new marker, removes the old one, and only
// then syncs the directory. A power loss may keep any of the three alone: a
// marker of a file that is not there, or no marker at all. So a marker is made
// or removed only after every earlier change to its directory is durable.
//
// And where a change fails, it tries again for ever, panics or goes on. A disk
// that has failed once is not to be trusted with the next change, so the first
// failure ends the member.
type tableFS struct {
	vfs.FS
	failed failure
}

// failure is the first one of the table where nobody was waiting for it.
type failure chan error // holds one

// tell has the member end. It does not return: the engine stands still where
// it failed until the process ends.
func (f failure) tell(err error) {
	select {
	case f <- err:
	default: // the first was the reason
	}
	select {}
}

// check returns what the engine can live with, and only then.
func (fs tableFS) check(err error) error {
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		fs.failed.tell(fmt.Errorf("change the table: %w", err))
	}
	return err
}

func (fs tableFS) file(f vfs.File, err error) (vfs.File, error) {
	if fs.check(err) != nil {
		return nil, err
	}
	return tableFile{f, fs}, nil
}

func (fs tableFS) settle(name string) error {
	if !strings.HasPrefix(fs.PathBase(name), "marker.") {
		return nil
	}
	dir, err := fs.FS.OpenDir(fs.PathDir(name))
	if err == nil {
		err = errors.Join(dir.Sync(), dir.Close())
	}
	if err != nil {
		return fmt.Errorf("sync folder %s: %w", fs.PathDir(name), err)
	}
	return nil
}

func (fs tableFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	fs.check(fs.settle(name))
	return fs.file(fs.FS.Create(name, category))
}

func (fs tableFS) Remove(name string) error {
	fs.check(fs.settle(name))
	return fs.check(fs.FS.Remove(name))
}

func (fs tableFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return fs.file(fs.FS.OpenReadWrite(name, category, o...))
}

func (fs tableFS) ReuseForWrite(from, to string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return fs.file(fs.FS.ReuseForWrite(from, to, category))
}

func (fs tableFS) OpenDir(name string) (vfs.File, error) { return fs.file(fs.FS.OpenDir(name)) }
func (fs tableFS) Link(from, to string) error            { return fs.check(fs.FS.Link(from, to)) }
func (fs tableFS) Rename(from, to string) error          { return fs.check(fs.FS.Rename(from, to)) }
func (fs tableFS) RemoveAll(name string) error           { return fs.check(fs.FS.RemoveAll(name)) }
func (fs tableFS) MkdirAll(name string, perm os.FileMode) error {
	return fs.check(fs.FS.MkdirAll(name, perm))
}

// Unwrap is for the engine, which looks for the file system at the bottom.
func (fs tableFS) Unwrap() vfs.FS { return fs.FS }

type tableFile struct {
	vfs.File
	fs tableFS
}

func (f tableFile) Write(b []byte) (int, error) {
	n, err := f.File.Write(b)
	return n, f.fs.check(err)
}

func (f tableFile) WriteAt(b []byte, offset int64) (int, error) {
	n, err := f.File.WriteAt(b, offset)
	return n, f.fs.check(err)
}

func (f tableFile) SyncTo(length int64) (bool, error) {
	full, err := f.File.SyncTo(length)
	return full, f.fs.check(err)
}

func (f tableFile) Sync() error     { return f.fs.check(f.File.Sync()) }
func (f tableFile) SyncData() error { return f.fs.check(f.File.SyncData()) }
