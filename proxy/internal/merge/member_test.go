package merge

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// store is a history, and the members that tell of it.
type store struct {
	mu        sync.Mutex
	grown     *sync.Cond
	events    []*mvccpb.Event // of revision 2 and on
	last      map[string]*mvccpb.KeyValue
	compacted int64

	streams  map[*told]struct{}
	opened   int // streams so far
	renewals map[int64]int
	broken   chan struct{} // closed when streams of leases are to end
}

// told is a stream of one member.
type told struct {
	cancel   context.CancelFunc
	watchers map[int64]*place
}

// place is a watcher of the member.
type place struct {
	r    *pb.WatchCreateRequest
	next int64
}

func newStore() *store {
	s := &store{last: map[string]*mvccpb.KeyValue{}, streams: map[*told]struct{}{}, renewals: map[int64]int{}, broken: make(chan struct{})}
	s.grown = sync.NewCond(&s.mu)
	return s
}

// head is called with mu held.
func (s *store) head() int64 {
	if len(s.events) == 0 {
		return 1
	}
	return s.events[len(s.events)-1].Kv.ModRevision
}

// put changes keys in one revision.
func (s *store) put(keys ...string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	rev := s.head() + 1
	for _, key := range keys {
		kv := &mvccpb.KeyValue{Key: []byte(key), ModRevision: rev, Value: fmt.Appendf(nil, "%s@%d", key, rev)}
		s.events = append(s.events, &mvccpb.Event{Kv: kv, PrevKv: s.last[key]})
		s.last[key] = kv
	}
	s.grown.Broadcast()
	return rev
}

// breakAll ends all streams, as members do that are killed.
func (s *store) breakAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for t := range s.streams {
		t.cancel()
	}
	close(s.broken)
	s.broken = make(chan struct{})
	s.grown.Broadcast()
}

// watchers returns how many there are, and on how many streams.
func (s *store) watchers() (watchers, streams int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for t := range s.streams {
		watchers += len(t.watchers)
	}
	return watchers, len(s.streams)
}

func (s *store) header() *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: 7, MemberId: 8, Revision: s.head(), RaftTerm: 9}
}

type watchMember struct {
	pb.UnimplementedWatchServer
	*store
}

func within(r *pb.WatchCreateRequest, key []byte) bool {
	switch {
	case len(r.RangeEnd) == 0:
		return bytes.Equal(r.Key, key)
	case bytes.Equal(r.RangeEnd, []byte{0}):
		return bytes.Compare(key, r.Key) >= 0
	}
	return bytes.Compare(key, r.Key) >= 0 && bytes.Compare(key, r.RangeEnd) < 0
}

// Watch tells as a member does: created before all else, a revision in one
// piece, and of progress when all watchers are level.
func (m watchMember) Watch(stream pb.Watch_WatchServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	if md, _ := metadata.FromIncomingContext(ctx); slices.Contains(md.Get("token"), "bad") {
		return status.Error(codes.Unauthenticated, "etcdserver: invalid auth token")
	}
	t := &told{cancel: cancel, watchers: map[int64]*place{}}
	m.mu.Lock()
	m.streams[t] = struct{}{}
	m.opened++
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.streams, t)
		m.mu.Unlock()
	}()
	var requests []*pb.WatchRequest // under mu
	go func() {
		for {
			q, err := stream.Recv()
			m.mu.Lock()
			if err != nil {
				cancel()
			} else {
				requests = append(requests, q)
			}
			m.grown.Broadcast()
			m.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	nextID, progress := int64(0), false
	for {
		var answers []*pb.WatchResponse
		m.mu.Lock()
		for len(answers) == 0 && ctx.Err() == nil {
			if len(requests) > 0 {
				q := requests[0]
				requests = requests[1:]
				switch {
				case q.GetCreateRequest() != nil:
					r := q.GetCreateRequest()
					if r.StartRevision < 0 || bytes.Equal(r.Key, []byte("refused")) {
						answers = append(answers, &pb.WatchResponse{Header: m.header(), WatchId: -1, Created: true, Canceled: true, CancelReason: "refused"})
						break
					}
					p := &place{r: r, next: r.StartRevision}
					if p.next == 0 {
						p.next = m.head() + 1
					}
					answers = append(answers, &pb.WatchResponse{Header: m.header(), WatchId: nextID, Created: true})
					if p.next < m.compacted {
						answers = append(answers, &pb.WatchResponse{Header: m.header(), WatchId: nextID, Canceled: true, CompactRevision: m.compacted})
					} else {
						t.watchers[nextID] = p
					}
					nextID++
				case q.GetCancelRequest() != nil:
					id := q.GetCancelRequest().WatchId
					if t.watchers[id] != nil {
						delete(t.watchers, id)
						answers = append(answers, &pb.WatchResponse{Header: m.header(), WatchId: id, Canceled: true})
					}
				case q.GetProgressRequest() != nil:
					progress = true
				}
				continue
			}
			// Not all at once, so that watchers lag.
			for id, p := range t.watchers {
				r := &pb.WatchResponse{Header: m.header(), WatchId: id}
				limit := p.next + 1 + rand.Int64N(20)
				at, _ := slices.BinarySearchFunc(m.events, p.next, func(e *mvccpb.Event, next int64) int { return int(e.Kv.ModRevision - next) })
				for _, e := range m.events[at:] {
					if e.Kv.ModRevision >= limit {
						break
					}
					if within(p.r, e.Kv.Key) {
						if !p.r.PrevKv {
							e = &mvccpb.Event{Kv: e.Kv}
						}
						r.Events = append(r.Events, e)
					}
				}
				p.next = max(p.next, min(limit, m.head()+1))
				if len(r.Events) > 0 {
					answers = append(answers, r)
				}
			}
			level := len(t.watchers) > 0
			for _, p := range t.watchers {
				level = level && p.next == m.head()+1
			}
			if progress && level {
				progress = false
				answers = append(answers, &pb.WatchResponse{Header: m.header(), WatchId: -1})
			}
			if len(answers) == 0 && (level || len(t.watchers) == 0 || m.waits(t)) {
				m.grown.Wait()
			}
		}
		m.mu.Unlock()
		if ctx.Err() != nil {
			return status.Error(codes.Unavailable, "broken")
		}
		for _, r := range answers {
			if err := stream.Send(r); err != nil {
				return err
			}
		}
	}
}

// waits tells whether nothing happens to t before the store grows.
func (m watchMember) waits(t *told) bool {
	for _, p := range t.watchers {
		if p.next <= m.head() {
			return false
		}
	}
	return true
}

type leaseMember struct {
	pb.UnimplementedLeaseServer
	*store
}

func (m leaseMember) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	m.mu.Lock()
	broken := m.broken
	m.opened++
	m.mu.Unlock()
	ended := make(chan error, 1)
	go func() {
		for {
			q, err := stream.Recv()
			if err == nil {
				m.mu.Lock()
				m.renewals[q.ID]++
				m.mu.Unlock()
				err = stream.Send(&pb.LeaseKeepAliveResponse{ID: q.ID, TTL: q.ID % 100})
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	select {
	case err := <-ended:
		return err
	case <-broken:
		return status.Error(codes.Unavailable, "broken")
	}
}

// serve serves what register puts on a server, and returns a connection to it.
func serve(t testing.TB, register func(*grpc.Server)) *grpc.ClientConn {
	t.Helper()
	pipe := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	register(server)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := server.Serve(pipe); err != nil {
			t.Error(err)
		}
	}()
	conn, err := grpc.NewClient("passthrough:///pipe",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return pipe.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		<-ended
	})
	return conn
}
