package examples

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/kvorum/kvorum/test/compat/process"
)

// patience is for what should take no time, on a machine that has other work.
const patience = 2 * time.Minute

// Leases of programs that live on, whatever the machine does beside, and of
// those that are killed, in seconds.
const (
	living = "60"
	mortal = "5"
)

var programs string // the directory that holds the examples, built

func TestMain(m *testing.M) {
	os.Exit(func() int {
		defer process.Cleanup()
		var err error
		if programs, err = os.MkdirTemp("", "kvorum-examples"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(programs)
		if out, err := exec.Command("go", "build", "-o", programs+"/", "./...").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the examples: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// A program is an example that runs.
type program struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
}

// run starts an example against a server.
func run(t *testing.T, server *process.Server, name string, args ...string) *program {
	t.Helper()
	cmd := exec.Command(filepath.Join(programs, name), append([]string{"-endpoints", server.ClientAddr}, args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	printed, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.Close()
	p := &program{t: t, cmd: cmd, in: in, lines: make(chan string, 1000)}
	go func() {
		defer printed.Close()
		defer close(p.lines)
		for scan := bufio.NewScanner(printed); scan.Scan(); {
			p.lines <- scan.Text()
		}
	}()
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return p
}

// prints waits for the next lines, which match the patterns.
func (p *program) prints(patterns ...string) {
	p.t.Helper()
	timeout := time.After(patience)
	for _, pattern := range patterns {
		select {
		case line, open := <-p.lines:
			if !open || !regexp.MustCompile("^(?:"+pattern+")$").MatchString(line) {
				p.t.Fatalf("%s printed %q, want %s", filepath.Base(p.cmd.Path), line, pattern)
			}
		case <-timeout:
			p.t.Fatalf("%s printed nothing, want %s", filepath.Base(p.cmd.Path), pattern)
		}
	}
}

// silent checks that nothing is printed for a moment.
func (p *program) silent() {
	p.t.Helper()
	select {
	case line := <-p.lines:
		p.t.Fatalf("%s printed %q, want nothing yet", filepath.Base(p.cmd.Path), line)
	case <-time.After(100 * time.Millisecond):
	}
}

// ends waits for the end, and returns what was printed until then.
func (p *program) ends() (rest []string) {
	p.t.Helper()
	for line := range p.lines {
		rest = append(rest, line)
	}
	if err := p.cmd.Wait(); err != nil {
		p.t.Fatalf("%s: %v", filepath.Base(p.cmd.Path), err)
	}
	return rest
}

func (p *program) interrupt() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		p.t.Fatal(err)
	}
	p.ends()
}

func (p *program) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

func start(t *testing.T) *process.Server {
	t.Parallel()
	return process.Start(t, process.Options{})
}

func TestDiscovery(t *testing.T) {
	s := start(t)
	one := run(t, s, "discovery", "-register", "web-1=10.0.0.1:80", "-ttl", living)
	one.prints("web-1 is registered")
	seen := run(t, s, "discovery")
	seen.prints("web-1 is at 10.0.0.1:80")
	two := run(t, s, "discovery", "-register", "web-2=10.0.0.2:80", "-ttl", mortal)
	seen.prints("web-2 is at 10.0.0.2:80")
	one.interrupt()
	seen.prints("web-1 is gone")
	two.kill() // its heartbeat stops
	seen.prints("web-2 is gone")
	seen.interrupt()
}

func TestConfig(t *testing.T) {
	s := start(t)
	run(t, s, "config", "colour=blue", "size=7").ends()
	seen := run(t, s, "config")
	seen.prints("revision 2: colour=blue size=7")
	run(t, s, "config", "colour=red", "size=8").prints("published at revision 3")
	seen.prints("revision 3: colour=red size=8") // never one without the other
	seen.interrupt()
}

func TestBalancer(t *testing.T) {
	s := start(t)
	b := run(t, s, "balancer")
	ask := func(request string) {
		if _, err := io.WriteString(b.in, request+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	ask("one")
	b.prints("one is refused: no node is alive")
	first := run(t, s, "balancer", "-node", "a")
	b.prints("alive: a")
	second := run(t, s, "balancer", "-node", "b")
	b.prints("alive: a b")
	ask("two")
	ask("three")
	b.prints("two goes to a", "three goes to b")
	first.interrupt()
	b.prints("alive: b")
	ask("four")
	b.prints("four goes to b")
	b.in.Close()
	b.ends()
	second.interrupt()
}

func TestProgress(t *testing.T) {
	s := start(t)
	run(t, s, "progress", "-work", "plan", "-steps", "0").ends()
	seen := run(t, s, "progress")
	seen.prints("plan: done")
	run(t, s, "progress", "-work", "build", "-steps", "2", "-pace", "10ms", "-ttl", living).ends()
	seen.prints("build: 0 of 2", "build: 1 of 2", "build: done")
	dies := run(t, s, "progress", "-work", "test", "-pace", "1h", "-ttl", mortal)
	seen.prints("test: 0 of 10")
	dies.kill()
	seen.prints("test: given up")
	seen.interrupt()

	later := run(t, s, "progress")
	later.prints("build: done", "plan: done")
	later.interrupt()
}

func TestExclusive(t *testing.T) {
	s := start(t)
	first := run(t, s, "exclusive", "-owner", "a", "--", "sh", "-c", "echo begins; read end; echo ends")
	first.prints("begins")
	run(t, s, "exclusive", "-owner", "b", "--", "echo", "never").prints("a has it")
	if _, err := io.WriteString(first.in, "\n"); err != nil {
		t.Fatal(err)
	}
	first.prints("ends")
	first.ends()
	run(t, s, "exclusive", "-owner", "b", "--", "echo", "now").prints("now")
}

func TestFirstCome(t *testing.T) {
	s := start(t)
	const clients, times = 4, 5
	var all []*program
	for range clients {
		all = append(all, run(t, s, "firstcome", "-times", fmt.Sprint(times)))
	}
	var counted []string
	for _, p := range all {
		counted = append(counted, p.ends()...)
	}
	var want []string
	for n := range clients * times {
		want = append(want, fmt.Sprint(n+1))
	}
	slices.Sort(counted)
	slices.Sort(want)
	if !slices.Equal(counted, want) {
		t.Errorf("counted %v, want each of %v once", counted, want)
	}
}

func TestQueue(t *testing.T) {
	s := start(t)
	run(t, s, "queue", "one", "two", "three").ends()
	first := run(t, s, "queue")
	first.prints("one", "two", "three")
	first.silent()

	// Two takers: each item comes once, to one of them.
	second := run(t, s, "queue")
	var want []string
	for n := range 20 {
		want = append(want, fmt.Sprintf("item %02d", n))
	}
	run(t, s, "queue", want...).ends()
	var got []string
	timeout := time.After(patience)
	for len(got) < len(want) {
		select {
		case item := <-first.lines:
			got = append(got, item)
		case item := <-second.lines:
			got = append(got, item)
		case <-timeout:
			t.Fatalf("got %v, want %v", got, want)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	first.silent()
	second.silent()
	first.interrupt()
	second.interrupt()
}

func TestLeader(t *testing.T) {
	s := start(t)
	leads := func(p *program, name string) {
		t.Helper()
		// Who leads is told by two goroutines, in either order.
		p.prints(`I lead, at revision \d+|`+name+` leads since revision \d+`, `I lead, at revision \d+|`+name+` leads since revision \d+`)
	}
	a := run(t, s, "leader", "-name", "a", "-ttl", living)
	leads(a, "a")
	b := run(t, s, "leader", "-name", "b", "-ttl", mortal)
	b.prints(`a leads since revision \d+`)
	b.silent()
	a.interrupt() // it resigns
	leads(b, "b")
	c := run(t, s, "leader", "-name", "c", "-ttl", living)
	c.prints(`b leads since revision \d+`)
	b.kill() // its lease runs out
	leads(c, "c")
	c.interrupt()
}
