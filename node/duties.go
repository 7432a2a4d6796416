package node

import (
	"context"
	"time"

	"github.com/kvorum/kvorum/leader"
	"github.com/kvorum/kvorum/state"
)

// duties are what this member does while it leads, all of it.
func (m *member) duties() []leader.Duty {
	duties := append(m.comparisons(), m.abdicate, m.leases.Serve, m.deadlines.Serve)
	if m.o.CompactPeriod > 0 || m.o.CompactRevisions > 0 {
		duties = append(duties, leader.Compaction{
			Period: m.o.CompactPeriod, Revisions: m.o.CompactRevisions,
			View: m.View, Propose: m.propose, Log: m.o.Log,
		}.Duty)
	}
	return duties
}

// propose has a decision of this member made true.
func (m *member) propose(ctx context.Context, c state.Command) error {
	command, err := c.Append(nil)
	if err != nil {
		return err
	}
	out, err := m.replica.Propose(ctx, command)
	if err == nil && out.Refusal != nil {
		err = out.Refusal
	}
	return err
}

// abdicate hands leadership over once this member is known to be corrupt: what
// it decides would rest on wrong data.
func (m *member) abdicate(ctx context.Context, _ state.Term) error {
	tick := time.NewTicker(m.o.Tick)
	defer tick.Stop()
	for {
		if m.View().Corrupt(state.MemberID(m.o.ID)) {
			if err := m.handOver(ctx); err != nil && ctx.Err() == nil {
				m.o.Log.Warn("could not hand leadership over", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
