package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/kvorum/kvorum/metric"
	"github.com/kvorum/kvorum/state/internal/alarm"
	"github.com/kvorum/kvorum/state/internal/lease"
	"github.com/kvorum/kvorum/state/internal/member"
	"github.com/kvorum/kvorum/state/internal/mvcc"
	"github.com/kvorum/kvorum/state/internal/table"
	"github.com/kvorum/kvorum/state/internal/tree"
)

// Options of a Machine.
type Options struct {
	FS     FS      // default the operating system's
	Dir    string  // of the table; made where it does not exist
	Memory *Memory // if set, the table is here and not on disk

	ValueCacheBytes   int64  // of values kept in memory; default 256 MiB
	HistoryCacheBytes int64  // of what makes pages of older revisions fast; default 64 MiB
	MemtableBytes     uint64 // written at once to disk; default 64 MiB

	// Cluster and Member are who this is thought to be. A table that says
	// otherwise is not opened. 0 asks nothing.
	Cluster ClusterID
	Member  MemberID

	Removed *metric.Counter // versions that sweeps have removed; may be nil

	Log    func(line string) // hears what the table's engine says
	Broken func(error)       // hears once of a write in the background that failed; the process has to end
}

// Machine is the state of one member.
//
// Apply, Bootstrap and Restore are called by one goroutine, one after the
// other; Sweep by one, which may be another. All else may be called by many at
// once, until Close.
type Machine struct {
	// Immutable after Open.
	options Options

	view    atomic.Pointer[View]
	durable atomic.Uint64

	// Owned by the caller of Apply.
	broken error // after it, nothing is applied
	member MemberID

	sweeping sync.Mutex // held by Sweep, and by Restore when the table changes under it
}

// core is what Restore replaces.
type core struct {
	table table.Table
	keys  *mvcc.Store
}

// Format is the version of the table's contents. A table of a newer one is
// refused rather than misread.
const Format = 1

// The rows that say where a machine stands. All but the first are replicated.
var (
	memberKey        = []byte{table.Local, 'm'} // who this is
	identityKey      = []byte{table.Meta, 'i'}  // format, cluster
	positionKey      = []byte{table.Meta, 'p'}  // where in the log and in history
	configurationKey = []byte{table.Meta, 'c'}
)

// position is written with every batch.
type position struct {
	index     Index
	term      Term
	revision  Revision
	compacted Revision
	checksum  uint64
}

func (p position) append(dst []byte) []byte {
	for _, x := range []uint64{uint64(p.index), uint64(p.term), uint64(p.revision), uint64(p.compacted), p.checksum} {
		dst = binary.BigEndian.AppendUint64(dst, x)
	}
	return dst
}

func parsePosition(b []byte) (position, error) {
	if len(b) != 5*8 {
		return position{}, fmt.Errorf("state: damaged position: %x", b)
	}
	u := func(i int) uint64 { return binary.BigEndian.Uint64(b[8*i:]) }
	return position{Index(u(0)), Term(u(1)), Revision(u(2)), Revision(u(3)), u(4)}, nil
}

// identity says what kind of table this is, and whose.
type identity struct {
	format  uint32
	cluster ClusterID
}

func (i identity) append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, i.format)
	return binary.BigEndian.AppendUint64(dst, uint64(i.cluster))
}

func parseIdentity(b []byte) (identity, error) {
	if len(b) < 4 {
		return identity{}, fmt.Errorf("state: damaged identity: %x", b)
	}
	i := identity{format: binary.BigEndian.Uint32(b)}
	if i.format > Format {
		return i, fmt.Errorf("state: the data is of format %d, written by a newer version; this one reads up to %d", i.format, Format)
	}
	if len(b) != 12 {
		return i, fmt.Errorf("state: damaged identity: %x", b)
	}
	i.cluster = ClusterID(binary.BigEndian.Uint64(b[4:]))
	return i, nil
}

// Open opens a machine where it was left, or a fresh one. It reads the whole
// table once.
func Open(o Options) (*Machine, error) {
	var t table.Table = o.Memory
	if o.Memory == nil {
		var err error
		t, err = table.Open(table.Options{
			FS:            o.FS,
			Dir:           o.Dir,
			MemtableBytes: o.MemtableBytes,
			Border:        []byte{table.History},
			Log:           o.Log,
			Broken:        o.Broken,
		})
		if err != nil {
			return nil, err
		}
	}
	m := &Machine{options: o}
	v, err := m.load(t)
	if err == nil {
		err = m.recognize(t, v)
	}
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	m.view.Store(v)
	m.durable.Store(uint64(v.Index))
	return m, nil
}

