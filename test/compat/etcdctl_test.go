package compat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/kvorum/kvorum/ctl"
	"github.com/kvorum/kvorum/proxy"
	"github.com/kvorum/kvorum/test/compat/process"
	"github.com/kvorum/kvorum/test/port"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// envClients allows the tests that need binaries from elsewhere: etcdctl 3.7,
// built from the module in test/bench/etcd (its dependencies are downloaded),
// and etcdctl 3.4 from Debian's package etcd-client.
const envClients = "KVORUM_COMPAT"

// envEtcdctl names an etcdctl 3.7 that is built already.
const envEtcdctl = "KVORUM_COMPAT_ETCDCTL"

// A real etcdctl 3.7 says to the server under test what it said to etcd.
func TestEtcdctl37(t *testing.T) {
	runEtcdctl(t, "testdata/etcdctl/3.7", "3.7", etcdctl37(t))
}

// Debian's etcdctl, some years older, does as well.
func TestEtcdctl34(t *testing.T) {
	if os.Getenv(envClients) == "" {
		t.Skipf("needs Debian's etcd-client: run make compat, or set %s=1", envClients)
	}
	path := "/usr/bin/etcdctl"
	if _, err := os.Stat(path); err != nil {
		t.Skip("etcdctl 3.4 is not installed: apt-get install etcd-client")
	}
	runEtcdctl(t, "testdata/etcdctl/3.4", "3.4", path)
}

// The client in this tree, called etcdctl, prints what etcdctl 3.7 prints.
func TestOwnEtcdctl(t *testing.T) {
	if rewriting() {
		t.Skip("what etcdctl prints is recorded from etcdctl")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(envSelf, "1")
	runEtcdctl(t, "testdata/etcdctl/3.7", "3.7", self)
}

// What is behind a proxy answers as it does without.
func TestEtcdctlThroughAProxy(t *testing.T) {
	if rewriting() {
		t.Skip("what etcdctl prints is recorded from etcdctl")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(envSelf, "1")
	runEtcdctlAt(t, "testdata/etcdctl/3.7", "3.7", self, func(server *process.Server) string {
		listening := make(chan net.Addr, 1)
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() {
			ended <- proxy.Run(ctx, proxy.Options{
				Endpoints: []string{server.ClientAddr}, Listen: port.Free(t),
				Listening: func(addr net.Addr) { listening <- addr },
			})
		}()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
		return (<-listening).String()
	})
}

// envSelf makes this test binary be the client in this tree.
const envSelf = "KVORUM_COMPAT_SELF"

func beEtcdctl() int { return ctl.Run(context.Background(), ctl.New(ctl.Etcdctl)) }

func etcdctl37(t *testing.T) string {
	if path := os.Getenv(envEtcdctl); path != "" {
		return path
	}
	if os.Getenv(envClients) == "" {
		t.Skipf("builds etcdctl from modules to be downloaded: run make compat, or set %s=1", envClients)
	}
	path := filepath.Join(t.TempDir(), "etcdctl")
	build := exec.Command("go", "build", "-o", path, "go.etcd.io/etcd/etcdctl/v3")
	build.Dir = filepath.Join("..", "bench", "etcd")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build etcdctl: %v\n%s", err, out)
	}
	return path
}

// runEtcdctl runs a script of command lines. A script's only command is run;
// its first line holds the arguments, the others are standard input. <lease>
// stands for the id of the lease that was granted last.
func runEtcdctl(t *testing.T, script, version, path string) {
	t.Helper()
	runEtcdctlAt(t, script, version, path, func(s *process.Server) string { return s.ClientAddr })
}

// runEtcdctlAt has it talk to the address that at returns, behind which the
// server is.
func runEtcdctlAt(t *testing.T, script, version, path string, at func(*process.Server) string) {
	if rewriting() && !process.Reference() {
		t.Fatalf("answers are recorded from a real etcd: set %s", process.Env)
	}
	out, err := etcdctl(path, "version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "API version: "+version) {
		t.Fatalf("%s is not etcdctl %s: %s (%v)", path, version, out, err)
	}
	server := process.Start(t, process.Options{})
	endpoint := at(server)
	lease := ""
	datadriven.RunTest(t, script, func(t *testing.T, d *datadriven.TestData) string {
		if d.Cmd != "run" {
			d.Fatalf(t, "unknown command %q", d.Cmd)
		}
		line, stdin, _ := strings.Cut(d.Input, "\n")
		cmd := etcdctl(path, append([]string{"--endpoints=" + endpoint}, arguments(strings.ReplaceAll(line, "<lease>", lease))...)...)
		var stdout, stderr bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(strings.ReplaceAll(stdin, "<empty>", "")), &stdout, &stderr
		err := cmd.Run()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			d.Fatalf(t, "%v", err)
		}
		answer := stdout.String()
		if granted := grantedLease.FindStringSubmatch(answer); granted != nil {
			lease = granted[1]
		}
		if strings.HasSuffix(line, "protobuf") {
			var r pb.RangeResponse // what the script asks for in this format
			if err := proto.Unmarshal(stdout.Bytes(), &r); err != nil {
				d.Fatalf(t, "%v", err)
			}
			answer = render(&r)
		}
		if answer != "" && !strings.HasSuffix(answer, "\n") {
			answer += "<no newline>\n"
		}
		// What else is on standard error is for people, and no contract.
		for line := range strings.Lines(stderr.String()) {
			if strings.HasPrefix(line, "Error:") {
				answer += line
			}
		}
		if code := cmd.ProcessState.ExitCode(); code != 0 {
			answer += fmt.Sprintf("exit code %d\n", code)
		}
		return normaliseCommand(strings.ReplaceAll(answer, endpoint, server.ClientAddr), server)
	})
}

