// Package proxy is a door to a cluster on a machine that holds no member of it:
// it forwards what the programs there ask, gRPC, JSON and all else, to members
// that are well. It keeps nothing: it can be started before the cluster, killed
// at any time, and run as often as one likes.
//
//	proxy.go   settings, doors, and the order of shutdown
//	forward.go calls of gRPC: most pass as the bytes that came
//	pages.go   what the proxy says of itself over HTTP
//	srv.go     endpoints from DNS
//	tcp.go     the plainer door, which forwards connections
//
// internal/upstream is the way to the members, internal/merge makes one watcher
// and one stream of keep-alives of many, and internal/namespace puts keys below a
// prefix.
//
// X1: a proxy never answers for the cluster from what it remembers.
// X2: members may come, go and move; the proxy need not be told.
package proxy
