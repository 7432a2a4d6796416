package proxy_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kvorum/kvorum/internal/electionpb"
	"github.com/kvorum/kvorum/internal/lockpb"
	"github.com/kvorum/kvorum/proxy"
	"github.com/kvorum/kvorum/test/authority"
	"github.com/kvorum/kvorum/test/compat/process"
)

func TestMain(m *testing.M) {
	code := m.Run()
	process.Cleanup()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// run runs a proxy until the test ends, and returns its address.
func run(t testing.TB, o proxy.Options) string {
	t.Helper()
	o.Listen = "127.0.0.1:0"
	listening := make(chan net.Addr, 1)
	o.Listening = func(addr net.Addr) { listening <- addr }
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- proxy.Run(ctx, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case addr := <-listening:
		return addr.String()
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
		return ""
	}
}

func client(t testing.TB, addr string, change ...func(*clientv3.Config)) *clientv3.Client {
	t.Helper()
	config := clientv3.Config{Endpoints: []string{addr}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()}
	for _, f := range change {
		f(&config)
	}
	c, err := clientv3.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func get(t testing.TB, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func await(t testing.TB, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); !is(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// keys lists what a client sees, parted by spaces.
func keys(t testing.TB, c *clientv3.Client) string {
	t.Helper()
	r, err := c.Get(t.Context(), "", clientv3.WithFromKey())
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, kv := range r.Kvs {
		all = append(all, string(kv.Key))
	}
	return strings.Join(all, " ")
}

func TestANamespaceIsAStoreOfItsOwn(t *testing.T) {
	s := process.Start(t, process.Options{})
	outside := client(t, s.ClientAddr)
	addr := run(t, proxy.Options{Endpoints: []string{s.ClientAddr}, Namespace: "team/"})
	inside := client(t, addr)
	neighbour := client(t, run(t, proxy.Options{Endpoints: []string{s.ClientAddr}, Namespace: "tean"}))
	ctx := t.Context()
	for c, key := range map[*clientv3.Client]string{outside: "zebra", inside: "a", neighbour: "b"} {
		if _, err := c.Put(ctx, key, key); err != nil {
			t.Fatal(err)
		}
	}
	if in, out := keys(t, inside), keys(t, outside); in != "a" || out != "team/a teanb zebra" {
		t.Errorf("inside %q, outside %q", in, out)
	}

	watched, stop := context.WithCancel(ctx)
	defer stop()
	events := inside.Watch(watched, "", clientv3.WithFromKey(), clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
	if r := <-events; !r.Created {
		t.Fatalf("told %v", r)
	}
	if r, err := inside.Txn(ctx).
		If(clientv3.Compare(clientv3.Value("a"), "=", "a"), clientv3.Compare(clientv3.CreateRevision("zebra"), "=", 0)).
		Then(clientv3.OpPut("c", "c", clientv3.WithPrevKV()), clientv3.OpGet("", clientv3.WithFromKey()), clientv3.OpDelete("a", clientv3.WithPrevKV())).
		Commit(); err != nil || !r.Succeeded {
		t.Fatalf("%v, %v", r, err)
	} else if kvs := r.Responses[1].GetResponseRange().Kvs; len(kvs) != 2 || string(kvs[0].Key) != "a" || string(kvs[1].Key) != "c" {
		t.Errorf("read %v", kvs)
	} else if prev := r.Responses[2].GetResponseDeleteRange().PrevKvs; len(prev) != 1 || string(prev[0].Key) != "a" {
		t.Errorf("deleted %v", prev)
	}
	if r := <-events; len(r.Events) != 2 || string(r.Events[0].Kv.Key) != "c" || string(r.Events[1].Kv.Key) != "a" || string(r.Events[1].PrevKv.Key) != "a" {
		t.Errorf("told %v", r)
	}

	// All keys of the namespace, and none beside them.
	if r, err := inside.Delete(ctx, "", clientv3.WithFromKey()); err != nil || r.Deleted != 1 {
		t.Errorf("deleted %v, %v", r, err)
	}
	if out := keys(t, outside); out != "teanb zebra" {
		t.Errorf("left %q", out)
	}

	lease, err := inside.Grant(ctx, 60)
	if err != nil {
		t.Fatal(err)
	}
	for c, key := range map[*clientv3.Client]string{outside: "other", inside: "mine"} {
		if _, err := c.Put(ctx, key, "", clientv3.WithLease(lease.ID)); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := inside.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys()); err != nil || len(r.Keys) != 1 || string(r.Keys[0]) != "mine" {
		t.Errorf("a lease of %v, %v", r, err)
	}

	locks, elections := lockpb.NewLockClient(inside.ActiveConnection()), electionpb.NewElectionClient(inside.ActiveConnection())
	held, err := locks.Lock(ctx, &lockpb.LockRequest{Name: []byte("l"), Lease: int64(lease.ID)})
	if err != nil || !strings.HasPrefix(string(held.Key), "l/") {
		t.Fatalf("%v, %v", held, err)
	}
	if !strings.Contains(keys(t, outside), "team/l/") {
		t.Error("the lock is not below the prefix")
	}
	if _, err := locks.Unlock(ctx, &lockpb.UnlockRequest{Key: held.Key}); err != nil {
		t.Error(err)
	}
	won, err := elections.Campaign(ctx, &electionpb.CampaignRequest{Name: []byte("e"), Lease: int64(lease.ID), Value: []byte("me")})
	if err != nil || string(won.Leader.Name) != "e" {
		t.Fatalf("%v, %v", won, err)
	}
	observed, err := elections.Observe(ctx, &electionpb.LeaderRequest{Name: []byte("e")})
	if err != nil {
		t.Fatal(err)
	}
	if l, err := observed.Recv(); err != nil || string(l.Kv.Value) != "me" || string(l.Kv.Key) != string(won.Leader.Key) {
		t.Errorf("observed %v, %v", l, err)
	}
	if _, err := elections.Proclaim(ctx, &electionpb.ProclaimRequest{Leader: won.Leader, Value: []byte("still me")}); err != nil {
		t.Error(err)
	}
	if _, err := elections.Resign(ctx, &electionpb.ResignRequest{Leader: won.Leader}); err != nil {
		t.Error(err)
	}

	snapshot, err := inside.Snapshot(ctx)
	if err == nil {
		_, err = io.ReadAll(snapshot)
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("a snapshot: %v", err)
	}
	if code, text := get(t, "http://"+addr+"/v2/keys/a"); code != http.StatusForbidden || !strings.Contains(text, "--namespace") {
		t.Errorf("v2: %d %s", code, text)
	}
	resp, err := http.Post("http://"+addr+"/v3/kv/range", "application/json", strings.NewReader(`{"key":"bWluZQ=="}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(b), `"key":"bWluZQ=="`) {
		t.Errorf("JSON: %s, %v", b, err)
	}
}

func TestAThousandWatchersAreOne(t *testing.T) {
	s := process.Start(t, process.Options{})
	addr := run(t, proxy.Options{Endpoints: []string{s.ClientAddr}})
	const watchers = 1000
	ctx := t.Context()
	var told sync.WaitGroup
	var ready sync.WaitGroup
	ready.Add(watchers)
	for range watchers / 100 {
		c := client(t, addr)
		for range 100 {
			w := clientv3.NewWatcher(c) // a stream of its own
			told.Go(func() {
				defer w.Close()
				events := w.Watch(ctx, "a", clientv3.WithCreatedNotify())
				<-events
				ready.Done()
				if r := <-events; len(r.Events) != 1 || string(r.Events[0].Kv.Value) != "b" {
					t.Errorf("told %v", r)
				}
			})
		}
	}
	ready.Wait()
	_, text := get(t, "http://"+s.ClientAddr+"/metrics")
	for _, want := range []string{"etcd_debugging_mvcc_watcher_total 1\n", "etcd_debugging_mvcc_watch_stream_total 1\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("the member's metrics lack %q", want)
		}
	}
	if _, text := get(t, "http://"+addr+"/metrics"); !strings.Contains(text, "etcd_grpc_proxy_watchers_coalescing_total 999\n") || !strings.Contains(text, "kvorum_proxy_watchers 1000\n") {
		t.Errorf("the proxy's metrics:\n%s", text)
	}
	if _, err := client(t, addr).Put(ctx, "a", "b"); err != nil {
		t.Fatal(err)
	}
	told.Wait()
	await(t, "the last watcher to go", func() bool {
		_, text := get(t, "http://"+s.ClientAddr+"/metrics")
		return strings.Contains(text, "etcd_debugging_mvcc_watcher_total 0\n")
	})
}

func TestLeasesLockAndLive(t *testing.T) {
	s := process.Start(t, process.Options{})
	addr := run(t, proxy.Options{Endpoints: []string{s.ClientAddr}})
	ctx := t.Context()
	// Sessions take turns; each keeps its lease alive meanwhile.
	var turns sync.WaitGroup
	var inside atomic.Int32
	for range 8 {
		c := client(t, addr)
		turns.Go(func() {
			session, err := concurrency.NewSession(c, concurrency.WithTTL(5))
			if err != nil {
				t.Error(err)
				return
			}
			defer session.Close()
			m := concurrency.NewMutex(session, "turn")
			if err := m.Lock(ctx); err != nil {
				t.Error(err)
				return
			}
			if n := inside.Add(1); n != 1 {
				t.Errorf("%d at once", n)
			}
			inside.Add(-1)
			if err := m.Unlock(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	turns.Wait()
	if _, err := client(t, addr).KeepAliveOnce(ctx, 12345); err == nil || err.Error() != "etcdserver: requested lease not found" {
		t.Errorf("a lease that is not: %v", err)
	}
}

// Who waits for a change by the v2 API is told of it when it happens.
func TestLongPolls(t *testing.T) {
	s := process.Start(t, process.Options{Flags: []string{"--enable-v2=true"}})
	url := "http://" + run(t, proxy.Options{Endpoints: []string{s.ClientAddr}}) + "/v2/keys/a"
	put := func(value string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url+"?value="+value, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode >= 300 {
			t.Fatalf("put: %s", resp.Status)
		}
	}
	put("1")
	resp, err := http.Get(url + "?wait=true&stream=true") // the head comes before there is anything to tell
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	changes := json.NewDecoder(resp.Body)
	for _, value := range []string{"2", "3"} {
		put(value)
		var change struct{ Node struct{ Value string } }
		if err := changes.Decode(&change); err != nil || change.Node.Value != value {
			t.Fatalf("told %+v, %v", change, err)
		}
	}
}

// What a member refuses is told as it refuses it, and what it answers passes as
// it is.
func TestAnswersPassAsTheyAre(t *testing.T) {
	s := process.Start(t, process.Options{})
	addr := run(t, proxy.Options{Endpoints: []string{s.ClientURL()}})
	c := client(t, addr)
	ctx := t.Context()
	if _, err := c.Put(ctx, "", "v"); err == nil || err.Error() != "etcdserver: key is not provided" {
		t.Errorf("no key: %v", err)
	}
	if _, err := c.Put(ctx, "a", strings.Repeat("x", 1600*1024)); err == nil || err.Error() != "etcdserver: request is too large" {
		t.Errorf("too large: %v", err)
	}
	big := strings.Repeat("x", 1<<20)
	for n := range 8 {
		if _, err := c.Put(ctx, fmt.Sprint(n), big); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := c.Get(ctx, "", clientv3.WithFromKey()); err != nil || len(r.Kvs) != 8 {
		t.Errorf("8 MiB: %v", err)
	}
	stream, err := pb.NewKVClient(c.ActiveConnection()).RangeStream(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}, grpc.MaxCallRecvMsgSize(64<<20))
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for {
		r, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		count += len(r.RangeResponse.GetKvs())
	}
	if count != 8 {
		t.Errorf("streamed %d keys", count)
	}
	timed, cancel := context.WithTimeout(ctx, time.Nanosecond)
	defer cancel()
	if _, err := c.Get(timed, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a deadline that has passed: %v", err)
	}
	if code, text := get(t, "http://"+addr+"/version"); code != 200 || !strings.Contains(text, `"etcdserver":"3.`) {
		t.Errorf("version: %d %s", code, text)
	}
	for _, path := range []string{"/version", "/health"} { // one door says it, not two
		resp, err := http.Get("http://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if allowed := resp.Header.Values("Access-Control-Allow-Origin"); len(allowed) != 1 {
			t.Errorf("%s: Access-Control-Allow-Origin: %q", path, allowed)
		}
	}
	if code, text := get(t, "http://"+addr+"/health"); code != 200 || text != `{"health":"true","reason":""}` {
		t.Errorf("health: %d %s", code, text)
	}
}

func TestTLSOnBothSides(t *testing.T) {
	dir := t.TempDir()
	members, clients := authority.New(t, "members"), authority.New(t, "clients")
	write := func(name string, data []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pair := func(name string, p authority.Pair) (cert, key string) {
		return write(name+".pem", p.Cert), write(name+".key", p.Key)
	}
	memberCert, memberKey := pair("member", members.Issue("member"))
	doorCert, doorKey := pair("door", clients.Issue("door"))
	ownCert, ownKey := pair("own", members.Issue(""))
	namedCert, namedKey := pair("named", members.Issue("somebody"))

	s := process.Start(t, process.Options{Cert: memberCert, Key: memberKey})
	o := proxy.Options{
		Endpoints: []string{"https://" + s.ClientAddr},
		Upstream:  proxy.TLS{TrustedCAFile: write("members.pem", members.PEM), CertFile: ownCert, KeyFile: ownKey},
		Clients:   proxy.TLS{CertFile: doorCert, KeyFile: doorKey, TrustedCAFile: write("clients.pem", clients.PEM)},
		Namespace: "n/", Sync: -1,
	}
	addr := run(t, o)
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(clients.PEM)
	known := &tls.Config{RootCAs: trusted, Certificates: []tls.Certificate{clients.Issue("me").TLS(t)}}
	c := client(t, "https://"+addr, func(c *clientv3.Config) { c.TLS = known })
	if _, err := c.Put(t.Context(), "a", "b"); err != nil {
		t.Fatal(err)
	}
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: known}}
	defer web.CloseIdleConnections()
	resp, err := web.Get("https://" + addr + "/version")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("version: %s", resp.Status)
	}

	stranger, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: trusted})
	if err == nil {
		_, err = stranger.Read(make([]byte, 1)) // in TLS 1.3 the refusal comes afterwards
		stranger.Close()
	}
	if err == nil {
		t.Error("who shows no certificate came in")
	}

	o.Upstream.CertFile, o.Upstream.KeyFile = namedCert, namedKey
	if err := proxy.Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "cert has non empty Common Name") {
		t.Errorf("a certificate with a name: %v", err)
	}
}

func TestTheTCPDoor(t *testing.T) {
	s := process.Start(t, process.Options{})
	listening := make(chan net.Addr, 1)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	go func() {
		ended <- proxy.RunTCP(ctx, proxy.TCPOptions{
			Endpoints: []string{dead.Addr().String(), s.ClientURL()}, Listen: "127.0.0.1:0",
			Listening: func(addr net.Addr) { listening <- addr },
		})
	}()
	addr := (<-listening).String()
	for range 4 { // every second one would be for the endpoint that is not there
		c := client(t, addr)
		if _, err := c.Put(t.Context(), "a", "b"); err != nil {
			t.Fatal(err)
		}
	}
	if code, text := get(t, "http://"+addr+"/health"); code != 200 {
		t.Errorf("health: %d %s", code, text)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestBeforeThereIsAnybody(t *testing.T) {
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	addr := run(t, proxy.Options{Endpoints: []string{dead.Addr().String()}})
	await(t, "a reason", func() bool {
		code, text := get(t, "http://"+addr+"/health")
		return code == http.StatusServiceUnavailable && strings.Contains(text, "connection refused")
	})
	if code, text := get(t, "http://"+addr+"/version"); code != http.StatusServiceUnavailable || !strings.Contains(text, "connection refused") {
		t.Errorf("version: %d %s", code, text)
	}
	c := client(t, addr)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := pb.NewKVClient(c.ActiveConnection()).Range(ctx, &pb.RangeRequest{Key: []byte("a")}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a call with a deadline: %v", err)
	}
}
