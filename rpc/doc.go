// Package rpc is a lean gRPC server: HTTP/2 streams, flow control, deadlines
// and metadata for the services that generated code describes. It is a
// grpc.ServiceRegistrar, and handlers cannot tell it from grpc-go's server,
// but for grpc.SetSendCompressor and grpc.ClientSupportedCompressors, which
// work with nobody else's.
//
//	server.go  methods, listeners, the end
//	conn.go    one connection: its reader and what it makes of each frame
//	intake.go  what frames are read with, lent to who has something to read
//	headers.go what a request's headers say; encoder.go: those of the answer
//	stream.go  one call; context.go: as a context; server_stream.go: as handlers see it
//	message.go what is sent and received: compressed, encoded, limited;
//	messages.go the same for handlers that encode, and send many at once
//	send.go    windows, turns, and the one write for all that is ready
//	keep.go    pings, age and idleness; when a reader rests
//	together.go calls that wait as one party
//	pool.go    goroutines and buffers that are used again
//	inside.go  a way in for callers in the same process
//
// A connection has one goroutine of its own, which reads. It answers by itself
// what cannot wait, and gives the rest to workers. Whoever has an answer puts
// it behind those that are ready and writes them all, unless somebody is
// writing already, who will then take it along.
//
// R1: what a client can make the server hold is bounded by Options.
// R2: the reader waits for nobody but its client: neither for a handler, nor
// for the socket to take an answer, unless the client leaves too many unread.
// R3: after Stop or GracefulStop returns, no handler runs and no goroutine of
// the server is left.
package rpc
