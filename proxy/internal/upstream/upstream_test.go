package upstream

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAddresses(t *testing.T) {
	for _, c := range []struct {
		endpoint string
		secure   bool
		want     string
	}{
		{"10.0.0.1:2379", false, "http://10.0.0.1:2379"},
		{"10.0.0.1:2379", true, "https://10.0.0.1:2379"},
		{" http://m1:2379/", true, "http://m1:2379"},
		{"unix:m1", false, "unix://m1"},
		{"unixs:///run/m1", false, "unixs:///run/m1"},
	} {
		got, err := addresses([]string{c.endpoint, c.endpoint}, c.secure)
		if err != nil || fmt.Sprint(got) != fmt.Sprint([]string{c.want}) {
			t.Errorf("%q: %v, %v", c.endpoint, got, err)
		}
	}
	for _, bad := range []string{"10.0.0.1", "ftp://m1:2379", "http://", "", "a b:1"} {
		if got, err := addresses([]string{bad}, false); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

// fake is a member of a cluster.
type fake struct {
	pb.UnimplementedKVServer
	pb.UnimplementedClusterServer
	cluster, id uint64
	urls        []string // that it says the cluster's members have
	lost        atomic.Bool
	asked       atomic.Int64
}

func (f *fake) Range(_ context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if string(r.Key) != "health" {
		f.asked.Add(1)
	}
	if f.lost.Load() {
		return nil, status.Error(codes.Unavailable, "etcdserver: no leader")
	}
	return &pb.RangeResponse{Header: &pb.ResponseHeader{ClusterId: f.cluster, MemberId: f.id}}, nil
}

func (f *fake) MemberList(context.Context, *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	r := &pb.MemberListResponse{}
	for i, url := range f.urls {
		r.Members = append(r.Members, &pb.Member{ID: uint64(i + 1), ClientURLs: []string{url}})
	}
	return r, nil
}

func (f *fake) serve(t *testing.T) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterKVServer(server, f)
	pb.RegisterClusterServer(server, f)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return "http://" + l.Addr().String()
}

func run(t *testing.T, o Options) *Upstream {
	t.Helper()
	o.Probe = 10 * time.Millisecond
	if o.Sync == 0 {
		o.Sync = 20 * time.Millisecond
	}
	u, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		u.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		u.Close()
	})
	return u
}

func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); !is(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (u *Upstream) wellOnes() (n int) {
	for _, m := range u.Members() {
		if m.Well {
			n++
		}
	}
	return n
}

func ask(t *testing.T, u *Upstream, times int) {
	t.Helper()
	for range times {
		if _, err := pb.NewKVClient(u).Range(t.Context(), &pb.RangeRequest{Key: []byte("a")}); err != nil {
			t.Fatal(err)
		}
	}
}

// What the members say is used, once it has proved to be of their cluster.
func TestStrangersAreLeftAlone(t *testing.T) {
	first, second, stranger := &fake{cluster: 1, id: 1}, &fake{cluster: 1, id: 2}, &fake{cluster: 9, id: 3}
	given := first.serve(t)
	first.urls = []string{given, second.serve(t), stranger.serve(t)}
	second.urls = first.urls
	u := run(t, Options{Endpoints: []string{given}})
	await(t, "two members", func() bool { return u.wellOnes() == 2 })
	ask(t, u, 20)
	if a, b, c := first.asked.Load(), second.asked.Load(), stranger.asked.Load(); a < 4 || b < 4 || c != 0 {
		t.Errorf("asked %d, %d and the stranger %d times", a, b, c)
	}
}

// Who has lost the others is asked nothing, and who listens there is told.
func TestWhoHasLostTheOthersRests(t *testing.T) {
	first, second := &fake{cluster: 1, id: 1}, &fake{cluster: 1, id: 2}
	u := run(t, Options{Endpoints: []string{first.serve(t), second.serve(t)}, Sync: -1})
	await(t, "two members", func() bool { return u.wellOnes() == 2 })
	first.lost.Store(true)
	await(t, "one to be missed", func() bool { return u.wellOnes() == 1 })
	before := first.asked.Load()
	ask(t, u, 10)
	if n := first.asked.Load() - before; n != 0 {
		t.Errorf("it was asked %d times", n)
	}
	second.lost.Store(true)
	await(t, "a reason", func() bool {
		err := u.Health()
		return err != nil && strings.Count(err.Error(), "etcdserver: no leader") == 2
	})
	// Where nobody is well, a member says itself what it lacks.
	if _, err := pb.NewKVClient(u).Range(t.Context(), &pb.RangeRequest{Key: []byte("a")}); status.Convert(err).Message() != "etcdserver: no leader" {
		t.Errorf("told %v", err)
	}
	first.lost.Store(false)
	await(t, "one to come back", func() bool { return u.wellOnes() == 1 })
	ask(t, u, 10)
}

func TestNobodyIsThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	u := run(t, Options{Endpoints: []string{l.Addr().String()}, Patience: 50 * time.Millisecond})
	if _, err := pb.NewKVClient(u).Put(t.Context(), &pb.PutRequest{Key: []byte("a")}); err != Nobody {
		t.Errorf("told %v", err)
	}
}

// Endpoints that are looked up replace each other.
func TestLookup(t *testing.T) {
	first, second := &fake{cluster: 1, id: 1}, &fake{cluster: 1, id: 2}
	urls := []string{first.serve(t), second.serve(t)}
	var turn atomic.Int64
	u := run(t, Options{Sync: 10 * time.Millisecond, Lookup: func(context.Context) ([]string, error) {
		return urls[turn.Load() : turn.Load()+1], nil
	}})
	for i, url := range urls {
		turn.Store(int64(i))
		await(t, url, func() bool {
			all := u.Members()
			return len(all) == 1 && all[0].Address == url && all[0].Well
		})
		ask(t, u, 1)
	}
}
