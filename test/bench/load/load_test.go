package load

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"golang.org/x/net/http2"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/test/bench/floor"
)

// serve starts a responder for the time of the test and returns its address.
func serve(t *testing.T, r floor.Responder, listener net.Listener) string {
	t.Helper()
	if listener == nil {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listener = l
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() {
		if err := r.Serve(ctx, listener); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wait.Wait() })
	return listener.Addr().String()
}

func run1(t *testing.T, l Load, o Options) *Result {
	t.Helper()
	result, err := Run(t.Context(), l, o)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func TestEachRequestIsAnsweredOnce(t *testing.T) {
	addr := serve(t, floor.Responder{}, nil)
	got := run1(t, Put{}, Options{Addr: addr, Conns: 3, Streams: 50, Requests: 20_000})
	if got.Err() != nil || got.Requests != 20_000 || got.Latency.Count() != 20_000 {
		t.Errorf("%d answered, %d recorded, %v", got.Requests, got.Latency.Count(), got.Err())
	}
}

func TestTimeBoundRunMeasuresAfterTheWarmup(t *testing.T) {
	addr := serve(t, floor.Responder{}, nil)
	meter := time.Duration(0)
	got := run1(t, Put{}, Options{
		Addr: addr, Streams: 10, Warmup: 20 * time.Millisecond, Duration: 500 * time.Millisecond,
		Meter: func() (time.Duration, error) { meter += time.Second; return meter, nil },
	})
	if got.Err() != nil || got.Elapsed < 500*time.Millisecond || got.Rate() <= 0 || got.ServerCPU != time.Second {
		t.Errorf("%v elapsed, rate %.0f, server %v, %v", got.Elapsed, got.Rate(), got.ServerCPU, got.Err())
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	asked := make(chan struct{}, 1)
	addr := serve(t, floor.Responder{Answer: func(string, []byte) floor.Reply {
		select {
		case asked <- struct{}{}:
		default:
		}
		return floor.Reply{Message: putAnswer(1 << 40)}
	}}, nil)
	go func() { <-asked; cancel() }()
	if _, err := Run(ctx, Compact{}, Options{Addr: addr, Streams: 4}); err != nil {
		t.Error(err)
	}
}

// A server may be as petty about windows, table and blocks as it likes.
func TestNarrowServer(t *testing.T) {
	store := newStore()
	for name, r := range map[string]floor.Responder{
		"tiny stream window": {Settings: []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 7}}, Stingy: true},
		"no header table":    {Settings: []http2.Setting{{ID: http2.SettingHeaderTableSize, Val: 0}}},
		"cut blocks":         {Stingy: true},
	} {
		t.Run(name, func(t *testing.T) {
			r.Answer = store.answer
			addr := serve(t, r, nil)
			keys := Keys{Count: 50}
			// Half a megabyte in all: far more than the connection's first window.
			got := run1(t, Put{Keys: keys, Value: 10_000, Order: InTurn}, Options{Addr: addr, Streams: 5, Requests: 50})
			if err := got.Err(); err != nil {
				t.Fatal(err)
			}
			got = run1(t, Get{Keys: keys, Value: 10_000}, Options{Addr: addr, Streams: 5, Requests: 100})
			if err := got.Err(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestFewerStreamsThanWanted(t *testing.T) {
	addr := serve(t, floor.Responder{Settings: []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 3}}}, nil)
	_, err := Run(t.Context(), Put{}, Options{Addr: addr, Streams: 4, Requests: 1})
	if err == nil || !strings.Contains(err.Error(), "allows 3 streams") {
		t.Error(err)
	}
}

// More than all windows together, so that they must be given back on the way.
func TestLargeAnswers(t *testing.T) {
	store := newStore()
	addr := serve(t, floor.Responder{Answer: store.answer}, nil)
	keys := Keys{Count: 1500}
	if err := run1(t, Put{Keys: keys, Value: 2000, Order: Scattered}, Options{Addr: addr, Streams: 10, Requests: 1500}).Err(); err != nil {
		t.Fatal(err)
	}
	if err := run1(t, Page{Keys: keys, Value: 2000}, Options{Addr: addr, Streams: 4, Requests: 30}).Err(); err != nil {
		t.Fatal(err)
	}
	if err := run1(t, Page{Keys: keys, Value: 2000, Limit: 1499}, Options{Addr: addr, Streams: 1, Requests: 10}).Err(); err != nil {
		t.Fatal(err)
	}
}

func TestEveryLoadOnAServerThatKeepsWhatItWasTold(t *testing.T) {
	store := newStore()
	addr := serve(t, floor.Responder{Answer: store.answer}, nil)
	keys := Keys{Count: 300}
	put := Put{Keys: keys, Order: Scattered}
	for _, step := range []struct {
		name     string
		load     Load
		requests int64
	}{
		{"put", put, 300},
		{"get", Get{Keys: keys}, 500},
		{"get serializable", Get{Keys: keys, Serializable: true}, 500},
		{"page", Page{Keys: keys, Limit: 100}, 100},
		{"mixed", Mix{Common: Get{Keys: keys}, Rare: Put{Keys: keys}}, 500},
		{"txn", CompareAndPut{Keys: keys}, 2000},
		{"txn from nothing", CompareAndPut{Keys: Keys{Prefix: "new", Count: 20}}, 200},
		{"delete", Delete{Keys: keys}, 300},
		{"compact", Compact{Revision: 7}, 1},
	} {
		got := run1(t, step.load, Options{Addr: addr, Conns: 2, Streams: 5, Requests: step.requests})
		if got.Err() != nil || got.Requests != step.requests {
			t.Errorf("%s: %d of %d answered, %v", step.name, got.Requests, step.requests, got.Err())
		}
	}

	// All keys are gone: every further request must show as wrong.
	got := run1(t, Delete{Keys: keys}, Options{Addr: addr, Requests: 10})
	wantErrors(t, got, 10, "removed 0 keys")
	got = run1(t, Get{Keys: keys}, Options{Addr: addr, Requests: 10})
	wantErrors(t, got, 10, "gave 0 pairs")
}

func wantErrors(t *testing.T, got *Result, n int64, text string) {
	t.Helper()
	if got.Requests != 0 || got.Errors != n || got.FirstError == nil || !strings.Contains(got.FirstError.Error(), text) {
		t.Errorf("%d right, %d wrong, first %v; want %d with %q", got.Requests, got.Errors, got.FirstError, n, text)
	}
}

func TestBadAnswersCountAsErrors(t *testing.T) {
	for name, c := range map[string]struct {
		load  Load
		reply floor.Reply
		want  string
	}{
		"refusal":             {Put{}, floor.Reply{TrailersOnly: true, Status: "8", Text: "etcdserver: too many requests %28%C3%A9%29"}, "grpc-status 8: etcdserver: too many requests (é)"},
		"refusal with body":   {Put{}, floor.Reply{Message: putAnswer(1), Status: "14", Text: "gone"}, "grpc-status 14: gone"},
		"success of nothing":  {Put{}, floor.Reply{TrailersOnly: true}, "success without an answer"},
		"reset":               {Put{}, floor.Reply{Reset: http2.ErrCodeRefusedStream}, "REFUSED_STREAM"},
		"put that did not":    {Put{}, floor.Reply{Message: putAnswer(0)}, "after revision 0"},
		"no protobuf":         {Put{}, floor.Reply{Message: []byte("\xff\xff")}, "malformed"},
		"get of another key":  {Get{}, floor.Reply{Message: pairs("x", 256)}, `got "x"`},
		"page of one":         {Page{}, floor.Reply{Message: pairs("x", 256)}, "gave 1 pairs"},
		"txn without answers": {CompareAndPut{}, floor.Reply{Message: putAnswer(5)}, "0 responses"},
	} {
		t.Run(name, func(t *testing.T) {
			addr := serve(t, floor.Responder{Answer: func(string, []byte) floor.Reply { return c.reply }}, nil)
			wantErrors(t, run1(t, c.load, Options{Addr: addr, Streams: 3, Requests: 20}), 20, c.want)
		})
	}
}

func TestServerThatGoesAway(t *testing.T) {
	var mu sync.Mutex
	answered := 0
	addr := serve(t, floor.Responder{Answer: func(string, []byte) floor.Reply {
		mu.Lock()
		defer mu.Unlock()
		answered++
		return floor.Reply{Message: putAnswer(int64(answered)), GoAway: answered > 10}
	}}, nil)
	got := run1(t, Put{}, Options{Addr: addr, Streams: 4, Duration: time.Minute})
	if got.Requests != 10 || got.Errors != 4 || !strings.Contains(got.FirstError.Error(), "went away: NO_ERROR bye") {
		t.Errorf("%d right, %d wrong, first %v", got.Requests, got.Errors, got.FirstError)
	}
}

func TestOverTLS(t *testing.T) {
	// Only for its certificate.
	certified := httptest.NewTLSServer(nil)
	defer certified.Close()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: certified.TLS.Certificates, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	addr := serve(t, floor.Responder{}, listener)
	roots := x509.NewCertPool()
	roots.AddCert(certified.Certificate())
	got := run1(t, Put{}, Options{Addr: addr, TLS: &tls.Config{RootCAs: roots, ServerName: "example.com"}, Streams: 10, Requests: 500})
	if got.Err() != nil || got.Requests != 500 {
		t.Errorf("%d answered, %v", got.Requests, got.Err())
	}
}

func TestOrders(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	for order, sorted := range map[Order]bool{InTurn: true, Scattered: false} {
		caller := Put{Keys: Keys{Count: 1000}, Order: order}.Caller(0, 1, random).(*putter)
		seen, ascending, before := map[string]bool{}, true, ""
		for turn := range uint64(1000) {
			caller.Ask(nil, turn)
			key := string(caller.key)
			seen[key] = true
			ascending = ascending && before < key
			before = key
		}
		if len(seen) != 1000 || ascending != sorted {
			t.Errorf("order %d: %d different keys of 1000, ascending %t", order, len(seen), ascending)
		}
	}
}

// store is a small true server behind the floor's frames: enough of one to
// answer the loads rightly.
type store struct {
	mu       sync.Mutex
	revision int64
	pairs    map[string]*mvccpb.KeyValue
}

func newStore() *store { return &store{revision: 1, pairs: map[string]*mvccpb.KeyValue{}} }

func (s *store) answer(path string, message []byte) floor.Reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	var request, response proto.Message
	switch method := path[strings.LastIndex(path, "/")+1:]; method {
	case "Put":
		request = &etcdserverpb.PutRequest{}
	case "Range":
		request = &etcdserverpb.RangeRequest{}
	case "DeleteRange":
		request = &etcdserverpb.DeleteRangeRequest{}
	case "Txn":
		request = &etcdserverpb.TxnRequest{}
	case "Compact":
		request = &etcdserverpb.CompactionRequest{}
	default:
		return floor.Reply{Status: "12", Text: "unknown " + path}
	}
	if err := proto.Unmarshal(message, request); err != nil {
		return floor.Reply{Status: "13", Text: err.Error()}
	}
	switch r := request.(type) {
	case *etcdserverpb.PutRequest:
		response = s.put(r)
	case *etcdserverpb.RangeRequest:
		response = s.rangeOver(r)
	case *etcdserverpb.DeleteRangeRequest:
		deleted := int64(0)
		if s.pairs[string(r.Key)] != nil {
			delete(s.pairs, string(r.Key))
			s.revision++
			deleted = 1
		}
		response = &etcdserverpb.DeleteRangeResponse{Header: s.header(), Deleted: deleted}
	case *etcdserverpb.TxnRequest:
		key := r.Compare[0].Key
		mod := int64(0)
		if p := s.pairs[string(key)]; p != nil {
			mod = p.ModRevision
		}
		answer := &etcdserverpb.TxnResponse{Succeeded: mod == r.Compare[0].GetModRevision()}
		if answer.Succeeded {
			put := s.put(r.Success[0].GetRequestPut())
			answer.Responses = []*etcdserverpb.ResponseOp{{Response: &etcdserverpb.ResponseOp_ResponsePut{ResponsePut: put}}}
		} else {
			got := s.rangeOver(r.Failure[0].GetRequestRange())
			answer.Responses = []*etcdserverpb.ResponseOp{{Response: &etcdserverpb.ResponseOp_ResponseRange{ResponseRange: got}}}
		}
		answer.Header = s.header()
		response = answer
	case *etcdserverpb.CompactionRequest:
		response = &etcdserverpb.CompactionResponse{Header: s.header()}
	}
	return floor.Reply{Message: must(proto.Marshal(response))}
}

func (s *store) header() *etcdserverpb.ResponseHeader {
	return &etcdserverpb.ResponseHeader{Revision: s.revision}
}

func (s *store) put(r *etcdserverpb.PutRequest) *etcdserverpb.PutResponse {
	s.revision++
	s.pairs[string(r.Key)] = &mvccpb.KeyValue{Key: r.Key, Value: r.Value, ModRevision: s.revision}
	return &etcdserverpb.PutResponse{Header: s.header()}
}

func (s *store) rangeOver(r *etcdserverpb.RangeRequest) *etcdserverpb.RangeResponse {
	answer := &etcdserverpb.RangeResponse{Header: s.header()}
	if len(r.RangeEnd) == 0 {
		if p := s.pairs[string(r.Key)]; p != nil {
			answer.Kvs, answer.Count = []*mvccpb.KeyValue{p}, 1
		}
		return answer
	}
	for n := range uint64(len(s.pairs)) {
		p := s.pairs[string(Keys{}.filled().append(nil, n))]
		if p == nil || bytes.Compare(p.Key, r.Key) < 0 || bytes.Compare(p.Key, r.RangeEnd) >= 0 {
			continue
		}
		answer.Count++
		if answer.More = answer.Count > r.Limit; !answer.More {
			answer.Kvs = append(answer.Kvs, p)
		}
	}
	return answer
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(fmt.Sprint("cannot happen: ", err))
	}
	return v
}

func putAnswer(revision int64) []byte {
	return must(proto.Marshal(&etcdserverpb.PutResponse{Header: &etcdserverpb.ResponseHeader{Revision: revision}}))
}

func pairs(key string, size int) []byte {
	return must(proto.Marshal(&etcdserverpb.RangeResponse{
		Header: &etcdserverpb.ResponseHeader{Revision: 9},
		Kvs:    []*mvccpb.KeyValue{{Key: []byte(key), Value: make([]byte, size), ModRevision: 5}},
		Count:  1,
	}))
}
