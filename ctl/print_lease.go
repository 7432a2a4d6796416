package ctl

import (
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The client has types of its own for the answers about leases, in JSON too.

func leaseGrantAnswer(r *clientv3.LeaseGrantResponse) answer {
	return answer{
		json:    r,
		message: &pb.LeaseGrantResponse{Header: r.ResponseHeader, ID: int64(r.ID), TTL: r.TTL, Error: r.Error},
		simple:  func(p *printer) { p.linef("lease %016x granted with TTL(%ds)", r.ID, r.TTL) },
		fields: func(p *printer) {
			p.header(r.ResponseHeader)
			p.lease(r.ID)
			p.field("TTL", r.TTL)
		},
	}
}

func leaseRevokeAnswer(id clientv3.LeaseID, r *clientv3.LeaseRevokeResponse) answer {
	return answer{
		message: (*pb.LeaseRevokeResponse)(r),
		simple:  func(p *printer) { p.linef("lease %016x revoked", id) },
		fields:  func(p *printer) { p.header(r.Header) },
	}
}

func leaseTimeToLiveAnswer(r *clientv3.LeaseTimeToLiveResponse, keys bool) answer {
	return answer{
		json: r,
		message: &pb.LeaseTimeToLiveResponse{
			Header: r.ResponseHeader, ID: int64(r.ID), TTL: r.TTL, GrantedTTL: r.GrantedTTL, Keys: r.Keys,
		},
		simple: func(p *printer) {
			if r.GrantedTTL == 0 && r.TTL == -1 {
				p.linef("lease %016x already expired", r.ID)
				return
			}
			attached := ""
			if keys {
				attached = fmt.Sprintf(", attached keys(%s)", r.Keys)
			}
			p.linef("lease %016x granted with TTL(%ds), remaining(%ds)%s", r.ID, r.GrantedTTL, r.TTL, attached)
		},
		fields: func(p *printer) {
			p.header(r.ResponseHeader)
			p.lease(r.ID)
			p.field("TTL", r.TTL)
			p.field("GrantedTTL", r.GrantedTTL)
			for _, key := range r.Keys {
				p.quoted("Key", string(key))
			}
		},
	}
}

func leaseListAnswer(r *clientv3.LeaseLeasesResponse) answer {
	m := &pb.LeaseLeasesResponse{Header: r.ResponseHeader}
	for _, l := range r.Leases {
		m.Leases = append(m.Leases, &pb.LeaseStatus{ID: int64(l.ID)})
	}
	return answer{
		json:    r,
		message: m,
		simple: func(p *printer) {
			p.linef("found %d leases", len(r.Leases))
			for _, l := range r.Leases {
				p.linef("%016x", l.ID)
			}
		},
		fields: func(p *printer) {
			p.header(r.ResponseHeader)
			for _, l := range r.Leases {
				p.lease(l.ID)
			}
		},
	}
}

func leaseKeepAliveAnswer(r *clientv3.LeaseKeepAliveResponse) answer {
	return answer{
		json:    r,
		message: &pb.LeaseKeepAliveResponse{Header: r.ResponseHeader, ID: int64(r.ID), TTL: r.TTL},
		simple:  func(p *printer) { p.linef("lease %016x keepalived with TTL(%d)", r.ID, r.TTL) },
		fields: func(p *printer) {
			p.header(r.ResponseHeader)
			p.lease(r.ID)
			p.field("TTL", r.TTL)
		},
	}
}

// lease writes a lease's id as a field.
func (p *printer) lease(id clientv3.LeaseID) {
	if p.hex {
		p.linef("%q : %016x", "ID", id)
		return
	}
	p.field("ID", int64(id))
}
