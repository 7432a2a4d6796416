package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// fill writes until the server has gone, and returns what was acknowledged.
func fill(t *testing.T, c *clientv3.Client, size int, gone func() bool) map[string]int64 {
	t.Helper()
	value := strings.Repeat("v", size)
	acknowledged := map[string]int64{}
	n := 0
	await(t, "the disk to fail", func() bool {
		for range 10 {
			key := fmt.Sprintf("key-%06d", n)
			n++
			attempt, cancel := context.WithTimeout(t.Context(), time.Second)
			r, err := c.Put(attempt, key, value)
			cancel()
			if err != nil {
				break // the server has gone, or the disk is slow
			}
			acknowledged[key] = r.Header.Revision
		}
		return gone()
	})
	return acknowledged
}

func checkAll(t *testing.T, c *clientv3.Client, acknowledged map[string]int64) {
	t.Helper()
	for key, revision := range acknowledged {
		r, err := c.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Kvs) != 1 || r.Kvs[0].ModRevision != revision {
			t.Errorf("%s was acknowledged at revision %d; there is %d of it", key, revision, len(r.Kvs))
		}
	}
}

// TestFullDisk fills a small disk: the server ends with the reason, and has
// everything acknowledged once there is space.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	mount := filepath.Dir(s.dir)
	server := append([]string{kvorum}, s.flags("--snapshot-count=20")...)
	p := start(t, append([]string{"unshare", "-Urm", "sh", "-c", `
		disk=$1; shift
		mount -t tmpfs -o size=24m none "$disk" || { echo no mount; exit 99; }
		"$@"; echo "ended with code $?"
		mount -o remount,size=256m none "$disk"
		exec "$@"`, "sh", mount}, server...)...)
	c := s.client(t)
	select {
	case <-p.ended:
		t.Skipf("a file system of a limited size cannot be mounted here: %s", p.output)
	case <-serving(t, c):
	}
	acknowledged := fill(t, c, 100<<10, func() bool { return strings.Contains(p.output.String(), "ended with code") })
	p.ready(t, c)
	text := p.output.String()
	if !strings.Contains(text, "ended with code 1") || !strings.Contains(text, "no space left on device") || strings.Contains(text, "goroutine ") {
		t.Errorf("the server did not end with the reason and code 1:\n%s", text)
	}
	checkAll(t, c, acknowledged)
	t.Logf("%d writes of 100 KiB acknowledged on 24 MiB", len(acknowledged))
}

// serving is closed once the server answers, or the test ends.
func serving(t *testing.T, c *clientv3.Client) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for t.Context().Err() == nil {
			if _, err := c.Get(t.Context(), "ready"); err == nil {
				return
			}
		}
	}()
	return done
}

// TestFailedSync has the kernel answer a sync with an error, once. The server
// must end: what the failed sync should have kept may be gone, and the next
// one would not say so.
func TestFailedSync(t *testing.T) {
	t.Parallel()
	if err := exec.Command("strace", "-f", "-o", os.DevNull, "true").Run(); err != nil {
		t.Skipf("strace cannot be run here: %v", err)
	}
	for _, call := range []string{"fdatasync", "fsync", "pwrite64"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			when := 30 + rand.IntN(50)
			if call == "fsync" {
				when = 20 + rand.IntN(20) // by then it has started
			}
			p := start(t, append([]string{"strace", "-f", "-o", os.DevNull, "-e", "trace=" + call,
				"-e", fmt.Sprintf("inject=%s:error=EIO:when=%d", call, when), kvorum}, s.flags("--snapshot-count=5")...)...)
			c := s.client(t)
			acknowledged := fill(t, c, 1000, func() bool { return !p.running() })
			if code := p.code(t); code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			if line := oneLine(t, p.output.String()); !strings.Contains(line, "input/output error") {
				t.Errorf("the reason is not told: %s", line)
			}
			p = s.start(t)
			p.ready(t, c)
			checkAll(t, c, acknowledged)
			t.Logf("failure %d: %d writes acknowledged before", when, len(acknowledged))
		})
	}
}

// TestDirectoryOfAnother starts a server as a user who may not write there.
func TestDirectoryOfAnother(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can become another user")
	}
	s := lived(t)
	for _, parent := range []string{filepath.Dir(s.dir), filepath.Dir(filepath.Dir(s.dir))} {
		if err := os.Chmod(parent, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	before := contents(t, s.dir)
	p := start(t, append([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", kvorum}, s.flags()...)...)
	if code := p.code(t); code != 1 {
		t.Errorf("exit code %d:\n%s", code, p.output)
	}
	if line := oneLine(t, p.output.String()); !strings.Contains(line, s.dir) || !strings.Contains(line, "choose") {
		t.Errorf("does not say which directory and what to do: %s", line)
	}
	for _, line := range difference(before, contents(t, s.dir)) {
		t.Errorf("the directory was changed: %s", line)
	}
	s.whole(t)
}

// throw sends a beginning and then anything.
func throw(t *testing.T, addr, begin string, rng *rand.Rand) {
	t.Helper()
	text := []byte(begin)
	for range rng.IntN(300) {
		text = append(text, byte(rng.Uint32()))
	}
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(text); err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Error(err)
	}
}

// TestGarbageAtThePort sends what no client sends. The server lives on.
func TestGarbageAtThePort(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.start(t)
	c := s.client(t)
	p.ready(t, c)
	rng := rand.New(rand.NewPCG(1, 1))
	for _, begin := range []string{"", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET /health HTTP/1.1\r\n", "POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n{", "\x16\x03\x01"} {
		for range 20 {
			throw(t, s.addr, begin, rng)
		}
	}
	for _, method := range []string{"/etcdserverpb.KV/NoSuchMethod", "/no.such.Service/Call", "//"} {
		var out rawMessage
		if err := c.ActiveConnection().Invoke(t.Context(), method, &rawMessage{0xff, 0xff}, &out, grpc.ForceCodec(rawCodec{})); err == nil {
			t.Errorf("%s was answered", method)
		}
	}
	for range 50 { // messages that are cut off
		text := make([]byte, rng.IntN(20))
		for i := range text {
			text[i] = byte(rng.Uint32())
		}
		var out rawMessage
		_ = c.ActiveConnection().Invoke(t.Context(), "/etcdserverpb.KV/Txn", (*rawMessage)(&text), &out, grpc.ForceCodec(rawCodec{})) // any answer will do
	}
	if _, err := c.Put(t.Context(), "a", "b"); err != nil {
		t.Errorf("after garbage: %v\n%s", err, p.output)
	}
	if !p.running() {
		t.Errorf("the server has ended:\n%s", p.output)
	}
}
