package crash

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/kvorum/kvorum/test/port"
)

// patience is for what should take no time, on a machine that has other work.
const patience = time.Minute

var kvorum string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "kvorum-crash")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil { // other users run it, too
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		kvorum = filepath.Join(dir, "kvorum")
		build := exec.Command("go", "build", "-o", kvorum, "github.com/kvorum/kvorum/cmd/kvorum")
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		if err := build.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "build the server:", err)
			return 1
		}
		if err := noticeSources(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		// Those that run together mostly wait.
		flag.Parse()
		if err := flag.Set("test.parallel", strconv.Itoa(max(6, runtime.GOMAXPROCS(0)))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// noticeSources looks at the server's sources: the go command keeps the result
// of a test for as long as nothing changes that the test has looked at, and does
// not know what was built here.
func noticeSources() error {
	return filepath.WalkDir(filepath.Join("..", ".."), func(path string, e fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".go" {
			_, err = os.Stat(path)
		}
		return err
	})
}

// A site is where a server lives: a directory and two addresses.
type site struct {
	dir, addr, peer string
}

func newSite(t testing.TB) site {
	t.Helper()
	return site{dir: filepath.Join(t.TempDir(), "data"), addr: port.Free(t), peer: port.Free(t)}
}

func (s site) url() string { return "http://" + s.addr }

func (s site) flags(more ...string) []string {
	return append([]string{
		"server",
		"--data-dir=" + s.dir,
		"--listen-client-urls=" + s.url(),
		"--advertise-client-urls=" + s.url(),
		"--listen-peer-urls=http://" + s.peer,
	}, more...)
}

// A process is a server that was started.
type process struct {
	*exec.Cmd
	output *output
	ended  chan struct{}
}

// start starts the server by a command line, which may name another program
// that runs it.
func start(t testing.TB, argv ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(argv[0], argv[1:]...), output: &output{}, ended: make(chan struct{})}
	p.Stdout, p.Stderr = p.output, p.output
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a test that panics cleans nothing up
	if err := p.Start(); err != nil {
		t.Fatalf("start %q: %v", argv, err)
	}
	go func() {
		defer close(p.ended)
		_ = p.Wait() // how it ended is read from ProcessState
	}()
	t.Cleanup(func() {
		_ = p.Process.Kill() // or it has ended
		<-p.ended
	})
	return p
}

func (s site) start(t testing.TB, more ...string) *process {
	t.Helper()
	return start(t, append([]string{kvorum}, s.flags(more...)...)...)
}

// pause stops the process, and returns when it stands still.
func (p *process) pause(t testing.TB) {
	t.Helper()
	if err := p.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	for !status.Stopped() {
		if _, err := syscall.Wait4(p.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil {
			t.Fatalf("wait for a process to stop: %v", err)
		}
	}
}

func (p *process) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// code waits for the end and returns the exit code, -1 for a signal.
func (p *process) code(t testing.TB) int {
	t.Helper()
	select {
	case <-p.ended:
		return p.ProcessState.ExitCode()
	case <-time.After(patience):
		t.Fatalf("the server does not end:\n%s", p.output)
		return 0
	}
}

// ready waits until the server answers a linearizable read.
func (p *process) ready(t testing.TB, c *clientv3.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	go func() {
		select {
		case <-p.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		_, err := c.Get(ctx, "ready")
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("the server does not serve: %v\n%s", err, p.output)
		}
	}
}

func (s site) client(t testing.TB) *clientv3.Client { return client(t, s.addr) }

func client(t testing.TB, endpoints ...string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: endpoints,
		Logger:    zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.5, MaxDelay: 20 * time.Millisecond},
		})},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("close client: %v", err)
		}
	})
	return c
}

// output keeps what a process wrote.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// rawMessage goes over the wire as it is.
type rawMessage []byte

type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*rawMessage), nil }
func (rawCodec) Unmarshal(b []byte, v any) error {
	*v.(*rawMessage) = b
	return nil
}
func (rawCodec) Name() string { return "proto" }
