package table

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"
)

// Options say where a table on disk lives and whom it tells of what happens.
type Options struct {
	FS  FS     // default the operating system's
	Dir string // made where it does not exist

	MemtableBytes uint64 // default 64 MiB
	CacheBytes    int64  // of uncompressed blocks; default 8 MiB

	// Border splits the key space: no file holds keys on both sides of it.
	// Rows below it are rewritten with each batch, rows above it arrive in
	// order; were they to share files, every file would overlap every other
	// and compaction would rewrite all of them instead of moving them.
	Border []byte

	// Log hears what the engine says, a line at a time. Default: nobody does.
	Log func(line string)

	// Broken is told once when a write in the background failed. From then on
	// Flush may never return, so the process has to end.
	Broken func(error)
}

// disk is a table on Pebble.
type disk struct {
	// Immutable after open.
	opts Options
	name string // of the folder in opts.Dir
	db   *pebble.DB

	// Pebble panics when it is used after Close. So the last to leave a closed
	// table ends it, and a reader of a replaced one can finish.
	mu struct {
		sync.Mutex
		inside  int
		closed  bool
		retired bool // another table has taken its place
	}

	failed *failure
}

// failure remembers the first write that went wrong in the background.
type failure struct {
	err    atomic.Pointer[error]
	broken func(error)
}

func (f *failure) set(err error) {
	if f.err.CompareAndSwap(nil, &err) && f.broken != nil {
		f.broken(err)
	}
}

func (f *failure) get() error {
	if err := f.err.Load(); err != nil {
		return *err
	}
	return nil
}

const (
	markerName   = "table"
	folderPrefix = "table-"
)

// Open opens the table in o.Dir, or makes an empty one.
//
// The rows live in a folder of their own, and a marker beside it says which
// one it is, so that a whole table can be replaced in one step.
func Open(o Options) (Table, error) {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.MemtableBytes == 0 {
		o.MemtableBytes = 64 << 20
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 8 << 20
	}
	if err := o.FS.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("table: make folder: %w", err)
	}
	if err := syncDir(o.FS, o.FS.PathDir(o.Dir)); err != nil {
		return nil, err
	}
	marker, name, err := atomicfs.LocateMarker(o.FS, o.Dir, markerName)
	if err != nil {
		return nil, fmt.Errorf("table: read marker: %w", err)
	}
	defer marker.Close()

	if name == "" {
		name = folderPrefix + "000001"
		if err := marker.Move(name); err != nil {
			return nil, fmt.Errorf("table: write marker: %w", err)
		}
	}
	if err := removeFolders(o, func(folder string) bool { return folder != name }); err != nil {
		return nil, err
	}
	return openFolder(o, name)
}

// removeFolders clears away what a crash left of stages and of tables that
// were replaced.
func removeFolders(o Options, which func(folder string) bool) error {
	entries, err := o.FS.List(o.Dir)
	if err != nil {
		return fmt.Errorf("table: list folder: %w", err)
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry, folderPrefix) && which(entry) {
			if err := o.FS.RemoveAll(o.FS.PathJoin(o.Dir, entry)); err != nil {
				return fmt.Errorf("table: remove %s: %w", entry, err)
			}
		}
	}
	return nil
}

func openFolder(o Options, name string) (*disk, error) {
	t := &disk{opts: o, name: name, failed: &failure{broken: o.Broken}}
	db, err := pebble.Open(o.FS.PathJoin(o.Dir, name), t.pebbleOptions())
	if err != nil {
		return nil, fmt.Errorf("table: open %s: %w", name, err)
	}
	// A folder's name must survive a crash as well as what is in it.
	if err := syncDir(o.FS, o.Dir); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	t.db = db
	return t, nil
}

func syncDir(fs FS, dir string) error {
	f, err := fs.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("table: open folder: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("table: sync folder: %w", err)
	}
	return nil
}

