// Package process runs a server as a process for tests: kvorum built from this
// tree, or whatever binary KVORUM_COMPAT_ETCD names. Both are started the way
// etcd is, with etcd's flags and under etcd's name, for that is the promise.
package process

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/kvorum/kvorum/test/port"
)

// Env names the variable that holds the path of the server binary to test
// instead of kvorum.
const Env = "KVORUM_COMPAT_ETCD"

// Reference says whether the server under test is a real etcd.
func Reference() bool { return os.Getenv(Env) != "" }

// readyTime is generous: the machine may be compiling beside us.
const readyTime = 2 * time.Minute

// Options describe a server of a single member; the zero value will do.
type Options struct {
	Flags  []string // added to the command line, as --name=value
	Binary string   // to run; default what Binary returns

	// Files of a certificate for 127.0.0.1. With them the server speaks TLS
	// too, on the same port.
	Cert, Key string
}

// Server is a running process, with its data in a directory of the test's.
type Server struct {
	ClientAddr, PeerAddr string // host:port
	Name, Token          string
	DataDir              string

	binary string
	flags  []string
	log    *logBuffer
	cmd    *exec.Cmd
	exited chan struct{}
}

// ClientURL is where clients reach the server.
func (s *Server) ClientURL() string { return "http://" + s.ClientAddr }

// PeerURL is what the server advertises to other members.
func (s *Server) PeerURL() string { return "http://" + s.PeerAddr }

// Start runs a fresh server, waits until it serves, and ends it with the test.
// It skips the test if there is nothing to run.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	s := &Server{
		ClientAddr: port.Free(t), PeerAddr: port.Free(t),
		Name: "m1", Token: "compat",
		DataDir: filepath.Join(t.TempDir(), "data"),
		binary:  o.Binary,
		flags:   o.Flags,
		log:     &logBuffer{},
	}
	if s.binary == "" {
		s.binary = Binary(t)
	}
	if o.Cert != "" {
		s.flags = append(slices.Clone(s.flags), "--cert-file="+o.Cert, "--key-file="+o.Key,
			"--listen-client-urls="+s.ClientURL()+",https://"+s.ClientAddr)
	}
	s.Run(t)
	t.Cleanup(func() {
		s.Kill()
		if t.Failed() {
			t.Logf("the server's last words:\n%s", s.log.tail())
		}
	})
	return s
}

// Run starts the process again on the same data and addresses.
func (s *Server) Run(t testing.TB) {
	t.Helper()
	args := append([]string{
		"etcd",
		"--name=" + s.Name,
		"--data-dir=" + s.DataDir,
		"--listen-client-urls=" + s.ClientURL(),
		"--advertise-client-urls=" + s.ClientURL(),
		"--listen-peer-urls=" + s.PeerURL(),
		"--initial-advertise-peer-urls=" + s.PeerURL(),
		"--initial-cluster=" + s.Name + "=" + s.PeerURL(),
		"--initial-cluster-token=" + s.Token,
		"--initial-cluster-state=new",
	}, s.flags...)
	s.cmd = &exec.Cmd{Path: s.binary, Args: args, Stdout: s.log, Stderr: s.log}
	if err := s.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", s.binary, err)
	}
	cmd, exited := s.cmd, make(chan struct{})
	s.exited = exited
	go func() {
		defer close(exited)
		_ = cmd.Wait() // how it ended is read from ProcessState by who cares
	}()
	if err := s.awaitReady(); err != nil {
		t.Fatalf("%s does not serve: %v\n%s", s.binary, err, s.log.tail())
	}
}

