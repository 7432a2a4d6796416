// Package rpc is a lean gRPC server: HTTP/2 streams, flow control, deadlines
// and metadata for the generated service descriptors, with answers that are
// ready together leaving in one write.
//
// It is empty so far: grpc-go serves the same services until then.
package rpc