func (t *disk) pebbleOptions() *pebble.Options {
	o := t.opts
	p := &pebble.Options{
		FS:                 o.FS,
		Logger:             logger{t},
		FormatMajorVersion: pebble.FormatValueSeparation,
		CacheSize:          o.CacheBytes,

		// What is acknowledged is in the log of the cluster; a second log here
		// would only be written, never needed.
		DisableWAL: true,

		MemTableSize:                o.MemtableBytes,
		MemTableStopWritesThreshold: 4,

		// Rows arrive in order, so the files of the top level do not overlap
		// and reads stay cheap however many there are; a high bar lets them be
		// moved down rather than merged.
		L0CompactionThreshold:     4,
		L0CompactionFileThreshold: 64,
		L0StopWritesThreshold:     64,
		LBaseMaxBytes:             256 << 20,

		// Freed space shows soon after a sweep.
		FlushDelayDeleteRange: 0,

		CompactionConcurrencyRange: func() (int, int) { return 1, 2 },
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) {
				t.failed.set(fmt.Errorf("table: background: %w", err))
			},
			DataCorruption: func(info pebble.DataCorruptionInfo) {
				t.failed.set(fmt.Errorf("table: corruption in %s: %w", info.Path, info.Details))
			},
		},
	}
	for i := range p.TargetFileSizes {
		p.TargetFileSizes[i] = 16 << 20
	}
	for i := range p.Levels {
		p.Levels[i].BlockSize = 8 << 10 // a value that is not in memory costs reading a block
		p.Levels[i].FilterPolicy = pebble.NoFilterPolicy
	}
	p.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionFastest })
	if border := o.Border; border != nil {
		p.Experimental.SpanPolicyFunc = func(start []byte) (pebble.SpanPolicy, []byte, error) {
			if bytes.Compare(start, border) < 0 {
				return pebble.SpanPolicy{}, border, nil
			}
			return pebble.SpanPolicy{}, nil, nil
		}
	}
	p.Experimental.ReadSamplingMultiplier = -1 // rows are read at random rarely, and by scans
	return p
}

// logger hands on what Pebble says.
type logger struct{ table *disk }

func (l logger) say(format string, args ...any) {
	if log := l.table.opts.Log; log != nil {
		log(fmt.Sprintf(format, args...))
	}
}

func (l logger) Infof(format string, args ...any)  { l.say(format, args...) }
func (l logger) Errorf(format string, args ...any) { l.say(format, args...) }

// Fatalf is called where Pebble cannot go on, such as when its manifest could
// not be written, and must not return.
func (l logger) Fatalf(format string, args ...any) {
	err := fmt.Errorf("table: "+format, args...)
	l.table.failed.set(err)
	panic(err)
}

// enter lets a caller into the engine, unless it is closed.
func (t *disk) enter() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.closed {
		return ErrClosed
	}
	t.mu.inside++
	return nil
}

func (t *disk) leave() {
	t.mu.Lock()
	t.mu.inside--
	last := t.mu.closed && t.mu.inside == 0
	t.mu.Unlock()
	if last {
		if err := t.end(); err != nil {
			t.failed.set(err)
		}
	}
}

func (t *disk) Get(key []byte) ([]byte, bool, error) {
	if err := t.enter(); err != nil {
		return nil, false, err
	}
	defer t.leave()
	return get(t.db, key)
}

func (t *disk) Scan(from, to []byte, visit func(key, value []byte) bool) error {
	if err := t.enter(); err != nil {
		return err
	}
	defer t.leave()
	return scan(t.db, from, to, visit)
}

func get(r pebble.Reader, key []byte) ([]byte, bool, error) {
	value, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("table: get: %w", err)
	}
	value = append(make([]byte, 0, len(value)), value...)
	if err := closer.Close(); err != nil {
		return nil, false, fmt.Errorf("table: get: %w", err)
	}
	return value, true, nil
}

func scan(r pebble.Reader, from, to []byte, visit func(key, value []byte) bool) error {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return fmt.Errorf("table: scan: %w", err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return errors.Join(fmt.Errorf("table: scan: %w", err), it.Close())
		}
		if !visit(it.Key(), value) {
			break
		}
	}
	if err := it.Close(); err != nil {
		return fmt.Errorf("table: scan: %w", err)
	}
	return nil
}

func (t *disk) Snapshot() Snapshot {
	if err := t.enter(); err != nil {
		return closedSnapshot{}
	}
	return &diskSnapshot{table: t, snap: t.db.NewSnapshot()}
}

type diskSnapshot struct {
	table *disk
	snap  *pebble.Snapshot
}

func (s *diskSnapshot) Get(key []byte) ([]byte, bool, error) { return get(s.snap, key) }

func (s *diskSnapshot) Scan(from, to []byte, visit func(key, value []byte) bool) error {
	return scan(s.snap, from, to, visit)
}

func (s *diskSnapshot) Close() error {
	defer s.table.leave()
	if err := s.snap.Close(); err != nil {
		return fmt.Errorf("table: close snapshot: %w", err)
	}
	return nil
}

// closedSnapshot is what a closed table has to show.
type closedSnapshot struct{}

func (closedSnapshot) Get([]byte) ([]byte, bool, error)                       { return nil, false, ErrClosed }
func (closedSnapshot) Scan(_, _ []byte, _ func(key, value []byte) bool) error { return ErrClosed }
func (closedSnapshot) Close() error                                           { return nil }