// awaitReady returns once a read that needs a leader succeeds, and what a member
// does a moment later is done: etcd tells the version of the cluster to the
// storage (3.4 has no such thing), and ours its name to the members.
func (s *Server) awaitReady() error {
	ctx, cancel := context.WithTimeout(context.Background(), readyTime)
	defer cancel()
	go func() {
		select {
		case <-s.exited:
			cancel() // it will never be ready
		case <-ctx.Done():
		}
	}()
	conn, err := s.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	for {
		_, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("ready")}, grpc.WaitForReady(true))
		if err == nil {
			var status *pb.StatusResponse
			status, err = pb.NewMaintenanceClient(conn).Status(ctx, &pb.StatusRequest{})
			var members *pb.MemberListResponse
			if err == nil {
				members, err = pb.NewClusterClient(conn).MemberList(ctx, &pb.MemberListRequest{})
			}
			stored := minor(status.GetStorageVersion())
			if err == nil && (stored == minor(status.GetVersion()) || stored == "" && minor(status.GetVersion()) == "3.4") &&
				!slices.ContainsFunc(members.Members, func(m *pb.Member) bool { return m.Name == "" }) {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// minor cuts a version to its first two numbers.
func minor(version string) string {
	parts := strings.SplitN(version, ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}

func (s *Server) dial() (*grpc.ClientConn, error) {
	return grpc.NewClient(s.ClientAddr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// The first attempt comes before the server listens.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1, MaxDelay: time.Second}}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
}

// Dial returns a plain gRPC connection, without the retries of clientv3.
func (s *Server) Dial(t testing.TB) *grpc.ClientConn {
	t.Helper()
	conn, err := s.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// Kill ends the process at once, as a power cut would.
func (s *Server) Kill() { s.end(syscall.SIGKILL) }

// Stop asks the process to end and waits for it.
func (s *Server) Stop() { s.end(syscall.SIGTERM) }

func (s *Server) end(sig syscall.Signal) {
	_ = s.cmd.Process.Signal(sig) // it may be gone already
	select {
	case <-s.exited:
	case <-time.After(readyTime):
		_ = s.cmd.Process.Kill()
		<-s.exited
	}
}

var build struct {
	once   sync.Once
	binary string
	reason string // why there is nothing to run
	err    error
}

// Binary returns the server to run: the one named by the environment, or
// kvorum, built once per test binary.
func Binary(t testing.TB) string {
	t.Helper()
	if path := os.Getenv(Env); path != "" {
		return path
	}
	build.once.Do(buildKvorum)
	switch {
	case build.err != nil:
		t.Fatal(build.err)
	case build.reason != "":
		t.Skip(build.reason)
	}
	return build.binary
}

func buildKvorum() {
	root, err := moduleRoot()
	if err != nil {
		build.err = err
		return
	}
	sources, err := filepath.Glob(filepath.Join(root, "cmd", "kvorum", "*.go"))
	if err != nil || len(sources) == 0 {
		build.reason = "cmd/kvorum has no main package; " + Env + " can name another server"
		return
	}
	dir, err := os.MkdirTemp("", "kvorum-compat")
	if err != nil {
		build.err = err
		return
	}
	build.binary = filepath.Join(dir, "kvorum")
	cmd := exec.Command("go", "build", "-o", build.binary, "./cmd/kvorum")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		build.err = fmt.Errorf("go build ./cmd/kvorum: %w\n%s", err, out)
	}
}

// Cleanup removes what Binary built; call it when TestMain's tests are over.
func Cleanup() {
	if build.binary != "" {
		os.RemoveAll(filepath.Dir(build.binary))
	}
}

func moduleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}

// logBuffer keeps the end of what a process says.
type logBuffer struct {
	mu struct {
		sync.Mutex
		bytes.Buffer
	}
}

const logBytesMax = 64 << 10

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.Len() > logBytesMax {
		b.mu.Next(b.mu.Len() / 2)
	}
	return b.mu.Buffer.Write(p)
}

func (b *logBuffer) tail() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	text := b.mu.String()
	text = text[max(0, len(text)-2048):]
	if _, whole, ok := strings.Cut(text, "\n"); ok {
		return whole
	}
	return text
}
