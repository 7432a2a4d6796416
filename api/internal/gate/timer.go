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
func requestOf(k state.Kind) Request {
	switch k {
	case state.Put:
		return Put
	case state.DeleteRange:
		return DeleteRange
	case state.Txn:
		return Txn
	case state.Compact:
		return Compaction
	case state.Alarm:
		return Alarm
	case state.LeaseGrant:
		return LeaseGrant
	case state.LeaseRevoke:
		return LeaseRevoke
	}
	return Other
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
