package state_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

func snapshot(t testing.TB, m *state.Machine) []byte {
	t.Helper()
	var buf bytes.Buffer
	index, err := m.WriteSnapshot(&buf)
	if err != nil {
		t.Fatal(err)
	}
	if applied, _ := m.Applied(); index != applied {
		t.Fatalf("snapshot of index %d, applied %d", index, applied)
	}
	return buf.Bytes()
}

func restore(t testing.TB, m *state.Machine, snapshot []byte) {
	t.Helper()
	if err := m.Restore(bytes.NewReader(snapshot)); err != nil {
		t.Fatal(err)
	}
}

// hashes is all that members compare.
func hashes(t testing.TB, m *state.Machine) string {
	t.Helper()
	v := m.View()
	kv, err := v.HashKV(0)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("index %d revision %d compacted %d kv %08x all %016x configuration %q",
		v.Index, v.Revision, v.Compacted, kv.Hash, v.Checksum, v.Configuration)
}

var errCompacted = fault.Compacted
