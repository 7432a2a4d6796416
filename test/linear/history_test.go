package linear

import (
	"encoding/json"
	"os"
	"slices"
	"testing"
	"time"
)

func read(t *testing.T, file string) (history []Operation) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &history)
	}
	if err != nil {
		t.Fatal(err)
	}
	return history
}

// TestHistories judges what clients of a cluster saw whose leader was paused
// and then, in its first moment, answered from the past: made to, for this. The
// last operation is the one that cannot be.
func TestHistories(t *testing.T) {
	if file := os.Getenv("KVORUM_HISTORY"); file != "" {
		history := read(t, file)
		t.Logf("%d operations", len(history))
		for _, err := range []error{Order(history), Check(history, time.Minute)} {
			if err != nil {
				t.Error(err)
			}
		}
		return
	}
	history := read(t, "testdata/a-stale-read.json")
	if Order(history) == nil || Check(history, time.Minute) == nil {
		t.Error("a read from the past is thought to be possible")
	}
	slices.SortFunc(history, func(a, b Operation) int { return int(a.Call - b.Call) })
	history = history[:len(history)-1]
	for _, err := range []error{Order(history), Check(history, time.Minute)} {
		if err != nil {
			t.Error(err)
		}
	}
}
