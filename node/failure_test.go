package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// breaker lets one change to the disk fail, or that one and all that follow.
type breaker struct {
	at      int64 // which, from 1
	forever bool
	err     error

	changes atomic.Int64
	healed  atomic.Bool
	failed  atomic.Pointer[errorfs.Op] // the first that failed
}

func (b *breaker) String() string { return "breaker" }

func (b *breaker) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() == errorfs.OpIsRead || op.Kind == errorfs.OpFileClose || b.healed.Load() {
		return nil
	}
	if n := b.changes.Add(1); n == b.at || b.forever && n > b.at {
		b.failed.CompareAndSwap(nil, &op)
		return b.err
	}
	return nil
}

// TestDiskFailure lets each change to the disk fail in turn. The member ends
// and says why, and a member that starts on what the disk holds then, or on
// what a power loss leaves of it, has everything that was acknowledged: a
// failed sync may have lost what was written before it, and is not repeated.
func TestDiskFailure(t *testing.T) {
	seed := setting(t, "KVORUM_POWER_SEED", rand.Uint64N(1<<32))
	failures, starts := 0, 0
	for _, mode := range []struct {
		err     error
		forever bool
	}{{syscall.EIO, false}, {syscall.EIO, true}, {syscall.ENOSPC, true}} {
		for at := int64(1); ; at++ {
			b := &breaker{at: at, forever: mode.forever, err: mode.err}
			looked, err := failOnce(t, b, rand.New(rand.NewPCG(seed, uint64(at))))
			if err != nil {
				op := b.failed.Load()
				t.Fatalf("KVORUM_POWER_SEED=%d, change %d of the disk (%+v) fails with %v, forever %v: %v", seed, at, op, mode.err, mode.forever, err)
			}
			starts += looked
			if b.failed.Load() == nil {
				break // there are not so many
			}
			failures++
		}
	}
	t.Logf("seed %d: %d failures, %d starts afterwards", seed, failures, starts)
}

func failOnce(t *testing.T, b *breaker, rng *rand.Rand) (starts int, err error) {
	d := newDisk(vfs.NewCrashableMem())
	if err := errors.Join(d.MkdirAll("/data", 0o700), syncDir(d, "/")); err != nil {
		return 0, err
	}
	h := newHistory()
	ended := live(t, errorfs.Wrap(d, b), h)
	last, compacted := h.acknowledged()
	var left []*vfs.MemFS
	for _, percent := range shares {
		left = append(left, d.powerLoss(rng, percent, percent > 0))
	}
	b.healed.Store(true)

	op := b.failed.Load()
	switch {
	case op == nil && ended != nil:
		return 0, fmt.Errorf("nothing failed, but the member ended with: %w", ended)
	case op == nil:
		return 0, nil
	case ended == nil:
		return 0, errors.New("the member did not end, or ended well")
	case !strings.Contains(ended.Error(), b.err.Error()):
		return 0, fmt.Errorf("the member ended with %q, which is not the reason", ended)
	}
	o := &outage{t: t, keep: keepFew, flush: 3, again: 1 << 30}
	o.mu.rng = rng
	for i, mem := range left {
		k := crash{mem: mem, last: last, compacted: compacted, what: fmt.Sprintf("the end, %d %% left", shares[i])}
		if err := o.recover(k, h.fork(1<<62, compacted), 1); err != nil {
			return starts, fmt.Errorf("%s: %w (ended with: %v)", k.what, err, ended)
		}
		starts++
	}
	return starts, nil
}

// live has a member live a short life and returns why it ended.
func live(t *testing.T, fs vfs.FS, h *history) (err error) {
	o := testOptions(fs, true, keepFew)
	m, err := openMember(o)
	if err != nil {
		return err
	}
	r := start(m)
	played := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { played <- load{seed: 7, proposers: 1, commands: 8, large: 10}.playUntil(ctx, t, m, h) }()
	select {
	case err := <-played:
		if err != nil { // the member is on its way out
			return await(r.done)
		}
		r.stop()
		return await(r.done)
	case err := <-r.done:
		return err
	}
}

func await(done <-chan error) error {
	select {
	case err := <-done:
		return err
	case <-time.After(time.Minute):
		return errors.New("the member does not end")
	}
}
