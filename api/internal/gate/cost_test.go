package gate

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

func TestCostIsThatOfTheDearerBranch(t *testing.T) {
	put := func(value int) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k"), Value: make([]byte, value)}}}
	}
	inside := func(r *pb.TxnRequest) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}
	}
	get := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("k")}}}

	for _, c := range []struct {
		req  any
		want int64
	}{
		{&pb.PutRequest{Key: []byte("key"), Value: []byte("value")}, 256 + 8},
		{&pb.DeleteRangeRequest{Key: []byte("key")}, 0},
		{&pb.CompactionRequest{Revision: 5}, 0},
		{&pb.TxnRequest{Success: []*pb.RequestOp{get}}, 0},
		{&pb.TxnRequest{Success: []*pb.RequestOp{put(1), get, put(2)}, Failure: []*pb.RequestOp{put(9)}}, 512 + 5},
		{&pb.TxnRequest{Success: []*pb.RequestOp{get}, Failure: []*pb.RequestOp{put(9)}}, 256 + 10},
		{&pb.TxnRequest{Success: []*pb.RequestOp{inside(&pb.TxnRequest{Failure: []*pb.RequestOp{put(1), put(1)}})}}, 512 + 4},
	} {
		if got := cost(c.req); got != c.want {
			t.Errorf("%v: %d, want %d", c.req, got, c.want)
		}
	}
}

func TestSlowRequestsAreDescribedWithoutValues(t *testing.T) {
	req := &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: []byte("a")}},
		Success: []*pb.RequestOp{
			{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("a"), Value: []byte("secret"), Lease: 255}}},
			{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("b"), Limit: 7}}},
		},
		Failure: []*pb.RequestOp{{}},
	}
	const want = `txn compares:1 success:[put "a" value_size:6 lease:ff; range ["a", "b") limit:7] failure:[]`
	if got := describe(req); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
