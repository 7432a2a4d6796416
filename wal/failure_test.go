package wal

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// TestFailures lets each change to the disk fail once, in turn. From then on
// the log must say no, touch nothing, and be whole when opened again.
func TestFailures(t *testing.T) {
	failed := 0
	for at := 0; ; at++ {
		mem := vfs.NewMem()
		n, fired := 0, false
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() == errorfs.OpIsRead || op.Kind == errorfs.OpFileClose {
				return nil
			}
			if fired {
				t.Fatalf("failure at %d: operation %d on %s after it", at, op.Kind, op.Path)
			}
			n++
			if fired = n == at+1; fired {
				return errorfs.ErrInjected
			}
			return nil
		}))

		s := story{}
		rng := rand.New(rand.NewPCG(1, 2))
		err := s.open(fs)
		for step := 0; err == nil && step < 200; step++ {
			err = s.play(rng)
		}
		if !fired {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		failed++
		if !errors.Is(err, errorfs.ErrInjected) {
			t.Fatalf("failure at %d: got %v", at, err)
		}
		if s.log != nil {
			for name, call := range map[string]func() error{
				"Append":  func() error { _, err := s.log.Append(Record{1, nil}); return err },
				"Sync":    s.log.Sync,
				"Settle":  s.log.Settle,
				"Release": func() error { return s.log.Release(1 << 40) },
			} {
				if again := call(); again != err {
					t.Fatalf("failure at %d: %s after it: %v", at, name, again)
				}
			}
			if again := s.log.Close(); again != err {
				t.Fatalf("failure at %d: Close after it: %v", at, again)
			}
			if _, err := s.log.Append(Record{1, nil}); err == nil {
				t.Fatal("appended to a closed log")
			}
		}
		if err := (&story{acked: s.acked, released: s.released}).open(mem); err != nil {
			t.Fatalf("failure at %d: open again: %v", at, err)
		}
	}
	t.Logf("%d failures", failed)
}

// A shortFS writes less than it is asked to, and says so only by the count.
type shortFS struct {
	vfs.FS
	short bool
}

func (fs *shortFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := fs.FS.OpenReadWrite(name, c, o...)
	return &shortFile{f, fs}, err
}

type shortFile struct {
	vfs.File
	fs *shortFS
}

func (f *shortFile) WriteAt(b []byte, offset int64) (int, error) {
	if f.fs.short {
		b = b[:len(b)-1]
	}
	return f.File.WriteAt(b, offset)
}

func TestShortWrite(t *testing.T) {
	fs := &shortFS{FS: vfs.NewMem()}
	l, err := Open(testOptions(fs), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fs.short = true
	if _, err := l.Append(Record{1, []byte("a")}); err == nil || !strings.Contains(err.Error(), "short write") {
		t.Fatalf("a short write: %v", err)
	}
	fs.short = false
	if err := l.Sync(); err == nil {
		t.Fatal("synced after a short write")
	}
}

func TestReadErrorIsNoCorruption(t *testing.T) {
	mem := vfs.NewMem()
	s := story{}
	if err := s.open(mem); err != nil {
		t.Fatal(err)
	}
	if err := s.append(rand.New(rand.NewPCG(1, 1))); err != nil {
		t.Fatal(err)
	}
	if err := s.log.Close(); err != nil {
		t.Fatal(err)
	}
	// Every way to read fails once.
	for _, kind := range []errorfs.OpKind{errorfs.OpList, errorfs.OpOpen, errorfs.OpStat, errorfs.OpFileReadAt} {
		err := (&story{}).open(errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == kind {
				return errorfs.ErrInjected
			}
			return nil
		})))
		if !errors.Is(err, errorfs.ErrInjected) {
			t.Errorf("operation %d: %v", kind, err)
		}
	}
}

func TestLocked(t *testing.T) {
	fs := vfs.NewMem()
	l, err := Open(testOptions(fs), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(testOptions(fs), nil); err == nil {
		t.Fatal("opened twice")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestReplayError(t *testing.T) {
	fs := vfs.NewMem()
	l, err := Open(testOptions(fs), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Append(Record{1, nil}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	no := errors.New("no")
	if _, err := Open(testOptions(fs), func(Position, Record) error { return no }); !errors.Is(err, no) {
		t.Fatal(err)
	}
}
