package raftlog

import (
	"encoding/binary"
	"fmt"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/wal"
)

// Records of the log. All numbers are little-endian.
const (
	// recordEntry: index 8, term 8, type 1, data. An entry whose index is there
	// already takes its place and ends the log.
	recordEntry uint8 = 1

	// recordHard: term 8, vote 8, commit 8.
	recordHard uint8 = 2

	// recordMark: index 8, term 8, ConfState. The log begins anew behind index.
	recordMark uint8 = 3

	// recordIncarnation: number 8.
	recordIncarnation uint8 = 4

	// recordHead stands in each segment, before all that was appended there,
	// and makes the older segments dispensable: term 8, vote 8, commit 8, incarnation 8, index and term of
	// the last entry before the segment 16, index and term of the newest mark
	// 16, its ConfState.
	recordHead uint8 = 5
)

const (
	entryHeader = 17
	headHeader  = 64

	// An entry in every placesApart is remembered with its position.
	placesApart = 64
)

func (l *Log) reset() {
	l.records, l.scratch, l.ends = l.records[:0], l.scratch[:0], l.ends[:0]
	if cap(l.scratch) > 16<<20 {
		l.scratch = nil
	}
}

// add ends a record that began at the end of the last one.
func (l *Log) add(kind uint8) {
	l.ends = append(l.ends, len(l.scratch))
	l.records = append(l.records, wal.Record{Type: kind})
}

func (l *Log) addEntry(e *pb.Entry) {
	must(e.GetIndex() <= l.last.index+1 && e.GetIndex() > l.mark.Index, "RL: entries follow each other")
	l.scratch = binary.LittleEndian.AppendUint64(l.scratch, e.GetIndex())
	l.scratch = binary.LittleEndian.AppendUint64(l.scratch, e.GetTerm())
	l.scratch = append(l.scratch, byte(e.GetType()))
	l.scratch = append(l.scratch, e.Data...)
	l.add(recordEntry)
	l.last = entryID{e.GetIndex(), e.GetTerm()}
}

func (l *Log) addHard() {
	l.scratch = appendHard(l.scratch, l.hard)
	l.add(recordHard)
	l.stale = false
}

func (l *Log) addMark() {
	l.scratch = appendMark(l.scratch, l.mark)
	l.add(recordMark)
}

func (l *Log) addIncarnation() {
	l.scratch = binary.LittleEndian.AppendUint64(l.scratch, l.incarnation)
	l.add(recordIncarnation)
}

// write appends the collected records and remembers where entries went.
func (l *Log) write() error {
	if len(l.ends) == 0 {
		l.written = l.state
		return nil
	}
	start := 0
	for i, end := range l.ends {
		l.records[i].Data = l.scratch[start:end]
		start = end
	}
	position, err := l.wal.Append(l.records...)
	if err != nil {
		return err
	}
	for i, r := range l.records {
		if r.Type == recordMark {
			l.places = l.places[:0]
		}
		if r.Type == recordMark || r.Type == recordEntry {
			l.placed(binary.LittleEndian.Uint64(r.Data), position+wal.Position(i))
		}
	}
	l.written = l.state
	return nil
}

// placed notes the position of a mark or an entry, of some of these.
func (l *Log) placed(index uint64, at wal.Position) {
	for n := len(l.places); n > 0 && l.places[n-1].index >= index; n-- {
		l.places = l.places[:n-1]
	}
	if n := len(l.places); n == 0 || index >= l.places[n-1].index+placesApart {
		l.places = append(l.places, place{index, at})
	}
}

// head describes what was appended so far, for the segment that begins.
func (l *Log) head() []wal.Record {
	s := &l.written
	if l.wal == nil {
		s = &l.state // just replayed
	}
	if s.incarnation == 0 {
		return nil // nothing was ever written
	}
	b := make([]byte, 0, headHeader+64)
	b = appendHard(b, s.hard)
	b = binary.LittleEndian.AppendUint64(b, s.incarnation)
	b = binary.LittleEndian.AppendUint64(b, s.last.index)
	b = binary.LittleEndian.AppendUint64(b, s.last.term)
	b = appendMark(b, s.mark)
	return []wal.Record{{Type: recordHead, Data: b}}
}

func appendHard(b []byte, h hardState) []byte {
	b = binary.LittleEndian.AppendUint64(b, h.term)
	b = binary.LittleEndian.AppendUint64(b, h.vote)
	return binary.LittleEndian.AppendUint64(b, h.commit)
}

func appendMark(b []byte, m Mark) []byte {
	b = binary.LittleEndian.AppendUint64(b, m.Index)
	b = binary.LittleEndian.AppendUint64(b, m.Term)
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(b, m.Configuration)
	must(err == nil, "a membership can be encoded")
	return b
}

// replay rebuilds a log from its records.
type replay struct {
	log     *Log
	applied uint64 // by the machine
	began   bool
	based   bool // it is known what the next entry follows
}

