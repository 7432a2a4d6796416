package gate

import (
	"time"

	"github.com/kvorum/kvorum/metric"
	"github.com/kvorum/kvorum/state"
)

// Request is a kind of request whose time is measured.
type Request uint8

const (
	Other Request = iota
	Range
	Put
	DeleteRange
	Txn
	Compaction
	Alarm
	LeaseGrant
	LeaseRevoke
	requests
)

func (r Request) String() string {
	return [...]string{"unknown", "Range", "Put", "DeleteRange", "Txn", "Compaction", "Alarm", "LeaseGrant", "LeaseRevoke"}[r]
}

// requestOf names a command as the metrics do.
var requestOf = map[state.Kind]Request{
	state.Put:         Put,
	state.DeleteRange: DeleteRange,
	state.Txn:         Txn,
	state.Compact:     Compaction,
	state.Alarm:       Alarm,
	state.LeaseGrant:  LeaseGrant,
	state.LeaseRevoke: LeaseRevoke,
}

// Observe counts one request, begun at start and answered now.
func (g *Gate) Observe(r Request, start time.Time, err error) { g.requests[r].observe(start, err) }

// timer is the two members of a family that say, with their last label,
// whether all went well.
type timer struct{ ok, failed *metric.Histogram }

func newTimer(f *metric.Family[metric.Histogram], labels ...string) timer {
	return timer{ok: f.With(append(labels, "true")...), failed: f.With(append(labels, "false")...)}
}

func (t timer) observe(start time.Time, err error) {
	to := t.ok
	if err != nil {
		to = t.failed
	}
	to.Observe(time.Since(start).Seconds())
}
