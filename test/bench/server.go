package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kvorum/kvorum/test/bench/load"
)

// product is a server program under test.
type product struct {
	name   string
	binary string
	secure *certificate // nil: plain text
	flags  []string     // besides those that all have
}

// url of an address for clients.
func (p product) url(addr string) string {
	if p.secure != nil {
		return "https://" + addr
	}
	return "http://" + addr
}

func (p product) trust() *tls.Config {
	if p.secure == nil {
		return nil
	}
	return p.secure.trust.Clone()
}

// command is the program and the words before its flags. Ours is three tools in
// one and, unless it is called etcd, wants to be told which.
func (p product) command() []string {
	if filepath.Base(p.binary) == "etcd" {
		return []string{p.binary}
	}
	return []string{p.binary, "server"}
}

// server is a process of a product with a data directory of its own. It can be
// stopped and started again. Where it is not alone in its cluster, it leads it.
type server struct {
	product
	dir     string // holds the data and what the process prints
	client  string // host:port
	peer    string
	initial string // the members of its cluster
	others  []*server
	process *exec.Cmd
	exited  chan struct{}
}

// newServer starts a cluster of the product on empty data directories below
// dir, and returns its leader when all are healthy.
func newServer(ctx context.Context, p product, dir string, members int) (_ *server, err error) {
	var all []*server
	defer func() {
		if err != nil {
			for _, s := range all {
				s.remove()
			}
		}
	}()
	var initial []string
	for range members {
		own, err := os.MkdirTemp(dir, p.name+"-")
		if err != nil {
			return nil, err
		}
		s := &server{product: p, dir: own}
		all = append(all, s)
		if s.client, err = freePort(); err != nil {
			return nil, err
		}
		if s.peer, err = freePort(); err != nil {
			return nil, err
		}
		initial = append(initial, s.member()+"=http://"+s.peer)
	}
	for _, s := range all {
		s.initial = strings.Join(initial, ",")
		if err := s.start(); err != nil {
			return nil, err
		}
	}
	for _, s := range all {
		if err := s.healthy(ctx); err != nil {
			return nil, err
		}
	}
	lead, err := leader(ctx, all)
	if err != nil {
		return nil, err
	}
	lead.others = slices.DeleteFunc(slices.Clone(all), func(s *server) bool { return s == lead })
	return lead, nil
}

// leader waits until one of the servers says that it leads.
func leader(ctx context.Context, all []*server) (found *server, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err = all[0].poll(ctx, 10*time.Millisecond, func() error {
		for _, s := range all {
			metrics, err := s.get(ctx, "/metrics")
			if err != nil {
				return err
			}
			if bytes.Contains(metrics, []byte("\netcd_server_is_leader 1\n")) {
				found = s
				return nil
			}
		}
		return errors.New("nobody leads")
	})
	return found, err
}

// member is its name in the cluster.
func (s *server) member() string { return filepath.Base(s.dir) }

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func (s *server) data() string   { return filepath.Join(s.dir, "data") }
func (s *server) output() string { return filepath.Join(s.dir, "output") }

func (s *server) start() error {
	output, err := os.OpenFile(s.output(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer output.Close()
	command := append(s.command(),
		"--name", s.member(),
		"--data-dir", s.data(),
		"--listen-client-urls", s.url(s.client),
		"--advertise-client-urls", s.url(s.client),
		"--listen-peer-urls", "http://"+s.peer,
		"--initial-advertise-peer-urls", "http://"+s.peer,
		"--initial-cluster", s.initial,
		// Far above what any load writes: running full is not what is measured.
		"--quota-backend-bytes", strconv.Itoa(64<<30),
	)
	command = append(command, s.flags...)
	if s.secure != nil {
		command = append(command, "--cert-file", s.secure.certFile, "--key-file", s.secure.keyFile)
	}
	s.process = exec.Command(command[0], command[1:]...)
	s.process.Stdout, s.process.Stderr = output, output
	s.process.Env = plainEnvironment()
	// No server outlives this process, however it ends.
	s.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := s.process.Start(); err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	exited, process := make(chan struct{}), s.process
	s.exited = exited
	go func() {
		process.Wait() // how it ended is told by whoever misses it
		close(exited)
	}()
	return nil
}

// plainEnvironment is ours without what would tune a server behind our back.
func plainEnvironment() []string {
	var kept []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		switch {
		case name == "GOMAXPROCS", name == "GOGC", name == "GOMEMLIMIT", name == "GODEBUG":
		case strings.HasPrefix(name, "ETCD_"), strings.HasPrefix(name, "KVORUM_"):
		default:
			kept = append(kept, e)
		}
	}
	return kept
}

// healthy waits until the server says that it is.
func (s *server) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return s.poll(ctx, 10*time.Millisecond, func() error {
		_, err := s.get(ctx, "/health")
		return err
	})
}

