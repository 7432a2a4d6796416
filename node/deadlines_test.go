package node

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/kvorum/kvorum/state"
)

// TestNodesOfAMember gives nodes deadlines and sees them go in time, one by one,
// also those whose time was over while the member was down.
func TestNodesOfAMember(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	fs := vfs.NewMem()
	open := func(fresh bool) *running {
		m, err := openMember(testOptions(fs, fresh, keepFew))
		if err != nil {
			t.Fatal(err)
		}
		return start(m)
	}
	began := time.Now()
	set := func(m *running, path string, in time.Duration) time.Time {
		end := began.Add(in)
		q := state.HierarchyRequest{Op: state.NodeSet, Path: path, Value: "v", Deadline: end.UnixNano()}
		command, err := state.Command{Kind: state.Hierarchy, Encoded: q.Append(nil)}.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		out, err := m.Propose(ctx, command)
		if err != nil || out.Change == nil {
			t.Fatal(out.NodeError, err)
		}
		return end
	}
	// expired waits for nodes to go, and returns the change of each.
	expired := func(m *running, from state.Revision, n int) (gone []string) {
		for e, err := range m.Hub().Follow(ctx, state.Span{Key: []byte("/"), End: []byte("0")}, from) {
			if err != nil {
				t.Fatal(err)
			}
			changes, err := m.View().Changes(e.Revision)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range changes {
				if c.Action == "expire" {
					gone = append(gone, c.Node.Path)
				}
			}
			if len(gone) == n {
				break
			}
		}
		return gone
	}

	m := open(true)
	last := set(m, "/b", 900*time.Millisecond)
	set(m, "/a", 800*time.Millisecond)
	set(m, "/later", time.Hour)
	if got, want := expired(m, 2, 2), []string{"/a", "/b"}; !slices.Equal(got, want) {
		t.Errorf("gone are %v, want %v", got, want)
	}
	if early := time.Until(last); early > 0 {
		t.Errorf("gone %v before their time", early)
	}
	end := set(m, "/c", 1500*time.Millisecond)
	if err := m.end(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-time.After(time.Until(end)):
	case <-ctx.Done():
	}
	m = open(false)
	if got := expired(m, 7, 1); !slices.Equal(got, []string{"/c"}) {
		t.Errorf("gone is %v", got)
	}
	if _, _, err := m.View().Node("/later", false); err != nil {
		t.Error(err)
	}
	if err := m.end(); err != nil {
		t.Fatal(err)
	}
}
