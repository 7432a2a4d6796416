package v3

import "testing"

func TestPiecesGrowToTheSizeWanted(t *testing.T) {
	for _, c := range []struct{ keys, size, want, next int64 }{
		{10, 1000, 1 << 20, 20},     // small keys: twice as many
		{10, 100_000, 50_000, 5},    // too large: fewer
		{10, 100_000, 150_000, 15},  // about right
		{1, 10_000_000, 1 << 20, 1}, // one too large by itself
		{10, 0, 1 << 20, 20},
	} {
		if got := nextPiece(c.keys, c.size, c.want); got != c.next {
			t.Errorf("after %d keys of %d bytes: %d, want %d", c.keys, c.size, got, c.next)
		}
	}
}
