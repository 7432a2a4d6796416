package node

import (
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// markersLast is a file system on which a name that begins with "marker." is
// made or removed only after every earlier change to its directory is durable.
//
// The table's engine says by such a name which of its files is the valid one:
// it makes the file, then the new marker, then removes the old one, and only
// then syncs the directory. A power loss may keep any of the three alone: a
// marker of a file that is not there, or no marker at all.
type markersLast struct{ vfs.FS }

func (fs markersLast) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := fs.settle(name); err != nil {
		return nil, err
	}
	return fs.FS.Create(name, category)
}

func (fs markersLast) Remove(name string) error {
	if err := fs.settle(name); err != nil {
		return err
	}
	return fs.FS.Remove(name)
}

func (fs markersLast) settle(name string) error {
	if !strings.HasPrefix(fs.PathBase(name), "marker.") {
		return nil
	}
	dir, err := fs.OpenDir(fs.PathDir(name))
	if err != nil {
		return err
	}
	if err := dir.Sync(); err != nil {
		dir.Close()
		return err
	}
	return dir.Close()
}

// Unwrap is for the engine, which looks for the file system at the bottom.
func (fs markersLast) Unwrap() vfs.FS { return fs.FS }
