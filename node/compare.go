package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/leader"
	"github.com/kvorum/kvorum/state"
)

// askSums is a call to any member: the format of its state, and the revision up
// to which keys are to be compared, 0 for none; 4 and 8 bytes, big endian. The
// answer is the member's sums: index, revision, compacted revision and checksum
// of each, 8 bytes big endian. What members of different formats hold cannot be
// compared.
const askSums = "sums"

const sumBytes = 4 * 8

// comparisons are the duties that look for members with other data.
func (m *member) comparisons() []leader.Duty {
	compare := leader.Comparison{View: m.View, Ask: m.askSums, Propose: m.propose, Log: m.o.Log}
	duties := []leader.Duty{compare.Duty}
	compare.Timeout = hashTimeout
	if m.o.CorruptCheck > 0 {
		compare.Name, compare.Every = "periodic corruption check", m.o.CorruptCheck
		compare.At = func() state.Revision { return m.View().Revision }
		duties = append(duties, compare.Duty)
	}
	if m.o.CompactHashCheck > 0 {
		compare.Name, compare.Every = "compaction hash check", m.o.CompactHashCheck
		var last state.Revision
		compare.At = func() state.Revision {
			compacted := m.View().Compacted
			if compacted <= last {
				return 0
			}
			last = compacted
			return compacted
		}
		duties = append(duties, compare.Duty)
	}
	return duties
}

// hashTimeout is how long a member may take to read all its keys.
const hashTimeout = time.Minute

func (m *member) askSums(ctx context.Context, id state.MemberID, at state.Revision) (leader.Sums, error) {
	if uint64(id) == m.o.ID {
		return m.sums(ctx, at)
	}
	body := binary.BigEndian.AppendUint32(nil, state.Format)
	body = binary.BigEndian.AppendUint64(body, uint64(at))
	answer, err := m.peers.Call(ctx, uint64(id), askSums, body)
	if err != nil {
		return nil, err
	}
	if len(answer)%sumBytes != 0 {
		return nil, fault.Malformed
	}
	sums := leader.Sums{}
	for one := range slices.Chunk(answer, sumBytes) {
		u := func(i int) uint64 { return binary.BigEndian.Uint64(one[8*i:]) }
		sums[leader.Place{Index: state.Index(u(0)), Revision: state.Revision(u(1)), Compacted: state.Revision(u(2))}] = u(3)
	}
	return sums, nil
}

func (m *member) answerSums(ctx context.Context, _ uint64, body []byte) ([]byte, error) {
	if len(body) != 4+8 {
		return nil, fault.Malformed
	}
	if format := binary.BigEndian.Uint32(body); format != state.Format {
		return nil, fmt.Errorf("the state here is of format %d, not %d", state.Format, format)
	}
	sums, err := m.sums(ctx, state.Revision(binary.BigEndian.Uint64(body[4:])))
	if err != nil {
		return nil, err
	}
	answer := make([]byte, 0, len(sums)*sumBytes)
	for place, sum := range sums {
		for _, x := range []uint64{uint64(place.Index), uint64(place.Revision), uint64(place.Compacted), sum} {
			answer = binary.BigEndian.AppendUint64(answer, x)
		}
	}
	return answer, nil
}

// sums returns what this member remembers, and the hash of its keys up to a
// revision, if they are still and already there.
func (m *member) sums(ctx context.Context, at state.Revision) (leader.Sums, error) {
	if m.View().Revision < at {
		if err := m.Barrier(ctx); err != nil {
			return nil, err
		}
	}
	view := m.View()
	sums := leader.Sums{}
	if view.Index == 0 {
		return sums, nil // it waits for a snapshot
	}
	for _, mark := range view.Marks() {
		sums[leader.Place{Index: mark.Index}] = mark.Checksum
	}
	if at == 0 {
		return sums, nil
	}
	began := time.Now()
	hash, err := view.HashKV(int64(at))
	m.o.Metrics.HashKVSeconds.Observe(time.Since(began).Seconds())
	switch {
	case errors.Is(err, fault.Compacted), errors.Is(err, fault.FutureRevision):
	case err != nil:
		return nil, err
	default:
		sums[leader.Place{Revision: at, Compacted: state.Revision(hash.CompactRevision)}] = uint64(hash.Hash)
	}
	return sums, nil
}

// checkFirst compares what this member holds with what the others do, before
// it answers anybody. Those who cannot be reached, and those known to be
// corrupt, are passed over.
func (m *member) checkFirst(ctx context.Context) error {
	view := m.View()
	own, err := m.sums(ctx, view.Revision)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, firstTimeout)
	defer cancel()
	self := state.MemberID(m.o.ID)
	told := map[state.MemberID]leader.Sums{self: own}
	var voters []state.MemberID
	var mu sync.Mutex // guards told
	var asked sync.WaitGroup
	for _, one := range view.Members() {
		if !one.Learner {
			voters = append(voters, one.ID)
		}
		if one.ID == self || view.Corrupt(one.ID) {
			continue
		}
		asked.Go(func() {
			sums, err := m.askSums(ctx, one.ID, view.Revision)
			if err != nil {
				m.o.Log.Warn("could not compare the data with that of another member", "member-id", fmt.Sprintf("%x", uint64(one.ID)), "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			told[one.ID] = sums
		})
	}
	asked.Wait()
	wrong, split := leader.Judge(voters, told)
	if split || slices.Contains(wrong, self) {
		return fmt.Errorf("%x found data inconsistency with peers: this member does not start; remove it from the cluster, and add it again with an empty data directory", m.o.ID)
	}
	return nil
}

// firstTimeout is how long the others have to answer a member that starts.
const firstTimeout = 7 * time.Second
