package table_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/kvorum/kvorum/state/internal/table"
)

// world is a table and what can happen to it.
type world struct {
	table.Table
	crash  func(t *testing.T) world // what is left when all that is unflushed is lost
	reopen func(t *testing.T) world
}

func memory(m *table.Memory) world {
	return world{
		Table:  m,
		crash:  func(*testing.T) world { return memory(m.Crash(0)) },
		reopen: func(*testing.T) world { return memory(m.Reopen()) },
	}
}

func disk(t *testing.T, fs *vfs.MemFS) world {
	t.Helper()
	tab, err := table.Open(table.Options{FS: fs, Dir: "data", MemtableBytes: 1 << 20, Border: []byte("h")})
	if err != nil {
		t.Fatal(err)
	}
	return world{
		Table: tab,
		crash: func(t *testing.T) world {
			after := fs.CrashClone(vfs.CrashCloneCfg{})
			tab.Close()
			return disk(t, after)
		},
		reopen: func(t *testing.T) world { return disk(t, fs) },
	}
}

// each runs a test on both tables.
func each(t *testing.T, test func(t *testing.T, w world)) {
	t.Run("memory", func(t *testing.T) { test(t, memory(table.NewMemory())) })
	t.Run("disk", func(t *testing.T) { test(t, disk(t, vfs.NewCrashableMem())) })
}

func rows(t *testing.T, r table.Reader) (all []string) {
	t.Helper()
	err := r.Scan([]byte{0}, []byte{255}, func(k, v []byte) bool {
		all = append(all, fmt.Sprintf("%s=%s", k, v))
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func want(t *testing.T, r table.Reader, expected ...string) {
	t.Helper()
	if got := rows(t, r); !slices.Equal(got, expected) {
		t.Fatalf("got %q, want %q", got, expected)
	}
}

func commit(t *testing.T, b table.Batch) {
	t.Helper()
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, w table.Table, key, value string) {
	t.Helper()
	b := w.Batch()
	defer b.Close()
	b.Set([]byte(key), []byte(value))
	commit(t, b)
}

func TestRows(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		b := w.Batch()
		b.Set([]byte("a"), []byte("1"))
		k, v := b.Reserve(1, 2)
		copy(k, "b")
		copy(v, "22")
		b.Set([]byte("c"), nil)
		want(t, w) // nothing before Commit
		commit(t, b)
		want(t, w, "a=1", "b=22", "c=")

		if v, ok, err := w.Get([]byte("b")); string(v) != "22" || !ok || err != nil {
			t.Fatal(v, ok, err)
		}
		if v, ok, err := w.Get([]byte("z")); len(v) != 0 || ok || err != nil {
			t.Fatal(v, ok, err)
		}

		before := w.Snapshot()
		b.Delete([]byte("a"))
		b.Set([]byte("d"), []byte("4"))
		commit(t, b) // a batch is empty again after Commit
		b.DeleteRange([]byte("b"), []byte("d"))
		commit(t, b)
		b.Close()
		want(t, w, "d=4")
		want(t, before, "a=1", "b=22", "c=")
		if err := before.Close(); err != nil {
			t.Fatal(err)
		}
		if err := w.Tidy(context.Background(), []byte{0}, []byte{255}); err != nil {
			t.Fatal(err)
		}
		want(t, w, "d=4")
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.Get([]byte("d")); !errors.Is(err, table.ErrClosed) {
			t.Fatalf("after Close: %v", err)
		}
	})
}

func TestCrashLosesWhatIsNotFlushed(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		put(t, w, "a", "1")
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		put(t, w, "b", "2")
		w = w.crash(t)
		want(t, w, "a=1")
		put(t, w, "c", "3")
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		w = w.crash(t)
		want(t, w, "a=1", "c=3")
		w.Close()
	})
}

func TestStageReplacesWhole(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		put(t, w, "old", "1")
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		stage := func() table.Stage {
			s, err := w.Stage()
			if err != nil {
				t.Fatal(err)
			}
			b := s.Batch()
			defer b.Close()
			b.Set([]byte("new"), []byte("2"))
			commit(t, b)
			return s
		}

		if err := stage().Discard(); err != nil {
			t.Fatal(err)
		}
		want(t, w, "old=1")

		next := stage()
		if err := next.Install(); err != nil {
			t.Fatal(err)
		}
		want(t, next, "new=2")
		want(t, w, "old=1") // until it is closed
		held := w.Snapshot()
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		want(t, held, "old=1")
		if err := held.Close(); err != nil {
			t.Fatal(err)
		}
		if err := next.Close(); err != nil {
			t.Fatal(err)
		}
		want(t, w.reopen(t), "new=2")
	})
}

// TestStageCrash cuts the power at every point between staging and installing.
func TestStageCrash(t *testing.T) {
	for _, installed := range []bool{false, true} {
		fs := vfs.NewCrashableMem()
		w := disk(t, fs)
		put(t, w, "old", "1")
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		s, err := w.Stage()
		if err != nil {
			t.Fatal(err)
		}
		b := s.Batch()
		b.Set([]byte("new"), []byte("2"))
		commit(t, b)
		if !installed {
			want(t, disk(t, fs.CrashClone(vfs.CrashCloneCfg{})), "old=1")
			continue
		}
		if err := s.Install(); err != nil {
			t.Fatal(err)
		}
		want(t, disk(t, fs.CrashClone(vfs.CrashCloneCfg{})), "new=2")
	}
}

// TestTwins gives both tables the same calls at random and wants the same rows.
func TestTwins(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	twins := []world{memory(table.NewMemory()), disk(t, vfs.NewCrashableMem())}
	key := func() []byte { return []byte(fmt.Sprintf("%c%02d", "ahm"[r.IntN(3)], r.IntN(40))) }

	for step := range 600 {
		switch n := r.IntN(100); {
		case n < 80:
			batches := []table.Batch{twins[0].Batch(), twins[1].Batch()}
			for range r.IntN(6) {
				from, to, value := key(), key(), []byte(fmt.Sprint(r.IntN(1000)))
				for _, b := range batches {
					switch {
					case n < 50:
						b.Set(from, value)
					case n < 70:
						b.Delete(from)
					case string(from) < string(to):
						b.DeleteRange(from, to)
					}
				}
			}
			for _, b := range batches {
				commit(t, b)
				b.Close()
			}
		case n < 90:
			for _, w := range twins {
				if err := w.Flush(); err != nil {
					t.Fatal(err)
				}
			}
		default:
			for i := range twins {
				twins[i] = twins[i].crash(t)
			}
		}
		if a, b := rows(t, twins[0]), rows(t, twins[1]); !slices.Equal(a, b) {
			t.Fatalf("step %d, seed %d: memory %q, disk %q", step, seed, a, b)
		}
	}
}
