package rpc_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/rpc"
)

// TestCallsThatWaitTogether has one wait serve all calls that came before it.
func TestCallsThatWaitTogether(t *testing.T) {
	var waits int
	begun, finish := make(chan int), make(chan error)
	entered := make(chan struct{}, 100)
	s := rpc.New(rpc.Options{})
	grpc_testing.RegisterTestServiceServer(s, &service{})
	s.Fast(unaryCall, rpc.Fast{
		Together: &rpc.Together{
			Joins: func(in []byte) bool {
				var q grpc_testing.SimpleRequest
				joins := proto.Unmarshal(in, &q) == nil && q.FillUsername
				if joins {
					entered <- struct{}{}
				}
				return joins
			},
			Wait: func(ctx context.Context) error {
				waits++
				begun <- waits
				select {
				case err := <-finish:
					return err
				case <-ctx.Done():
					return ctx.Err()
				}
			},
			Handle: func(_ context.Context, in, out []byte, came time.Time, err error) ([]byte, error) {
				if time.Since(came) < 0 || time.Since(came) > time.Minute {
					t.Errorf("a call came at %v", came)
				}
				if err != nil {
					return nil, err
				}
				answer, err := proto.Marshal(&grpc_testing.SimpleResponse{Username: "together"})
				return append(out, answer...), err
			},
		},
	})
	addr := start(t, s)
	var mu sync.Mutex
	var got []string
	var calls sync.WaitGroup
	ask := func(joins bool) {
		client := grpc_testing.NewTestServiceClient(dial(t, addr))
		calls.Go(func() {
			r, err := client.UnaryCall(within(t, patience), &grpc_testing.SimpleRequest{FillUsername: joins})
			mu.Lock()
			defer mu.Unlock()
			if got = append(got, r.GetUsername()); err != nil {
				got[len(got)-1] = err.Error()
			}
		})
		if joins {
			<-entered
		}
	}
	ask(true)
	<-begun
	for range 10 {
		ask(true) // wait for the next turn
	}
	ask(false) // waits for nobody
	finish <- nil
	<-begun
	finish <- errors.New("refused")
	calls.Wait()
	slices.Sort(got)
	want := []string{"", "together"}
	for range 10 {
		want = append(want, "rpc error: code = Unknown desc = refused")
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}

	// Who stops the server waits for nobody.
	ask(true)
	<-begun
	s.Stop()
	calls.Wait()
	if waits != 3 {
		t.Errorf("%d waits", waits)
	}
}
