package state_test

import (
	"math/rand/v2"
	"testing"

	"github.com/kvorum/kvorum/state"
)

// TestMembersShareAMark has two machines apply one log, the one ahead of the
// other, and wants an index that both remember.
func TestMembersShareAMark(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	ahead, behind := newBed(t, false), newBed(t, false)
	apply := func(b *bed, to state.Index) {
		var log []state.Entry
		for ; b.applied < to; b.applied++ {
			log = append(log, state.Entry{Index: b.applied + 1, Term: 1})
		}
		if _, err := b.Apply(log); err != nil {
			t.Fatal(err)
		}
	}
	for at := state.Index(100); at < 20_000; at += state.Index(1 + rng.IntN(300)) {
		apart := state.Index(rng.IntN(1 << rng.IntN(10)))
		apply(ahead, max(ahead.applied, at+apart))
		apply(behind, at)
		apart = ahead.applied - at
		if 8*apart >= at {
			continue
		}
		sums := map[state.Mark]bool{}
		for _, m := range behind.View().Marks() {
			sums[m] = true
		}
		shared := state.Index(0)
		for _, m := range ahead.View().Marks() {
			if sums[m] {
				shared = max(shared, m.Index)
			}
		}
		if shared == 0 || at-shared > 8*apart {
			t.Fatalf("at %d and %d: the newest mark of both is %d", at, ahead.applied, shared)
		}
	}
}
