package compat

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
	"github.com/kvorum/kvorum/test/compat/process"
)

// An etcdctl of 3.4, told to speak v2, says the same of kvorum as of etcd 3.4.
func TestV2Etcdctl(t *testing.T) {
	if os.Getenv(envClients) == "" {
		t.Skipf("needs Debian's etcd-client: run make compat, or set %s=1", envClients)
	}
	path, err := exec.LookPath("etcdctl")
	if err != nil {
		t.Skip("etcdctl 3.4 is not installed: apt-get install etcd-client")
	}
	if out, err := exec.Command(path, "version").CombinedOutput(); err != nil || !strings.Contains(string(out), "API version: 3.4") {
		t.Skipf("%s is not etcdctl 3.4: %s (%v)", path, out, err)
	}
	t.Run("kvorum", func(t *testing.T) {
		if rewriting() {
			t.Skip("what etcdctl says is recorded of etcd")
		}
		runV2Etcdctl(t, path, process.Start(t, process.Options{}))
	})
	t.Run("etcd", func(t *testing.T) {
		runV2Etcdctl(t, path, process.Start(t, process.Options{Binary: etcd34(t), Flags: []string{"--enable-v2"}}))
	})
}

// runV2Etcdctl runs a script of two commands: run runs each line, watch the
// second line, once the first one waits.
func runV2Etcdctl(t *testing.T, path string, server *process.Server) {
	command := func(line string) *exec.Cmd {
		cmd := exec.Command(path, append([]string{"--endpoints", server.ClientURL()}, strings.Fields(line)...)...)
		cmd.Env = append(os.Environ(), "ETCDCTL_API=2")
		return cmd
	}
	datadriven.RunTest(t, "testdata/etcdctl/v2", func(t *testing.T, d *datadriven.TestData) string {
		var out strings.Builder
		switch d.Cmd {
		case "run":
			for line := range strings.Lines(d.Input) {
				text, err := command(line).CombinedOutput()
				fmt.Fprintf(&out, "%s\n%s", strings.TrimSuffix(line, "\n"), indent(text))
				if err != nil {
					fmt.Fprintf(&out, "  (%v)\n", err)
				}
			}
		case "watch":
			waits, change, _ := strings.Cut(d.Input, "\n")
			fmt.Fprintf(&out, "%s\n%s", waits, indent(watchWithEtcdctl(t, server, command(waits), command(change))))
		default:
			d.Fatalf(t, "unknown command %q", d.Cmd)
		}
		answer := normaliseV2Command(out.String(), server)
		if rewriting() {
			return answer
		}
		if diff := cmp.Diff(lines(d.Expected), lines(answer)); diff != "" {
			t.Errorf("%s\n-etcd +this server:\n%s", d.Pos, diff)
		}
		return d.Expected
	})
}

// watchWithEtcdctl starts a command that waits, makes the change, and returns
// the first thing that the command says. exec-watch goes on waiting.
func watchWithEtcdctl(t *testing.T, server *process.Server, waits, change *exec.Cmd) []byte {
	said := &saying{news: make(chan struct{}, 1)}
	waits.Stdout, waits.Stderr = said, said
	if err := waits.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = waits.Wait() // it may be killed
	}()
	awaitWatcher(t, server)
	if text, err := change.CombinedOutput(); err != nil {
		t.Fatalf("%s (%v)", text, err)
	}
	select {
	case <-ended:
	case <-said.news:
		// What exec-watch runs says all in one write.
	case <-time.After(v2Patience):
		t.Error("it was told nothing")
	}
	_ = waits.Process.Kill() // it may have ended
	<-ended
	return said.text()
}

// awaitWatcher returns when somebody waits for a change.
func awaitWatcher(t *testing.T, server *process.Server) {
	s := &v2Script{server: server}
	defer s.hangUp()
	for deadline := time.Now().Add(v2Patience); ; time.Sleep(10 * time.Millisecond) {
		body, _ := s.ask(t, "GET /v2/stats/store", true)
		if !strings.Contains(body, `\"watchers\":0}`) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody waits")
		}
	}
}

type saying struct {
	news chan struct{}
	mu   struct {
		sync.Mutex
		bytes.Buffer
	}
}

func (s *saying) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.news <- struct{}{}:
	default: // told already
	}
	return s.mu.Write(p)
}

func (s *saying) text() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.mu.Bytes())
}

func indent(text []byte) string {
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		if strings.TrimSpace(line) != "" {
			b.WriteString("  " + strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	return b.String()
}

func normaliseV2Command(text string, server *process.Server) string {
	text = strings.ReplaceAll(text, server.ClientAddr, "CLIENT")
	text = strings.ReplaceAll(text, server.PeerAddr, "PEER")
	text = expirations.ReplaceAllString(text, `"expiration":"TIME"`)
	text = v2CommandIndexes.ReplaceAllString(text, "${1}#")
	return memberIDs.ReplaceAllString(text, "ID")
}

var v2CommandIndexes = regexp.MustCompile(`((?:Created-|Modified-|  )Index: |(?:created|modified)Index":|/0{8}|\[|Error: \d+: .* \[)\d+\]?`)
