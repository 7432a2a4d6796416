package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// formatVersion is the layout of the data directory. A member refuses a
// directory of a newer format, and changes nothing in it.
const formatVersion = 1

// dataDir is a member's directory, locked for as long as it is open:
//
//	LOCK            who holds it: a process id
//	identity.json   whose it is; written before anything else
//	wal/            the log
//	table/          keys, leases, members …
type dataDir struct {
	path string
	lock *os.File

	identity identity
	found    bool // identity.json was there
}

// identity says which member of which cluster a data directory belongs to.
type identity struct {
	Format  int    `json:"format"`
	Cluster uint64 `json:"cluster_id,string"`
	Member  uint64 `json:"member_id,string"`

	// Started is set once the first log and table are on disk. A directory
	// that has been started and whose log is empty has lost it: the member
	// may have voted and acknowledged, and must not begin anew.
	Started bool `json:"started"`

	// Joined says that the member has added itself to its cluster, and asks
	// for a vote once it holds what the others hold.
	Joined bool `json:"joined,omitempty"`

	// Removed is set once another member has said that this one is none any
	// more.
	Removed bool `json:"removed,omitempty"`

	// Forced says that the member has dropped the others and was not started
	// since without being told to. A command line that still says so must not
	// drop those who have joined meanwhile.
	Forced bool `json:"forced,omitempty"`
}

// openDataDir creates path where it is missing, and locks it.
func openDataDir(path string) (*dataDir, error) {
	if _, err := os.Stat(filepath.Join(path, "member", "snap", "db")); err == nil {
		return nil, fmt.Errorf("data directory %s holds the data of an etcd server: choose another --data-dir (data moves over as a snapshot, not as a directory)", path)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("create data directory: %w: choose a --data-dir that this user may write", err)
	}
	if err := unix.Access(path, unix.W_OK|unix.X_OK); err != nil {
		return nil, fmt.Errorf("data directory %s is not writable (%w): give it to this user, or choose another --data-dir", path, err)
	}

	d := &dataDir{path: path}
	if err := d.acquire(); err != nil {
		return nil, err
	}
	if err := d.read(); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// acquire takes the lock. The lock dies with the process, however it dies, so
// that no stale one is ever in the way; the number in the file is for people.
func (d *dataDir) acquire() error {
	name := filepath.Join(d.path, "LOCK")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open lock file: %w", err)
	}
	whole := unix.Flock_t{Type: unix.F_WRLCK, Whence: 0}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &whole); err != nil {
		holder, _ := os.ReadFile(name)
		f.Close()
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return fmt.Errorf("data directory %s is in use by process %s: stop it, or choose another --data-dir", d.path, describeProcess(string(holder)))
		}
		return fmt.Errorf("lock %s: %w", name, err)
	}
	if err := f.Truncate(0); err != nil {
		f.Close()
		return fmt.Errorf("write lock file: %w", err)
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		f.Close()
		return fmt.Errorf("write lock file: %w", err)
	}
	d.lock = f
	return nil
}

func describeProcess(holder string) string {
	pid := strings.TrimSpace(holder)
	if pid == "" {
		return "(unknown)"
	}
	if command, err := os.ReadFile(filepath.Join("/proc", pid, "comm")); err == nil {
		return pid + " (" + strings.TrimSpace(string(command)) + ")"
	}
	return pid
}

func (d *dataDir) identityFile() string { return filepath.Join(d.path, "identity.json") }

func (d *dataDir) read() error {
	text, err := os.ReadFile(d.identityFile())
	if errors.Is(err, fs.ErrNotExist) {
		for _, room := range []string{"wal", "table"} {
			if entries, err := os.ReadDir(filepath.Join(d.path, room)); err == nil && len(entries) > 0 {
				return fmt.Errorf("%s is missing although %s holds data: restore the file from a copy, or move the directory away and let the member join anew", d.identityFile(), filepath.Join(d.path, room))
			}
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read identity: %w", err)
	}
	if err := json.Unmarshal(text, &d.identity); err != nil {
		return fmt.Errorf("%s is damaged (%w): restore it from a copy, or move the directory away and let the member join anew", d.identityFile(), err)
	}
	if d.identity.Format > formatVersion {
		return fmt.Errorf("data directory %s has format %d, newer than this program reads (%d): run the newer version", d.path, d.identity.Format, formatVersion)
	}
	if d.identity.Member == 0 || d.identity.Cluster == 0 {
		return fmt.Errorf("%s is damaged (no member or cluster id): restore it from a copy, or move the directory away and let the member join anew", d.identityFile())
	}
	d.found = true
	return nil
}

// claim writes whose directory this is, durably: file, rename, directory.
func (d *dataDir) claim(id identity) error {
	id.Format = formatVersion
	text, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	if err := writeDurably(d.identityFile(), append(text, '\n')); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	d.identity, d.found = id, true
	return nil
}

func writeDurably(name string, text []byte) error {
	temp := name + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(temp, name); err != nil {
		return err
	}
	return syncDirectory(filepath.Dir(name))
}

func syncDirectory(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// Close gives the lock up.
func (d *dataDir) Close() error { return d.lock.Close() }
