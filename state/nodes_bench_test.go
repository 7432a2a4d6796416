package state_test

import (
	"fmt"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/state"
)

// nodeBed has a directory of 10,000 files, and one of 10,000 directories of ten
// files each, one made by v2 and one by v3.
func nodeBed(b *testing.B) *bed {
	m := newBed(b, false)
	m.options.ValueCacheBytes = 0
	m.crash(b, 1<<20)
	var commands []state.Command
	for i := range 10_000 {
		q := state.HierarchyRequest{Op: state.NodeSet, Path: fmt.Sprintf("/files/%d", i), Value: "value"}
		commands = append(commands, state.Command{Kind: state.Hierarchy, Encoded: q.Append(nil)})
		for j := range 10 {
			q.Path = fmt.Sprintf("/dirs/%d/%d", i, j)
			commands = append(commands, state.Command{Kind: state.Hierarchy, Encoded: q.Append(nil)},
				state.Command{Kind: state.Put, Request: &pb.PutRequest{Key: []byte(fmt.Sprintf("/implied/%d/%d", i, j))}})
		}
	}
	m.apply(b, commands...)
	b.ReportAllocs()
	b.ResetTimer()
	return m
}

func BenchmarkNodes(b *testing.B) {
	m := nodeBed(b)
	defer m.Close()
	v := m.View()
	for _, path := range []string{"/files/77", "/files", "/dirs", "/implied", "/"} {
		b.Run("get="+path, func(b *testing.B) {
			for b.Loop() {
				if _, _, err := v.Node(path, false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("get=/dirs,recursive", func(b *testing.B) {
		for b.Loop() {
			if _, _, err := v.Node("/dirs", true); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, dir := range []string{"/files", "/x/y/z"} {
		b.Run("set="+dir, func(b *testing.B) {
			q := state.HierarchyRequest{Op: state.NodeSet, Path: dir + "/1", Value: "value"}
			command := encode(b, state.Command{Kind: state.Hierarchy, Encoded: q.Append(nil)})
			e := state.Entry{Wanted: true}
			for range 64 {
				e.Commands = append(e.Commands, command)
			}
			for n := 0; b.Loop(); n++ {
				if n%64 == 0 {
					m.applied++
					e.Index = m.applied
					if _, err := m.Apply([]state.Entry{e}); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
	b.Run("changes", func(b *testing.B) {
		v := m.View()
		for b.Loop() {
			if changes, err := v.Changes(v.Revision); err != nil || len(changes) != 1 {
				b.Fatal(changes, err)
			}
		}
	})
}
