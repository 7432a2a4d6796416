package node

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvorum/kvorum/peer"
	"github.com/kvorum/kvorum/replica"
	"github.com/kvorum/kvorum/state"
)

func memoryMachine(t *testing.T) *state.Machine {
	t.Helper()
	m, err := state.Open(state.Options{Memory: state.NewMemory()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func TestAReceivedSnapshotStaysUntilItIsRestored(t *testing.T) {
	source := memoryMachine(t)
	if err := source.Bootstrap(state.Genesis{Cluster: 1, Index: 9, Term: 2, Members: []state.Member{{ID: 1, PeerURLs: []string{"http://a:1"}}}}); err != nil {
		t.Fatal(err)
	}
	var data bytes.Buffer
	if _, err := source.WriteSnapshot(&data); err != nil {
		t.Fatal(err)
	}

	r := received{fs: vfs.NewMem(), dir: "received"}
	if err := r.fs.MkdirAll(r.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	name := func(term, index uint64) string {
		return peer.SnapshotFile(&raftpb.SnapshotMetadata{Term: &term, Index: &index})
	}
	put := func(name string, data []byte) {
		f, err := r.fs.Create(r.fs.PathJoin(r.dir, name), vfs.WriteCategoryUnspecified)
		if err == nil {
			_, err = f.Write(bytes.Clone(data)) // the memory file garbles what it was given, under invariants
		}
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	put(name(2, 9), data.Bytes()[:data.Len()/2])
	put(name(1, 5), nil)  // overtaken
	put(name(3, 12), nil) // a later one, which is restored next
	put("notes of a person", nil)
	put("received-zz", nil)

	machine := memoryMachine(t)
	mark := replica.Mark{Index: 9, Term: 2}
	if err := r.restore(machine, mark); err == nil {
		t.Fatal("half a snapshot was restored")
	}
	put(name(2, 9), data.Bytes())
	if err := r.restore(machine, mark); err != nil {
		t.Fatal(err)
	}
	if v := machine.View(); v.Index != 9 || v.Term != 2 || len(v.Members()) != 1 {
		t.Errorf("restored index %d, term %d, members %v", v.Index, v.Term, v.Members())
	}
	left, err := r.fs.List(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(left)
	if want := []string{"notes of a person", name(3, 12), "received-zz"}; !slices.Equal(left, want) {
		t.Errorf("left are %q, want %q", left, want)
	}

	if err := r.restore(machine, replica.Mark{Index: 99, Term: 4}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("one that is not there: %v", err)
	}
	if err := (received{}).restore(machine, mark); err == nil {
		t.Error("a member that keeps none has restored one")
	}
}