// get asks the server by HTTP.
func (s *server) get(ctx context.Context, path string) ([]byte, error) {
	client := http.Client{Transport: &http.Transport{TLSClientConfig: s.trust(), DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url(s.client)+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, errors.New(response.Status)
	}
	return io.ReadAll(response.Body)
}

// poll tries until it succeeds, the process is gone or ctx ends.
func (s *server) poll(ctx context.Context, every time.Duration, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(every):
		case <-s.exited:
			return fmt.Errorf("%s ended; its last words: %s", s.name, s.lastWords())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w; its last words: %s", s.name, errors.Join(err, context.Cause(ctx)), s.lastWords())
		}
	}
}

func (s *server) lastWords() string {
	text, err := os.ReadFile(s.output())
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(text[max(len(text)-1000, 0):]))
}

// stop sends the signal and returns how long the process took to end.
func (s *server) stop(signal syscall.Signal) (time.Duration, error) {
	began := time.Now()
	if err := s.process.Process.Signal(signal); err != nil {
		return 0, fmt.Errorf("stop %s: %w; its last words: %s", s.name, err, s.lastWords())
	}
	select {
	case <-s.exited:
		return time.Since(began), nil
	case <-time.After(time.Minute):
		return 0, fmt.Errorf("%s did not stop within a minute of %v", s.name, signal)
	}
}

// remove ends the processes, if they run, and deletes all they have written.
func (s *server) remove() {
	for _, other := range s.others {
		other.remove()
	}
	if s.process != nil && s.process.Process != nil {
		s.process.Process.Kill() // fails only when it is gone already
		<-s.exited
	}
	if err := os.RemoveAll(s.dir); err != nil {
		progress("%v", err)
	}
}

// busy is the time that all cores together have worked, for whomever.
func busy() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(first) // cpu user nice system idle iowait irq softirq steal ...
	if len(fields) < 9 {
		return 0, fmt.Errorf("/proc/stat begins with %q", first)
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7, 8} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// run is load.Run aimed at this server. Anything but right answers is an error.
func (s *server) run(ctx context.Context, l load.Load, o load.Options) (*load.Result, error) {
	result, err := load.Run(ctx, l, s.at(o))
	if err == nil {
		err = result.Err()
	}
	return result, err
}

// at aims options at this server.
func (s *server) at(o load.Options) load.Options {
	o.Addr, o.TLS = s.client, s.trust()
	if o.Meter == nil {
		o.Meter = s.cpu
	}
	return o
}

// cpu is the time, of user and system, that all members have used.
func (s *server) cpu() (time.Duration, error) {
	used, err := processCPU(s.process.Process.Pid)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s ended; its last words: %s", s.name, s.lastWords())
	}
	for _, other := range s.others {
		theirs, otherErr := other.cpu()
		used, err = used+theirs, errors.Join(err, otherErr)
	}
	return used, err
}

func processCPU(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may hold anything; the numbers come behind it.
	after := text[bytes.LastIndexByte(text, ')')+1:]
	fields := bytes.Fields(after)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	var ticks int64
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	// The kernel tells these in hundredths of a second on every platform we run on.
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// resident is the memory the process holds, in bytes.
func (s *server) resident() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.process.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("no VmRSS in status")
}

// settled waits until the memory has stayed within one part in a hundred for
// three seconds, at most half a minute, and returns it.
func (s *server) settled(ctx context.Context) (int64, error) {
	const steps, steady = 30, 3
	low, high, since := int64(0), int64(0), 0
	for range steps {
		now, err := s.resident()
		if err != nil {
			return 0, err
		}
		low, high = min(low, now), max(high, now)
		if since++; high-low > high/100 {
			low, high, since = now, now, 0
		}
		if since > steady {
			return now, nil
		}
		if err := wait(ctx, time.Second); err != nil {
			return 0, err
		}
	}
	return s.resident()
}

// quiet waits until the processes use less than a tenth of a core, at most ten
// seconds: what one still does after its turn must not cost the other.
func quiet(ctx context.Context, servers ...*server) error {
	const step = 200 * time.Millisecond
	var before time.Duration
	for range 10 * time.Second / step {
		var used time.Duration
		for _, s := range servers {
			cpu, err := s.cpu()
			if err != nil {
				return err
			}
			used += cpu
		}
		if used-before < step/10 {
			return nil
		}
		before = used
		if err := wait(ctx, step); err != nil {
			return err
		}
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// disk is what the data directory takes on disk, in bytes: allocated blocks, as
// du counts, so that what is reserved counts and holes do not.
func (s *server) disk() (int64, error) {
	if _, err := os.Stat(s.data()); err != nil {
		return 0, err
	}
	var sum int64
	err := filepath.WalkDir(s.data(), func(_ string, entry fs.DirEntry, err error) error {
		if err == nil {
			var info fs.FileInfo
			if info, err = entry.Info(); err == nil {
				sum += info.Sys().(*syscall.Stat_t).Blocks * 512
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed under the walk: a live server may do that
		}
		return err
	})
	return sum, err
}