// load makes the view of what a table holds.
func (m *Machine) load(t table.Table) (*View, error) {
	v := &View{machine: m, core: &core{table: t}}
	at := position{revision: 1, compacted: mvcc.NeverCompacted}
	for _, row := range []struct {
		key  []byte
		read func([]byte) error
	}{
		{identityKey, func(b []byte) error {
			id, err := parseIdentity(b)
			v.Cluster = id.cluster
			return err
		}},
		{positionKey, func(b []byte) (err error) {
			at, err = parsePosition(b)
			return err
		}},
		{configurationKey, func(b []byte) error {
			v.Configuration = b
			return nil
		}},
	} {
		b, found, err := t.Get(row.key)
		if err == nil && found {
			err = row.read(b)
		}
		if err != nil {
			return nil, err
		}
	}
	v.Index, v.Term, v.Checksum = at.index, at.term, at.checksum

	var err error
	if v.members, err = member.Load(t); err != nil {
		return nil, err
	}
	if v.alarms, err = alarm.Load(t); err != nil {
		return nil, err
	}
	var holds []lease.Hold
	var deadlines tree.Loading
	v.core.keys, err = mvcc.Open(t, at.revision, at.compacted, mvcc.Options{
		ResidentBytes: m.options.ValueCacheBytes,
		HistoryBytes:  m.options.HistoryCacheBytes,
		Leased:        func(key string, id int64) { holds = append(holds, lease.Hold{Lease: LeaseID(id), Key: key}) },
		Noted:         deadlines.Add,
		Removed:       m.options.Removed,
	})
	if err != nil {
		return nil, err
	}
	if v.leases, err = lease.Load(t, holds); err != nil {
		return nil, err
	}
	if v.deadlines, err = deadlines.Deadlines(); err != nil {
		return nil, err
	}
	v.keys = v.core.keys.View()
	v.Revision, v.Compacted = v.keys.Revision, v.keys.Compacted
	return v, nil
}

// recognize refuses a table of somebody else.
func (m *Machine) recognize(t table.Table, v *View) error {
	if want := m.options.Cluster; want != 0 && v.Cluster != 0 && v.Cluster != want {
		return fmt.Errorf("state: the data belongs to cluster %x, not to %x", v.Cluster, want)
	}
	b, found, err := t.Get(memberKey)
	switch {
	case err != nil:
		return err
	case found && len(b) != 8:
		return fmt.Errorf("state: damaged member id: %x", b)
	case found:
		m.member = MemberID(binary.BigEndian.Uint64(b))
	}
	switch want := m.options.Member; {
	case want == 0 || want == m.member:
		return nil
	case m.member != 0:
		return fmt.Errorf("state: the data belongs to member %x, not to %x", m.member, want)
	default:
		m.member = want
		return m.writeMember(t.Batch())
	}
}

func (m *Machine) writeMember(b table.Batch) error {
	defer b.Close()
	b.Set(memberKey, binary.BigEndian.AppendUint64(nil, uint64(m.member)))
	return b.Commit()
}

// View returns the state as of the last entry applied. It never waits.
func (m *Machine) View() *View { return m.view.Load() }

// Applied returns the index of the last entry applied, and that of the last
// one whose changes survive a crash: up to there the log is not needed here.
func (m *Machine) Applied() (applied, durable Index) {
	return m.View().Index, Index(m.durable.Load())
}

// Flush makes durable what is applied. It may run beside Apply, and costs
// nothing where there is nothing new.
func (m *Machine) Flush() error {
	v := m.View()
	if uint64(v.Index) <= m.durable.Load() {
		return nil
	}
	err := v.core.table.Flush()
	if errors.Is(err, table.ErrClosed) && m.View().core != v.core {
		return nil // replaced meanwhile by a table that was durable at once
	}
	if err != nil {
		return fmt.Errorf("state: flush at index %d: %w", v.Index, err)
	}
	for {
		old := m.durable.Load()
		if uint64(v.Index) <= old || m.durable.CompareAndSwap(old, uint64(v.Index)) {
			return nil
		}
	}
}

// Sweep removes what compaction has made superfluous, for about as many keys
// and rows as budget says, and tells whether there is more to do. Answers are
// the same before, during and after.
func (m *Machine) Sweep(budget int) (more bool, err error) {
	m.sweeping.Lock()
	defer m.sweeping.Unlock()
	v := m.View()
	return v.core.keys.Sweep(v.Compacted, budget)
}

// Swept returns the compacted revision up to which nothing superfluous is left.
func (m *Machine) Swept() Revision { return m.View().core.keys.Swept() }

// Size returns the bytes that a quota counts: what is kept, and how much of
// that is in use. They are functions of the log and of what was compacted and
// swept, not of how files happen to lie on disk.
func (m *Machine) Size() (total, used int64) {
	const empty = 16 << 10
	v := m.View()
	kept := empty + v.core.keys.Size() + v.leases.Size()
	return kept, kept
}

// DiskBytes returns the space that the table takes up on disk.
func (m *Machine) DiskBytes() int64 { return m.View().core.table.DiskBytes() }

// Defragment gives back to the file system what sweeps have freed. It runs
// beside everything else; ctx is a context.Context.
func (m *Machine) Defragment(ctx Canceler) error {
	err := m.View().core.table.Tidy(ctx, []byte{0}, []byte{0xff})
	if err != nil {
		return fmt.Errorf("state: defragment: %w", err)
	}
	return nil
}

// Close ends the machine. What is not flushed comes again from the log.
func (m *Machine) Close() error { return m.View().core.table.Close() }
