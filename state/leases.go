package state

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state/internal/lease"
)

// LeaseSecondsMax is the longest time that a lease can be granted for.
const LeaseSecondsMax = lease.SecondsMax

// CheckLeaseGrant says whether a lease can be granted for so long.
func CheckLeaseGrant(q *pb.LeaseGrantRequest) error {
	if q.TTL > LeaseSecondsMax {
		return fault.LeaseTTLTooLarge
	}
	return nil
}

func (b *batch) grantLease(q *pb.LeaseGrantRequest) (Outcome, error) {
	id := LeaseID(q.ID)
	if id == 0 {
		return refuse(fault.LeaseNotFound), nil
	}
	if err := CheckLeaseGrant(q); err != nil {
		return refused(err)
	}
	if b.next.leases.Has(id) {
		return refuse(fault.LeaseExists), nil
	}

	l := Lease{ID: id, Granted: max(1, q.TTL)}
	b.next.leases = b.next.leases.Put(&b.rows, l)

	return Outcome{
		Response: &pb.LeaseGrantResponse{Header: header(b.keys.Revision()), ID: q.ID, TTL: l.Granted},
		Leases:   []LeaseChange{{Lease: l, New: true}},
	}, nil
}

func (b *batch) revokeLease(q *pb.LeaseRevokeRequest) (Outcome, error) {
	l, ok := b.next.leases.Find(LeaseID(q.ID))
	if !ok {
		return refuse(fault.LeaseNotFound), nil
	}

	b.endLease(l.ID)

	o := Outcome{Events: b.seal(), Leases: []LeaseChange{{Lease: l, Gone: true}}}
	o.Response = &pb.LeaseRevokeResponse{Header: header(b.keys.Revision())}
	return o, nil
}

// endLease deletes a lease and the keys that hang on it.
func (b *batch) endLease(id LeaseID) {
	for key := range b.next.leases.Keys(id) {
		if note := b.keys.Delete(key); note != "" {
			b.next.deadlines = b.next.deadlines.Without(key, note)
		}
	}
	b.next.leases = b.next.leases.Drop(&b.rows, id)
}

// expireLeases revokes many leases, each at a revision of its own. Those that
// are gone already are no reason to keep the others.
func (b *batch) expireLeases(q *pb.LeaseLeasesResponse) (Outcome, error) {
	var o Outcome
	from := len(b.events)
	for _, one := range q.Leases {
		l, ok := b.next.leases.Find(LeaseID(one.GetID()))
		if !ok {
			continue
		}
		b.endLease(l.ID)
		b.seal()
		o.Leases = append(o.Leases, LeaseChange{Lease: l, Gone: true})
	}
	o.Events = b.events[from:len(b.events):len(b.events)]
	return o, nil
}

// checkpointLeases writes down what is left of the time of leases, for a
// leader to come.
func (b *batch) checkpointLeases(q *pb.LeaseCheckpointRequest) (Outcome, error) {
	var o Outcome
	for _, c := range q.Checkpoints {
		l, ok := b.next.leases.Find(LeaseID(c.GetID()))
		if !ok {
			continue
		}
		l.Remaining = min(max(0, c.GetRemaining_TTL()), l.Granted)
		b.next.leases = b.next.leases.Put(&b.rows, l)
		o.Leases = append(o.Leases, LeaseChange{Lease: l})
	}
	return o, nil
}
