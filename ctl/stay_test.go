package ctl

import (
	"bufio"
	"context"
	"io"
	"regexp"
	"testing"
	"time"

	"github.com/kvorum/kvorum/test/compat/process"
)

// patience is for what should take no time, on a machine that has other work.
const patience = 2 * time.Minute

// A staying is a command that runs until it is interrupted.
type staying struct {
	t         *testing.T
	in        *io.PipeWriter
	lines     chan string
	interrupt context.CancelFunc
	code      chan int
}

func stay(t *testing.T, server *process.Server, called string, args ...string) *staying {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	in, typed := io.Pipe()
	printed, out := io.Pipe()
	root := New(called)
	root.SetArgs(append([]string{"--endpoints=" + server.ClientAddr}, args...))
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(out)
	s := &staying{t: t, in: typed, lines: make(chan string, 1000), interrupt: cancel, code: make(chan int, 1)}
	go func() {
		for scan := bufio.NewScanner(printed); scan.Scan(); {
			s.lines <- scan.Text()
		}
	}()
	go func() {
		code := Run(ctx, root)
		out.Close()
		s.code <- code
	}()
	return s
}

// prints waits for lines that match the patterns, one after the other.
func (s *staying) prints(patterns ...string) {
	s.t.Helper()
	timeout := time.After(patience)
	for _, pattern := range patterns {
		select {
		case line := <-s.lines:
			if !regexp.MustCompile(pattern).MatchString(line) {
				s.t.Fatalf("printed %q, want %s", line, pattern)
			}
		case <-timeout:
			s.t.Fatalf("printed nothing, want %s", pattern)
		}
	}
}

func (s *staying) types(line string) {
	s.t.Helper()
	if _, err := io.WriteString(s.in, line+"\n"); err != nil {
		s.t.Fatal(err)
	}
}

func (s *staying) ends(code int) {
	s.t.Helper()
	select {
	case got := <-s.code:
		if got != code {
			s.t.Errorf("ended with %d, want %d", got, code)
		}
	case <-time.After(patience):
		s.t.Fatal("does not end")
	}
}

func TestWatchInteractive(t *testing.T) {
	server := process.Start(t, process.Options{})
	put := func(key, value string) {
		stay(t, server, Etcdctl, "put", key, value).ends(0)
	}
	w := stay(t, server, Etcdctl, "watch", "-i")
	w.types("")
	w.prints(`^Invalid command:  \(watch and progress supported\)$`)
	w.types("bogus")
	w.prints(`^Invalid command bogus \(only support watch\)$`)
	w.types("watch")
	w.prints(`^Invalid command watch \(command type or key is not provided\)$`)
	w.types("watch a b --prefix")
	w.prints("^Invalid command watch a b --prefix \\(`range_end` and `--prefix` are mutually exclusive\\)$")
	w.types("watch foo --prev-kv")
	w.types("progress")
	w.prints(`^progress notify: 1$`)
	w.types(`watch "a b" -- sh -c "echo $ETCD_WATCH_KEY"`)
	w.types("progress")
	w.prints(`^progress notify: 1$`, `^progress notify: 1$`)
	put("foo", "1")
	w.prints("^PUT$", "^foo$", "^1$")
	put("foo", "2")
	w.prints("^PUT$", "^foo$", "^1$", "^foo$", "^2$")
	put("a b", "3")
	w.prints("^PUT$", "^a b$", "^3$", `^"a b"$`)
	w.types("watch b --rev=1 -- false")
	put("b", "4")
	w.prints("^PUT$", "^b$", "^4$", `^command \["false"\] error \(exit status 1\)$`)
	w.ends(1)

	short := stay(t, server, Etcdctl, "watch", "-i")
	short.in.Close()
	short.prints("^Error: error reading watch request line: EOF$")
	short.ends(3)
	wrong := stay(t, server, Etcdctl, "watch", "-i")
	wrong.types("watch foo --nope")
	wrong.prints("^Error: unknown flag: --nope$")
	wrong.ends(128)
}

func TestInterrupt(t *testing.T) {
	server := process.Start(t, process.Options{})
	stay(t, server, Etcdctl, "put", "foo", "1").ends(0)
	for called, code := range map[string]int{Etcdctl: 130, "kvorum": 5} {
		w := stay(t, server, called, "watch", "foo", "--rev=1")
		w.prints("^PUT$", "^foo$", "^1$")
		w.interrupt()
		w.ends(code)
	}
}

// TestLockIsHanded has one wait for a lock until another lets go of it.
func TestLockIsHanded(t *testing.T) {
	server := process.Start(t, process.Options{})
	first := stay(t, server, "kvorum", "lock", "m")
	first.prints("^m/[0-9a-f]+$", "^$")
	second := stay(t, server, "kvorum", "lock", "m", "-w", "json")
	impatient := stay(t, server, Etcdctl, "lock", "m")
	queue := stay(t, server, "kvorum", "watch", "--prefix", "m/", "--rev=1")
	for range 3 {
		queue.prints("^PUT$", "^m/[0-9a-f]+$", "^$")
	}
	impatient.interrupt()
	impatient.prints("^Error: context canceled$")
	impatient.ends(1)
	queue.prints("^DELETE$", "^m/[0-9a-f]+$", "^$")
	select {
	case line := <-second.lines:
		t.Fatalf("two hold the lock: %s", line)
	default:
	}
	first.interrupt()
	first.ends(0)
	// Who of the two that waited came first is left open.
	second.prints(`^{"header":{.*},"kvs":\[{"key":".*","create_revision":[34],"mod_revision":[34],"version":1,"lease":[0-9]+}\],"count":1}$`)
	second.interrupt()
	second.ends(0)
	queue.interrupt()
	queue.ends(5)
}

// TestLeadersAreSeen lets one lead, then another, under the eyes of a third.
func TestLeadersAreSeen(t *testing.T) {
	server := process.Start(t, process.Options{})
	listener := stay(t, server, "kvorum", "elect", "-l", "e")
	first := stay(t, server, "kvorum", "elect", "e", "one")
	first.prints("^e/[0-9a-f]+$", "^one$")
	listener.prints("^e/[0-9a-f]+$", "^one$")
	second := stay(t, server, "kvorum", "elect", "e", "two", "-w", "fields")
	first.interrupt()
	first.ends(0)
	second.prints("^\"ClusterID\"", "^\"MemberID\"", "^\"Revision\"", "^\"RaftTerm\"", "^\"Key\" : \"e/[0-9a-f]+\"$")
	listener.prints("^e/[0-9a-f]+$", "^two$")
	listener.interrupt()
	listener.ends(0)
	second.interrupt()
	second.ends(0)
}
