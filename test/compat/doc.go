// Package compat proves that clients written for etcd work unchanged. Its
// scripts in testdata hold requests together with the answers that etcd 3.7.3
// gave to them; the tests send the same requests to a kvorum process and find
// no difference, except those that testdata/allowed.txt names with a reason.
//
// Without further ado the tests build kvorum and need nothing but Go. What
// they do beyond that is asked for by variables:
//
//	KVORUM_COMPAT=1               also run etcdctl 3.7, built from the module in
//	                              test/bench/etcd, and 3.4 from Debian's etcd-client,
//	                              and the gRPC clients of Node.js (from npm) and
//	                              Python (Debian's python3-grpcio)
//	KVORUM_COMPAT_ETCDCTL=path    an etcdctl 3.7 that is built already
//	                              Beside kvorum, have an etcd 3.4, Debian's
//	                              etcd-server, say what testdata/v2 holds of it
//	KVORUM_COMPAT_ETCD34=path     an etcd 3.4 that is elsewhere
//	KVORUM_COMPAT_ETCD=path       test this server instead: a real etcd
//
// To record the answers anew, from a real etcd and only from one:
//
//	KVORUM_COMPAT=1 KVORUM_COMPAT_ETCD=path go test ./test/compat -rewrite
//
// The v2 API is compared with etcd 3.4.23, whose answers are in testdata/v2;
// v2Differences tells where kvorum's are others, and why. They are recorded by
//
//	KVORUM_COMPAT_ETCD34=path go test ./test/compat -run TestV2Etcd34 -rewrite
package compat
