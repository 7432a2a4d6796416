package dev

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/kvorum/kvorum/test/compat/process"
	"github.com/kvorum/kvorum/test/port"
)

func TestMain(m *testing.M) {
	code := m.Run()
	process.Cleanup()
	os.Exit(code)
}

// patience is for what should take no time, on a machine that has other work.
const patience = 2 * time.Minute

// A session is a cluster and its user: what was typed, and what was told.
type session struct {
	t     *testing.T
	o     Options
	typed chan string
	told  *screen
	stop  context.CancelFunc
	ended chan error
	gone  chan struct{} // nothing of it is left
}

func begin(t *testing.T, o Options) *session {
	t.Helper()
	s := &session{t: t, typed: make(chan string), told: newScreen(), ended: make(chan error, 1), gone: make(chan struct{})}
	if o.Port == 0 {
		o.Port = freePort(t, max(o.Nodes, 1))
	}
	o.Commands, o.Out = s.typed, s.told
	s.o = o
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	go func() {
		s.ended <- Run(ctx, o)
		close(s.gone)
	}()
	t.Cleanup(func() {
		cancel()
		<-s.gone
		if t.Failed() {
			t.Logf("the user was told:\n%s", s.told)
		}
	})
	return s
}

// freePort finds a port from which a whole cluster has room: all of its ports
// are below those that the system gives away.
func freePort(t *testing.T, nodes int) int {
	t.Helper()
	for range 100 {
		from := 1100 + rand.IntN(1000)
		all, err := addresses(from, nodes)
		if err != nil {
			t.Fatal(err)
		}
		var addrs []string
		for _, at := range all {
			addrs = append(addrs, fmt.Sprintf("127.0.0.1:%d", at.client), fmt.Sprintf("127.0.0.1:%d", at.peer))
		}
		if port.Take(t, addrs...) {
			return from
		}
	}
	t.Fatal("no room for a cluster")
	return 0
}

// tell types a line.
func (s *session) tell(line string) {
	s.t.Helper()
	select {
	case s.typed <- line:
	case <-time.After(patience):
		s.t.Fatalf("nobody reads %q", line)
	}
}

// hears waits for a text behind what was heard before, and returns its groups.
func (s *session) hears(pattern string) []string {
	s.t.Helper()
	found := s.told.await(regexp.MustCompile(pattern))
	if found != nil {
		return found
	}
	select {
	case err := <-s.ended:
		s.t.Fatalf("never heard %q: %v", pattern, err)
	default:
		s.t.Fatalf("never heard %q", pattern)
	}
	return nil
}

// end waits for Run to return.
func (s *session) end() error {
	s.t.Helper()
	select {
	case err := <-s.ended:
		return err
	case <-time.After(patience):
		s.t.Fatal("the cluster does not end")
		return nil
	}
}

func (s *session) client(members ...int) *clientv3.Client {
	s.t.Helper()
	all, err := addresses(s.o.Port, max(s.o.Nodes, 1))
	if err != nil {
		s.t.Fatal(err)
	}
	var endpoints []string
	for _, n := range members {
		endpoints = append(endpoints, url(all[n-1].client))
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop()})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

func put(t *testing.T, c *clientv3.Client, key, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		attempt, stop := context.WithTimeout(ctx, 2*time.Second)
		_, err := c.Put(attempt, key, value)
		stop()
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("put %s: %v", key, err)
		}
	}
}

