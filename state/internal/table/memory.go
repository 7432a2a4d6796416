package table

import (
	"sync"

	"github.com/tidwall/btree"
)

// Memory is a table without a disk. It behaves as a table on disk whose engine
// flushes only when it is told to, and Crash shows what would be left of it.
// It is for tests and simulation: the same calls give the same rows, always.
type Memory struct {
	mu struct {
		sync.RWMutex
		closed  bool
		rows    btree.Map[string, string]
		durable btree.Map[string, string]
		since   [][]change // batches committed since durable was taken
		install *Memory    // the table that took the place of this one
	}
}

// NewMemory returns an empty table.
func NewMemory() *Memory { return &Memory{} }

// Crash returns what is found after a power cut: what was flushed, and the
// first kept of the batches committed since then. Kept is cut to what there is.
func (m *Memory) Crash(kept int) *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.install != nil {
		return m.mu.install.Crash(kept)
	}
	after := NewMemory()
	after.mu.rows = *m.mu.durable.Copy()
	for _, batch := range m.mu.since[:min(kept, len(m.mu.since))] {
		apply(&after.mu.rows, batch)
	}
	after.mu.durable = *after.mu.rows.Copy()
	return after
}

// Unflushed is the number of batches that a crash may lose.
func (m *Memory) Unflushed() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.mu.install != nil {
		return m.mu.install.Unflushed()
	}
	return len(m.mu.since)
}

// Reopen returns the table that Open would find: the one installed last, as it
// was when it was closed.
func (m *Memory) Reopen() *Memory { return m.Crash(m.Unflushed()) }

type change struct {
	from, to string // to is empty unless a range is deleted
	value    string
	kind     changeKind
}

type changeKind byte

const (
	set changeKind = iota
	del
	delRange
)

func apply(rows *btree.Map[string, string], batch []change) {
	for _, c := range batch {
		switch c.kind {
		case set:
			rows.Set(c.from, c.value)
		case del:
			rows.Delete(c.from)
		case delRange:
			var gone []string
			rows.Ascend(c.from, func(key, _ string) bool {
				if key >= c.to {
					return false
				}
				gone = append(gone, key)
				return true
			})
			for _, key := range gone {
				rows.Delete(key)
			}
		}
	}
}

func (m *Memory) Get(key []byte) ([]byte, bool, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.mu.closed {
		return nil, false, ErrClosed
	}
	value, ok := m.mu.rows.Get(string(key))
	return []byte(value), ok, nil
}

func (m *Memory) Scan(from, to []byte, visit func(key, value []byte) bool) error {
	return m.Snapshot().Scan(from, to, visit)
}

func (m *Memory) Snapshot() Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.closed {
		return closedSnapshot{}
	}
	return memorySnapshot{m.mu.rows.Copy()}
}

type memorySnapshot struct{ rows *btree.Map[string, string] }

func (s memorySnapshot) Get(key []byte) ([]byte, bool, error) {
	value, ok := s.rows.Get(string(key))
	return []byte(value), ok, nil
}

func (s memorySnapshot) Scan(from, to []byte, visit func(key, value []byte) bool) error {
	s.rows.Ascend(string(from), func(key, value string) bool {
		return key < string(to) && visit([]byte(key), []byte(value))
	})
	return nil
}

func (memorySnapshot) Close() error { return nil }

func (m *Memory) Flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.closed {
		return ErrClosed
	}
	m.mu.durable = *m.mu.rows.Copy()
	m.mu.since = nil
	return nil
}

func (m *Memory) Tidy(Canceler, []byte, []byte) error { return nil }

func (m *Memory) DiskBytes() int64 { return 0 }

func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.closed = true
	return nil
}

func (m *Memory) Batch() Batch { return &memoryBatch{table: m} }

type memoryBatch struct {
	table    *Memory
	changes  []change
	reserved struct{ key, value []byte } // not yet turned into a change
	bytes    int
}

// settle turns a reservation, filled in by now, into a change.
func (b *memoryBatch) settle() {
	if r := &b.reserved; r.key != nil {
		b.changes = append(b.changes, change{kind: set, from: string(r.key), value: string(r.value)})
		r.key, r.value = nil, nil
	}
}

func (b *memoryBatch) Set(key, value []byte) {
	k, v := b.Reserve(len(key), len(value))
	copy(k, key)
	copy(v, value)
}

func (b *memoryBatch) Reserve(keyBytes, valueBytes int) (key, value []byte) {
	b.settle()
	b.bytes += keyBytes + valueBytes
	b.reserved.key, b.reserved.value = make([]byte, keyBytes), make([]byte, valueBytes)
	return b.reserved.key, b.reserved.value
}

func (b *memoryBatch) Delete(key []byte) {
	b.settle()
	b.bytes += len(key)
	b.changes = append(b.changes, change{kind: del, from: string(key)})
}

func (b *memoryBatch) DeleteRange(from, to []byte) {
	b.settle()
	b.bytes += len(from) + len(to)
	b.changes = append(b.changes, change{kind: delRange, from: string(from), to: string(to)})
}

func (b *memoryBatch) Bytes() int { return b.bytes }

func (b *memoryBatch) Commit() error {
	b.settle()
	m := b.table
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.closed {
		return ErrClosed
	}
	apply(&m.mu.rows, b.changes)
	m.mu.since = append(m.mu.since, b.changes)
	b.changes, b.bytes = nil, 0
	return nil
}

func (b *memoryBatch) Close() {}

func (m *Memory) Stage() (Stage, error) {
	return &memoryStage{Memory: NewMemory(), old: m}, nil
}

type memoryStage struct {
	*Memory
	old *Memory
}

func (s *memoryStage) Install() error {
	if err := s.Flush(); err != nil {
		return err
	}
	s.old.mu.Lock()
	defer s.old.mu.Unlock()
	s.old.mu.install = s.Memory
	return nil
}

func (s *memoryStage) Discard() error { return s.Close() }
