package raftlog

import (
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/wal"
)

func entry(index, term uint64, data string) *pb.Entry {
	return &pb.Entry{Index: proto.Uint64(index), Term: proto.Uint64(term), Type: pb.EntryNormal.Enum(), Data: []byte(data)}
}

// write is a message of raft that is waited for.
func write(term, commit uint64, entries ...*pb.Entry) *pb.Message {
	return &pb.Message{
		Term: proto.Uint64(term), Vote: proto.Uint64(1), Commit: proto.Uint64(commit),
		Entries: entries, Responses: []*pb.Message{{}},
	}
}

func options(fs vfs.FS, applied uint64) Options {
	return Options{
		WAL: wal.Options{FS: fs, Dir: "log", SegmentBytes: 16 << 10}, Fresh: true, Applied: applied,
		Configuration: &pb.ConfState{Voters: []uint64{1}},
	}
}

func reopen(t *testing.T, l *Log, o Options) *Log {
	t.Helper()
	if l != nil {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestReopen(t *testing.T) {
	fs := vfs.NewMem()
	l := reopen(t, nil, options(fs, 1))
	if err := l.Append([]*pb.Message{write(2, 1, entry(2, 2, "a"), entry(3, 2, "b"), entry(4, 2, "c"))}); err != nil {
		t.Fatal(err)
	}
	// A new leader overwrites what was not committed.
	if err := l.Append([]*pb.Message{write(3, 2, entry(3, 3, "x"))}); err != nil {
		t.Fatal(err)
	}
	for run := uint64(2); run < 4; run++ {
		l = reopen(t, l, options(fs, 2))
		if got := l.Incarnation(); got != run {
			t.Errorf("incarnation %d in run %d", got, run)
		}
		hs, cs, _ := l.InitialState()
		if hs.GetTerm() != 3 || hs.GetVote() != 1 || hs.GetCommit() != 2 || len(cs.Voters) != 1 {
			t.Errorf("hard state %v, membership %v", hs, cs)
		}
		if last, _ := l.LastIndex(); last != 3 {
			t.Errorf("last index %d", last)
		}
		entries, err := l.Entries(2, 4, 1<<20)
		if err != nil || len(entries) != 2 || string(entries[1].Data) != "x" || entries[1].GetTerm() != 3 {
			t.Errorf("entries %v, %v", entries, err)
		}
		if term, _ := l.Term(1); term != 1 {
			t.Errorf("the genesis is of term %d", term)
		}
		if _, err := l.Term(4); !errors.Is(err, raft.ErrUnavailable) {
			t.Errorf("the term of no entry: %v", err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// A commit index alone is not written, and waits for no disk.
func TestCommitIsNotSynced(t *testing.T) {
	l := reopen(t, nil, options(vfs.NewMem(), 1))
	defer l.Close()
	if err := l.Append([]*pb.Message{write(2, 1, entry(2, 2, "a"))}); err != nil {
		t.Fatal(err)
	}
	if err := l.Append([]*pb.Message{write(2, 2)}); err != nil {
		t.Fatal(err)
	}
	if len(l.records) != 0 || l.unsynced {
		t.Errorf("%d records for a commit index", len(l.records))
	}
}

// A member that lost its log, or a part of it that it needs, does not start.
func TestLost(t *testing.T) {
	old := options(vfs.NewMem(), 1)
	old.Fresh = false
	if _, err := Open(old); !errors.Is(err, ErrLost) {
		t.Errorf("an empty log of a member that has run: %v", err)
	}
	if _, err := Open(options(vfs.NewMem(), 7)); !errors.Is(err, ErrLost) {
		t.Errorf("an empty log beside a machine that is ahead: %v", err)
	}
	fs := vfs.NewMem()
	l := reopen(t, nil, options(fs, 1))
	if err := l.Append([]*pb.Message{write(2, 1, entry(2, 2, "a"))}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(options(fs, 3)); !errors.Is(err, ErrTooShort) {
		t.Errorf("a log behind its machine: %v", err)
	}
}

// Files go when nothing in them is needed, and what is needed is there after.
func TestRelease(t *testing.T) {
	fs := vfs.NewMem()
	o := options(fs, 1)
	o.KeepEntries = 50
	l := reopen(t, nil, o)
	const n = 5000
	for i := uint64(2); i <= n; i++ {
		if err := l.Append([]*pb.Message{write(2, i-1, entry(i, 2, "some data in an entry"))}); err != nil {
			t.Fatal(err)
		}
		l.Applied(Mark{Index: i, Term: 2, Configuration: o.Configuration})
		if err := l.Release(i - 100); err != nil && i > 101 {
			t.Fatal(err)
		}
	}
	if size := l.Size(); size > 10*16<<10 {
		t.Errorf("the log takes %d bytes", size)
	}
	first, _ := l.FirstIndex()
	if first < n-3*50 || first > n-50 {
		t.Errorf("memory begins with %d of %d", first, n)
	}
	o.Fresh, o.Applied = false, n-100
	l = reopen(t, l, o)
	defer l.Close()
	first, _ = l.FirstIndex()
	if entries, err := l.Entries(first, n+1, 1<<30); err != nil || first > n-99 || uint64(len(entries)) != n+1-first {
		t.Errorf("%d entries from %d on, %v", len(entries), first, err)
	}
}

// BenchmarkReplay opens a log of a million small entries.
func BenchmarkReplay(b *testing.B) {
	o := Options{WAL: wal.Options{Dir: b.TempDir(), UnsafeNoSync: true}, Fresh: true, Applied: 1}
	l, err := Open(o)
	if err != nil {
		b.Fatal(err)
	}
	const n = 1 << 20
	for i := uint64(2); i <= n; i += 64 {
		var entries []*pb.Entry
		for j := i; j < i+64; j++ {
			entries = append(entries, entry(j, 2, "0123456789012345678901234567890123456789"))
		}
		if err := l.Append([]*pb.Message{write(2, i-1, entries...)}); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		l, err := Open(o)
		if err != nil {
			b.Fatal(err)
		}
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
