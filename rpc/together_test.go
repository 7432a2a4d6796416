package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/rpc"
)

// queue is where parties of calls wait to be served.
type queue struct {
	begun chan *table
	freed sync.WaitGroup
}

// table is a party that waits.
type table struct {
	queue  *queue
	guests []context.Context
	names  []string
	gone   []error
	err    error
	early  func(int)
	all    func()
}

func (q *queue) New() rpc.Party { return &table{queue: q} }

func (q *queue) now(ctx context.Context, p rpc.Party, in, out []byte) ([]byte, rpc.Then, error) {
	var r grpc_testing.SimpleRequest
	if err := proto.Unmarshal(in, &r); err != nil {
		return nil, rpc.Answered, err
	}
	name := string(r.GetPayload().GetBody())
	switch name {
	case "now":
		answer, err := welcome(name, out)
		return answer, rpc.Answered, err
	case "alone":
		return nil, rpc.Alone, nil
	}
	t := p.(*table)
	t.guests, t.names, t.gone = append(t.guests, ctx), append(t.names, name), append(t.gone, nil)
	return nil, rpc.Joined, nil
}

func (t *table) Begin(early func(int), all func()) {
	t.early, t.all = early, all
	t.queue.freed.Add(1)
	t.queue.begun <- t
}

func (t *table) leave(i int, err error) {
	t.gone[i] = err
	t.early(i)
}

func (t *table) end(err error) {
	t.err = err
	t.all()
}

func (t *table) Answer(i int, out []byte) ([]byte, error) {
	if t.gone[i] != nil {
		return nil, t.gone[i]
	}
	if t.err != nil {
		return nil, t.err
	}
	return welcome(t.names[i], out)
}

func (t *table) Free() {
	if len(t.names) > 0 {
		t.queue.freed.Done()
	}
}

func welcome(name string, out []byte) ([]byte, error) {
	answer, err := proto.Marshal(&grpc_testing.SimpleResponse{Username: name + " is welcome"})
	return append(out, answer...), err
}

// TestCallsThatWaitTogether has parties of one client and of several wait, some
// to the end and some not.
func TestCallsThatWaitTogether(t *testing.T) {
	q := &queue{begun: make(chan *table, 100)}
	s := rpc.New(rpc.Options{})
	grpc_testing.RegisterTestServiceServer(s, &service{})
	s.Fast(unaryCall, rpc.Fast{Now: q.now, Together: &rpc.Together{New: q.New}})
	addr := start(t, s)
	one, other := grpc_testing.NewTestServiceClient(dial(t, addr)), grpc_testing.NewTestServiceClient(dial(t, addr))

	var mu sync.Mutex
	var got []string
	var calls sync.WaitGroup
	ask := func(ctx context.Context, client grpc_testing.TestServiceClient, name string) {
		calls.Go(func() {
			r, err := client.UnaryCall(ctx, &grpc_testing.SimpleRequest{Payload: &grpc_testing.Payload{Body: []byte(name)}})
			answer := r.GetUsername()
			if err != nil {
				answer = name + ": " + err.Error()
			}
			mu.Lock()
			defer mu.Unlock()
			got = append(got, answer)
		})
	}
	want := func(answers ...string) {
		t.Helper()
		calls.Wait()
		slices.Sort(got)
		slices.Sort(answers)
		if !slices.Equal(got, answers) {
			t.Errorf("got %q, want %q", got, answers)
		}
		got = nil
	}
	ctx := within(t, patience)

	// They wait for neither each other nor those who do not wait.
	ask(ctx, one, "first")
	first := <-q.begun
	ask(ctx, other, "second")
	second := <-q.begun
	ask(ctx, one, "now")
	ask(ctx, one, "alone")
	second.end(nil)
	first.end(errors.New("full"))
	want("now is welcome", "", "second is welcome", "first: rpc error: code = Unknown desc = full")

	// However many share a party, each is answered once, whether it leaves or not.
	var answers []string
	const many = 50
	for i := range many {
		name := fmt.Sprint("guest ", i)
		ask(ctx, one, name)
		if answers = append(answers, name+" is welcome"); i%3 == 0 {
			answers[i] = name + ": rpc error: code = Unknown desc = hungry"
		}
	}
	for came := 0; came < many; {
		party := <-q.begun
		came += len(party.names)
		left := 0
		for i, name := range party.names {
			var number int
			if fmt.Sscanf(name, "guest %d", &number); number%3 == 0 {
				party.leave(i, errors.New("hungry"))
				left++
			}
		}
		if left < len(party.names) {
			party.end(nil)
		}
	}
	want(answers...)

	// Who gives up is waited for until its party lets it go.
	short, giveUp := context.WithCancel(ctx)
	ask(short, one, "brief")
	brief := <-q.begun
	giveUp()
	<-brief.guests[0].Done()
	brief.leave(0, brief.guests[0].Err())
	want("brief: rpc error: code = Canceled desc = context canceled")

	// So is who is there when the server stops.
	ask(ctx, one, "last")
	last := <-q.begun
	stopped := make(chan struct{})
	go func() {
		s.Stop()
		close(stopped)
	}()
	<-last.guests[0].Done()
	select {
	case <-stopped:
		t.Error("the server does not wait for those who wait")
	default:
	}
	last.end(nil)
	<-stopped
	calls.Wait()
	q.freed.Wait()
}