func (t *disk) Flush() error {
	if err := t.enter(); err != nil {
		return err
	}
	defer t.leave()
	if err := t.failed.get(); err != nil {
		return err
	}
	if err := t.db.Flush(); err != nil {
		return fmt.Errorf("table: flush: %w", err)
	}
	return t.failed.get()
}

func (t *disk) Tidy(ctx Canceler, from, to []byte) error {
	if err := t.enter(); err != nil {
		return err
	}
	defer t.leave()
	if err := tidy(t.db.Compact, ctx, from, to); err != nil {
		return fmt.Errorf("table: tidy: %w", err)
	}
	return nil
}

// tidy names the type of Pebble's context without importing it.
func tidy[Context any](compact func(Context, []byte, []byte, bool) error, ctx any, from, to []byte) error {
	c, ok := ctx.(Context)
	if !ok {
		return errors.New("not a context")
	}
	return compact(c, from, to, false)
}

func (t *disk) DiskBytes() int64 {
	if err := t.enter(); err != nil {
		return 0
	}
	defer t.leave()
	return int64(t.db.Metrics().DiskSpaceUsage())
}

func (t *disk) Close() error {
	t.mu.Lock()
	ends := !t.mu.closed && t.mu.inside == 0
	t.mu.closed = true
	t.mu.Unlock()
	if ends {
		return t.end()
	}
	return nil
}

func (t *disk) end() error {
	if err := t.db.Close(); err != nil {
		return fmt.Errorf("table: close: %w", err)
	}
	if t.mu.retired { // set before Close, if at all
		return removeFolders(t.opts, func(folder string) bool { return folder == t.name })
	}
	return nil
}

// retire says that the folder is of no use once the table is closed.
func (t *disk) retire() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.retired = true
}

func (t *disk) Batch() Batch {
	return &diskBatch{table: t, b: t.db.NewBatch()}
}

// diskBatch wraps Pebble's. Its errors come from misuse alone, except those of
// Commit, so the methods that collect have none.
type diskBatch struct {
	table *disk
	b     *pebble.Batch
}

func (b *diskBatch) Set(key, value []byte) {
	k, v := b.Reserve(len(key), len(value))
	copy(k, key)
	copy(v, value)
}

func (b *diskBatch) Reserve(keyBytes, valueBytes int) (key, value []byte) {
	op := b.b.SetDeferred(keyBytes, valueBytes) // Finish only matters to indexed batches
	return op.Key, op.Value
}

func (b *diskBatch) Delete(key []byte) {
	copy(b.b.DeleteDeferred(len(key)).Key, key)
}

func (b *diskBatch) DeleteRange(from, to []byte) {
	op := b.b.DeleteRangeDeferred(len(from), len(to))
	copy(op.Key, from)
	copy(op.Value, to)
}

func (b *diskBatch) Bytes() int { return b.b.Len() }

func (b *diskBatch) Commit() error {
	if err := b.table.enter(); err != nil {
		return err
	}
	defer b.table.leave()
	if err := b.table.failed.get(); err != nil {
		return err
	}
	if err := b.table.db.Apply(b.b, pebble.NoSync); err != nil {
		return fmt.Errorf("table: commit: %w", err)
	}
	b.b.Reset()
	return nil
}

func (b *diskBatch) Close() { _ = b.b.Close() } // an uncommitted batch has nothing to lose

// Stage makes an empty table in the next folder.
func (t *disk) Stage() (Stage, error) {
	var number int
	if _, err := fmt.Sscanf(t.name, folderPrefix+"%d", &number); err != nil {
		return nil, fmt.Errorf("table: folder %q: %w", t.name, err)
	}
	next := fmt.Sprintf(folderPrefix+"%06d", number+1)
	if err := removeFolders(t.opts, func(folder string) bool { return folder == next }); err != nil {
		return nil, err
	}
	staged, err := openFolder(t.opts, next)
	if err != nil {
		return nil, err
	}
	return &diskStage{disk: staged, old: t}, nil
}

type diskStage struct {
	*disk
	old *disk
}

func (s *diskStage) Install() error {
	if err := s.Flush(); err != nil {
		return err
	}
	marker, _, err := atomicfs.LocateMarker(s.opts.FS, s.opts.Dir, markerName)
	if err != nil {
		return fmt.Errorf("table: read marker: %w", err)
	}
	defer marker.Close()
	if err := marker.Move(s.name); err != nil {
		return fmt.Errorf("table: write marker: %w", err)
	}
	s.old.retire()
	return nil
}

func (s *diskStage) Discard() error {
	s.retire()
	return s.Close()
}