func (p *replay) record(at wal.Position, r wal.Record) error {
	if err := p.take(at, r); err != nil {
		return fmt.Errorf("raftlog: record %d of type %d: %w", at, r.Type, err)
	}
	p.began = true
	return nil
}

func (p *replay) take(at wal.Position, r wal.Record) error {
	l := p.log
	switch r.Type {
	case recordEntry:
		if len(r.Data) < entryHeader {
			return fmt.Errorf("%d bytes: %w", len(r.Data), ErrCorrupt)
		}
		return p.entry(at, r.Data)

	case recordHard:
		if len(r.Data) != 24 {
			return fmt.Errorf("%d bytes: %w", len(r.Data), ErrCorrupt)
		}
		p.setHard(r.Data)

	case recordMark:
		mark, err := decodeMark(r.Data)
		if err != nil {
			return err
		}
		l.mark = mark
		p.from(entryID{mark.Index, mark.Term})
		l.placed(mark.Index, at)

	case recordIncarnation:
		if len(r.Data) != 8 {
			return fmt.Errorf("%d bytes: %w", len(r.Data), ErrCorrupt)
		}
		l.incarnation = binary.LittleEndian.Uint64(r.Data)

	case recordHead:
		if len(r.Data) < headHeader {
			return fmt.Errorf("%d bytes: %w", len(r.Data), ErrCorrupt)
		}
		mark, err := decodeMark(r.Data[48:])
		if err != nil {
			return err
		}
		last := entryID{binary.LittleEndian.Uint64(r.Data[32:]), binary.LittleEndian.Uint64(r.Data[40:])}
		switch {
		case !p.based:
			p.from(last)
		case last != l.last:
			return fmt.Errorf("the segment continues entry %d of term %d, the log is at %d of term %d: %w",
				last.index, last.term, l.last.index, l.last.term, ErrCorrupt)
		}
		l.mark = mark
		p.setHard(r.Data)
		l.incarnation = binary.LittleEndian.Uint64(r.Data[24:])

	default:
		return fmt.Errorf("unknown type: %w", ErrCorrupt)
	}
	return nil
}

// setHard takes a hard state. What was both committed by then and applied since
// need not be held: no later record can replace it.
func (p *replay) setHard(b []byte) {
	l := p.log
	l.hard = hardState{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])}
	l.mu.applied.Index = min(p.applied, l.hard.commit)
}

// from begins the log anew behind id.
func (p *replay) from(id entryID) {
	l := p.log
	p.based = true
	l.last, l.mu.before = id, id
	l.mu.entries, l.mu.bytes, l.places = nil, 0, nil
}

func (p *replay) entry(at wal.Position, b []byte) error {
	l := p.log
	// One allocation for what the message spreads over pointers.
	e := &struct {
		pb.Entry
		index, term uint64
		kind        pb.EntryType
	}{
		index: binary.LittleEndian.Uint64(b),
		term:  binary.LittleEndian.Uint64(b[8:]),
		kind:  pb.EntryType(b[16]),
	}
	switch {
	case e.index <= l.mark.Index || e.index <= l.hard.commit || p.based && e.index > l.last.index+1:
		return fmt.Errorf("entry %d behind entry %d, mark %d and commit index %d: %w",
			e.index, l.last.index, l.mark.Index, l.hard.commit, ErrCorrupt)
	case e.kind > pb.EntryConfChangeV2:
		return fmt.Errorf("entry %d is of type %d: %w", e.index, e.kind, ErrCorrupt)
	}
	if !p.based || e.index <= l.mu.before.index {
		// The entries before it were released, and so is it, but for the term.
		p.from(entryID{e.index, e.term})
		l.placed(e.index, at)
		return nil
	}
	e.Index, e.Term, e.Type = &e.index, &e.term, &e.kind
	if len(b) > entryHeader {
		e.Data = append([]byte(nil), b[entryHeader:]...)
	}
	l.cut(e.index)
	l.mu.entries = append(l.mu.entries, &e.Entry)
	l.mu.bytes += entryBytes(&e.Entry)
	l.last = entryID{e.index, e.term}
	l.placed(e.index, at)
	l.trim(false)
	return nil
}

func decodeMark(b []byte) (Mark, error) {
	if len(b) < 16 {
		return Mark{}, fmt.Errorf("a mark of %d bytes: %w", len(b), ErrCorrupt)
	}
	m := Mark{
		Index:         binary.LittleEndian.Uint64(b),
		Term:          binary.LittleEndian.Uint64(b[8:]),
		Configuration: &pb.ConfState{},
	}
	if err := proto.Unmarshal(b[16:], m.Configuration); err != nil {
		return Mark{}, fmt.Errorf("the membership of a mark: %w: %w", err, ErrCorrupt)
	}
	return m, nil
}
