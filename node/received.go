package node

import (
	"errors"
	"fmt"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvorum/kvorum/peer"
	"github.com/kvorum/kvorum/replica"
	"github.com/kvorum/kvorum/state"
)

// received are the snapshots that other members have sent. A file stays until
// what it holds is restored, or not wanted any more: after a crash in between,
// the next start finds it.
type received struct {
	fs  vfs.FS
	dir string // "": there are none
}

// restore makes the machine what the snapshot at m holds.
func (r received) restore(machine *state.Machine, m replica.Mark) error {
	if r.dir == "" {
		return errors.New("this member keeps no snapshots of others")
	}
	name := peer.SnapshotFile(&raftpb.SnapshotMetadata{Term: &m.Term, Index: &m.Index})
	file, err := r.fs.Open(r.fs.PathJoin(r.dir, name))
	if err != nil {
		return fmt.Errorf("open received snapshot: %w: this member was to be rebuilt from it; remove the member from the cluster and add it again with an empty data directory", err)
	}
	if err := errors.Join(machine.Restore(file), file.Close()); err != nil {
		return err
	}
	return r.drop(state.Index(m.Index))
}

// drop removes the snapshots up to an index that the state is past.
func (r received) drop(upTo state.Index) error {
	if r.dir == "" {
		return nil
	}
	files, err := r.fs.List(r.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list received snapshots: %w", err)
	}
	for _, name := range files {
		var term, index uint64
		_, err := fmt.Sscanf(name, "received-%x-%x", &term, &index)
		if err != nil || name != peer.SnapshotFile(&raftpb.SnapshotMetadata{Term: &term, Index: &index}) || index > uint64(upTo) {
			continue
		}
		if err := r.fs.Remove(r.fs.PathJoin(r.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove received snapshot: %w", err)
		}
	}
	return nil
}
