package rpc

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// RestAfter makes the readers of s rest when their clients are silent so long.
func (s *Server) RestAfter(d time.Duration) { s.restAfter = d }

// AnswerAnything makes s answer whatever is asked over HTTP/2, gRPC or not,
// once it was received to the end.
func (s *Server) AnswerAnything() {
	s.anything = &method{
		info: &grpc.StreamServerInfo{},
		stream: &grpc.StreamDesc{Handler: func(_ any, stream grpc.ServerStream) error {
			s := stream.(*serverStream).s
			s.c.mu.Lock()
			for !s.receivedAll && !s.ending.over() {
				s.waiting.toReceive.Wait()
			}
			s.dropReceived()
			s.c.mu.Unlock()
			return stream.SendMsg(wrapperspb.String("here you are"))
		}},
	}
}
