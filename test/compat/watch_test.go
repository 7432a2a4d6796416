package compat

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/prototext"
)

// watching is the stream that commands named watch speak over.
type watching struct {
	stream pb.Watch_WatchClient
	cancel context.CancelFunc
}

func (w *watching) end() {
	if w != nil {
		w.cancel()
	}
}

// watch sends each line as a request, and shows the answers that the command
// says it waits for.
func (s *script) watch(t *testing.T, d *datadriven.TestData) string {
	s.running(t)
	if s.watching == nil || has(d, "new") {
		s.watching.end()
		ctx, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		if meta := argument(d, "meta"); meta != "" {
			key, value, _ := strings.Cut(meta, ":")
			ctx = metadata.AppendToOutgoingContext(ctx, key, value)
		}
		stream, err := pb.NewWatchClient(s.conn).Watch(ctx)
		if err != nil {
			return renderError(err)
		}
		s.watching = &watching{stream, cancel}
	}
	for line := range strings.Lines(expand(d.Input)) {
		req := &pb.WatchRequest{}
		if err := prototext.Unmarshal([]byte(line), req); err != nil {
			d.Fatalf(t, "request: %v", err)
		}
		if err := s.watching.stream.Send(req); err != nil {
			return renderError(err)
		}
	}
	if has(d, "last") {
		want(t, s.watching.stream.CloseSend())
	}
	var out strings.Builder
	for range number(t, d, "answers") {
		resp, err := receive(s.watching)
		if err != nil {
			return out.String() + renderError(err)
		}
		fmt.Fprintln(&out, strings.ReplaceAll(strings.TrimSuffix(render(resp), "\n"), "\n", " "))
	}
	return out.String()
}

// receive waits for an answer no longer than for one to any call.
func receive(w *watching) (*pb.WatchResponse, error) {
	timer := time.AfterFunc(callTime, w.cancel)
	defer timer.Stop()
	return w.stream.Recv()
}