func want(t *testing.T, c *clientv3.Client, key, value string, opts ...clientv3.OpOption) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		r, err := c.Get(ctx, key, opts...)
		if err == nil && len(r.Kvs) == 1 && string(r.Kvs[0].Value) == value {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("get %s: %v, %v; want %s", key, r, err, value)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func TestCluster(t *testing.T) {
	t.Parallel()
	s := begin(t, Options{Nodes: 3})
	dir := s.hears(`3 members are ready. Data and logs: (\S+) \(removed at the end`)[1]
	s.hears(`Ctrl-C`)
	put(t, s.client(1), "a", "1")
	want(t, s.client(3), "a", "1")

	// The leader is killed: another one takes over, and the old one catches up.
	s.tell("kill leader")
	killed := s.hears(`infra(\d) is killed`)[1]
	s.hears(`nobody leads`)
	leader := s.hears(`infra(\d) leads, term \d+`)[1]
	if leader == killed {
		t.Fatalf("infra%s leads, but was killed", leader)
	}
	put(t, s.client(number(t, leader)), "a", "2")
	s.tell("status")
	s.hears(`infra` + killed + ` .* killed`)
	s.tell("start " + killed)
	s.hears(`infra` + killed + ` serves`)
	want(t, s.client(number(t, killed)), "a", "2", clientv3.WithSerializable())

	// A leader that is stopped hands over; it may be given by its name.
	s.tell("restart infra" + leader)
	s.hears(`infra` + leader + ` is stopped, and starts again`)
	s.hears(`infra` + leader + ` serves`)
	put(t, s.client(1, 2, 3), "a", "3")

	// Without a majority nobody leads.
	s.tell("kill 1")
	s.hears(`infra1 is killed`)
	s.tell("kill 2")
	s.hears(`infra2 is killed`)
	s.hears(`nobody leads: 1 of 3 run, 2 are needed`)
	s.tell("kill leader")
	s.hears(`kill: nobody leads now`)
	s.tell("kill 2")
	s.hears(`infra2 does not run`)
	s.tell("start 2")
	s.hears(`infra\d leads, term \d+`)
	want(t, s.client(2), "a", "3")

	s.tell("dance")
	s.hears(`"dance" is no command`)
	s.tell("kill 4")
	s.hears(`there is no member 4: they are 1 to 3`)
	s.tell("help")
	s.hears(`as Ctrl-C does`)
	s.tell("quit")
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
	all, err := addresses(s.o.Port, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := free(all); err != nil {
		t.Errorf("after the end: %v", err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is left behind (%v)", dir, err)
	}
}

func TestDataIsKept(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "cluster")
	s := begin(t, Options{DataDir: dir})
	s.hears(`1 member is ready. Data and logs: \S+ \(kept\)`)
	put(t, s.client(1), "a", "1")
	s.tell("kill 1")
	s.hears(`infra1 is killed`)
	s.tell("start 1")
	s.hears(`infra1 serves`)
	want(t, s.client(1), "a", "1")
	s.stop()
	if err := s.end(); err != nil {
		t.Fatal(err)
	}

	// The members know each other's ports, so the cluster keeps its own.
	other := Options{DataDir: dir, Port: freePort(t, 1)}
	for other.Port == s.o.Port {
		other.Port = freePort(t, 1)
	}
	if err := Run(t.Context(), other); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("--nodes 1 --port %d", s.o.Port)) {
		t.Errorf("with another port: %v", err)
	}

	again := begin(t, Options{DataDir: dir, Port: s.o.Port})
	again.hears(`ready`)
	want(t, again.client(1), "a", "1")
	again.tell("quit")
	if err := again.end(); err != nil {
		t.Fatal(err)
	}
}

func TestRefusals(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		o    Options
		want string
	}{
		{Options{Nodes: 10}, "--nodes 10: a cluster has 1 to 9 members here"},
		{Options{Nodes: -1}, "--nodes -1"},
		{Options{Nodes: 9, Port: 40000}, "choose one from 1 to 34934"},
		{Options{Port: port}, "--port"},
		{Options{Port: freePort(t, 1), DataDir: file}, "--data-dir"},
		{Options{Port: freePort(t, 1), Settings: []string{"--no-such-thing"}}, "no-such-thing"},
		{Options{Port: freePort(t, 1), Settings: []string{"--listen-metrics-urls=http://127.0.0.1:" + fmt.Sprint(port)}}, "infra1: "},
	} {
		if err := Run(t.Context(), test.o); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v, want %q", test.o, err, test.want)
		}
	}
}

func TestAddresses(t *testing.T) {
	all, err := addresses(DefaultPort, NodesMax)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(all[:4])
	if want := "[{2379 12380} {22379 22380} {32379 32380} {32479 32480}]"; got != want {
		t.Errorf("the members listen on %s, want %s", got, want)
	}
	seen := map[int]bool{}
	for _, at := range all {
		for _, port := range []int{at.client, at.peer} {
			if seen[port] {
				t.Errorf("two listen on %d", port)
			}
			seen[port] = true
		}
	}
}

// TestProcess types into the real program, and interrupts it. It is not
// parallel: a child that was just forked holds, for a moment, the ports on which
// the others are trying whether they are free.
func TestProcess(t *testing.T) {
	told := newScreen()
	cmd := exec.Command(process.Binary(t), "dev", "--nodes", "3", "--port", fmt.Sprint(freePort(t, 3)))
	cmd.Stdout, cmd.Stderr = told, told
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	s := &session{t: t, told: told}
	s.hears(`3 members are ready`)
	if _, err := io.WriteString(in, "stop 2\n"); err != nil {
		t.Fatal(err)
	}
	s.hears(`infra2 is stopped`)
	in.Close() // nobody types any more, which ends nothing
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("interrupted: %v\n%s", err, told)
	}
}

// TestLostSettings: a setting without the dashes before it is not passed on, nor
// passed over.
func TestLostSettings(t *testing.T) {
	out, err := exec.Command(process.Binary(t), "dev", "three").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "go behind --") {
		t.Errorf("%v, %s", err, out)
	}
}

func number(t *testing.T, text string) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(text, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// A screen remembers what was written to it, and how far it was read.
type screen struct {
	mu struct {
		sync.Mutex
		text string
		read int
	}
	more chan struct{}
}

func newScreen() *screen { return &screen{more: make(chan struct{}, 1)} }

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.text += string(b)
	select {
	case s.more <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.text
}

func (s *screen) await(pattern *regexp.Regexp) []string {
	timeout := time.After(patience)
	for {
		if found := s.next(pattern); found != nil {
			return found
		}
		select {
		case <-s.more:
		case <-timeout:
			return nil
		}
	}
}

func (s *screen) next(pattern *regexp.Regexp) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := pattern.FindStringSubmatchIndex(s.mu.text[s.mu.read:])
	if at == nil {
		return nil
	}
	found := pattern.FindStringSubmatch(s.mu.text[s.mu.read:])
	s.mu.read += at[1]
	return found
}
