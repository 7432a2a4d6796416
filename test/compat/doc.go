// Package compat proves that clients written for etcd work unchanged. Its
// scripts in testdata hold requests together with the answers that etcd 3.7.3
// gave to them; the tests send the same requests to a kvorum process and find
// no difference, except those that testdata/allowed.txt names with a reason.
//
// To record the answers anew, from a real etcd and only from one:
//
//	KVORUM_COMPAT_ETCD=/path/to/etcd go test ./test/compat -rewrite
package compat