func etcdctl(path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
	return cmd
}

func arguments(line string) []string {
	words := strings.Fields(line)
	for i, word := range words {
		if word == `""` {
			words[i] = ""
		}
	}
	return words
}

var (
	grantedLease = regexp.MustCompile(`^lease ([0-9a-f]{16}) granted`)

	decimalIDs = regexp.MustCompile(`("?(?:cluster_id|member_id|raft_term|raftTerm|raftIndex|raftAppliedIndex|leader|dbSize|dbSizeInUse|hash|ID|id|ClusterID|MemberID|RaftTerm|RaftIndex|RaftAppliedIndex|Leader|DBSize|DBSizeInUse|Hash)"? ?: ?)[1-9]\d*`)
	hexIDs     = regexp.MustCompile(`\b[0-9a-f]{12,16}\b`)
	durations  = regexp.MustCompile(`\b\d+(\.\d+)?(ms|µs|s)\b`)
	statusLine = regexp.MustCompile(`(?m)^(CLIENT|http://CLIENT), ID, (.*)$`)
	hashLine   = regexp.MustCompile(`(?m)^CLIENT, \d+(, |$)`)
	numbers    = regexp.MustCompile(`\b\d+(\.\d+)? ?([kMG]i?B|%)|\b\d+\b`)
)

func normaliseCommand(answer string, server *process.Server) string {
	answer = strings.ReplaceAll(answer, server.ClientAddr, "CLIENT")
	answer = strings.ReplaceAll(answer, server.PeerAddr, "PEER")
	answer = decimalIDs.ReplaceAllString(answer, "${1}#")
	answer = hexIDs.ReplaceAllString(answer, "ID")
	answer = durations.ReplaceAllString(answer, "TIME")
	answer = hashLine.ReplaceAllString(answer, "CLIENT, HASH${1}")
	return statusLine.ReplaceAllStringFunc(answer, func(line string) string {
		// Versions stay; sizes, terms and indexes are every run's own.
		parts := strings.Split(line, ", ")
		for i := range parts {
			if i > 1 && !strings.Contains(parts[i], "3.") {
				parts[i] = numbers.ReplaceAllString(parts[i], "#")
			}
		}
		return strings.Join(parts, ", ")
	})
}
