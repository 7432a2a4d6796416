package gate

import (
	"fmt"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// describe tells an operator what a request asked for. It says how large a
// value is, and never what it is: values hold secrets, and logs travel.
func describe(req any) string {
	var b strings.Builder
	describeTo(&b, req)
	return b.String()
}

// describedMax keeps a large transaction from becoming a large line.
const describedMax = 16

func describeTo(b *strings.Builder, req any) {
	switch r := req.(type) {
	case *pb.RangeRequest:
		fmt.Fprintf(b, "range %s", span(r.Key, r.RangeEnd))
		if r.Revision > 0 {
			fmt.Fprintf(b, " revision:%d", r.Revision)
		}
		if r.Limit > 0 {
			fmt.Fprintf(b, " limit:%d", r.Limit)
		}
		if r.Serializable {
			b.WriteString(" serializable")
		}
	case *pb.PutRequest:
		fmt.Fprintf(b, "put %q value_size:%d", r.Key, len(r.Value))
		if r.Lease != 0 {
			fmt.Fprintf(b, " lease:%x", r.Lease)
		}
	case *pb.DeleteRangeRequest:
		fmt.Fprintf(b, "delete %s", span(r.Key, r.RangeEnd))
	case *pb.CompactionRequest:
		fmt.Fprintf(b, "compact revision:%d", r.Revision)
		if r.Physical {
			b.WriteString(" physical")
		}
	case *pb.LeaseGrantRequest:
		fmt.Fprintf(b, "lease grant %x ttl:%d", r.ID, r.TTL)
	case *pb.LeaseRevokeRequest:
		fmt.Fprintf(b, "lease revoke %x", r.ID)
	case *pb.TxnRequest:
		fmt.Fprintf(b, "txn compares:%d", len(r.Compare))
		describeOps(b, "success", r.Success)
		describeOps(b, "failure", r.Failure)
	}
}

func describeOps(b *strings.Builder, branch string, ops []*pb.RequestOp) {
	fmt.Fprintf(b, " %s:[", branch)
	for i, op := range ops {
		if i > 0 {
			b.WriteString("; ")
		}
		if i == describedMax {
			fmt.Fprintf(b, "and %d more", len(ops)-i)
			break
		}
		switch r := op.GetRequest().(type) {
		case *pb.RequestOp_RequestRange:
			describeTo(b, r.RequestRange)
		case *pb.RequestOp_RequestPut:
			describeTo(b, r.RequestPut)
		case *pb.RequestOp_RequestDeleteRange:
			describeTo(b, r.RequestDeleteRange)
		case *pb.RequestOp_RequestTxn:
			describeTo(b, r.RequestTxn)
		}
	}
	b.WriteString("]")
}

func span(key, end []byte) string {
	if len(end) == 0 {
		return fmt.Sprintf("%q", key)
	}
	return fmt.Sprintf("[%q, %q)", key, end)
}
