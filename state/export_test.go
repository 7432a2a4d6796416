package state

import pb "go.etcd.io/etcd/api/v3/etcdserverpb"

// ParsePut is the hot decoder, for tests to compare with package proto.
func ParsePut(b []byte) (*pb.PutRequest, bool) {
	p, ok := parsePut(b)
	return &pb.PutRequest{
		Key: p.key, Value: p.value, Lease: p.lease, PrevKv: p.prev, IgnoreValue: p.ignoreValue, IgnoreLease: p.ignoreLease,
	}, ok
}
