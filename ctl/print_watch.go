package ctl

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func watchAnswer(r clientv3.WatchResponse) answer {
	return answer{
		message: &pb.WatchResponse{
			Header: r.Header, CompactRevision: r.CompactRevision,
			Canceled: r.Canceled, Created: r.Created, CancelReason: r.CancelReason, Events: r.Events,
		},
		json: r,
		simple: func(p *printer) {
			for _, e := range r.Events {
				p.linef("%s", e.GetType())
				if e.GetPrevKv() != nil {
					p.pair(e.GetPrevKv())
				}
				p.pair(e.GetKv())
			}
		},
		fields: func(p *printer) {
			p.header(r.Header)
			for _, e := range r.Events {
				p.field("Type", e.GetType())
				if e.GetPrevKv() != nil {
					p.pairFields("Prev", e.GetPrevKv())
				}
				p.pairFields("", e.GetKv())
			}
		},
	}
}
