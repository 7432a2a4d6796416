package state

import (
	"strings"
	"testing"
)

// TestNewerFormat opens what a later version has written.
func TestNewerFormat(t *testing.T) {
	memory := NewMemory()
	b := memory.Batch()
	b.Set(identityKey, append(identity{Format + 1, 7}.append(nil), "and what else it may hold"...))
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	_, err := Open(Options{Memory: memory})
	if err == nil || !strings.Contains(err.Error(), "format 2, written by a newer version") {
		t.Fatal(err)
	}
}
