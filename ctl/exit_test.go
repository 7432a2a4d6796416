package ctl

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// runCommand executes a command line in this process.
func runCommand(called, stdin string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	root := New(called)
	root.SetArgs(args)
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&errs)
	code = Run(context.Background(), root)
	return code, out.String(), errs.String()
}

func TestExitCodes(t *testing.T) {
	for _, test := range []struct {
		line            string
		stdin           string
		kvorum, etcdctl int
	}{
		{line: "version", kvorum: 0, etcdctl: 0},
		{line: "nosuch", kvorum: 128, etcdctl: 1},
		{line: "get a --nosuch", kvorum: 128, etcdctl: 1},
		{line: "get", kvorum: 128, etcdctl: 128},
		{line: "put a b --lease=zz", kvorum: 128, etcdctl: 128},
		{line: "get a --order=up", kvorum: 4, etcdctl: 4},
		{line: "get a -w yaml", kvorum: 4, etcdctl: 4},
		{line: "compaction x", kvorum: 1, etcdctl: 1},
		{line: "txn", stdin: "nonsense\n\n\n\n", kvorum: 3, etcdctl: 3},
		{line: "txn", stdin: "\n", kvorum: 3, etcdctl: 3},
		{line: "get a --endpoints=127.0.0.1:1 --command-timeout=50ms", kvorum: 2, etcdctl: 1},
		{line: "endpoint health --endpoints=127.0.0.1:1 --command-timeout=50ms", kvorum: 1, etcdctl: 1},
		{line: "endpoint status --endpoints=127.0.0.1:1 --command-timeout=50ms", kvorum: 2, etcdctl: 1},
		{line: "get a --cacert=/no/such/file", kvorum: 128, etcdctl: 128},
	} {
		for called, want := range map[string]int{"kvorum": test.kvorum, Etcdctl: test.etcdctl} {
			code, _, stderr := runCommand(called, test.stdin, strings.Fields(test.line)...)
			if code != want {
				t.Errorf("%s %s: exit code %d, want %d (%s)", called, test.line, code, want, stderr)
			}
			if code != 0 && !strings.HasPrefix(stderr, "Error: ") && !strings.HasPrefix(stderr, "Failed ") &&
				!strings.Contains(stderr, "is unhealthy") {
				t.Errorf("%s %s: does not say what is wrong: %q", called, test.line, stderr)
			}
		}
	}
}

// TestSilenceExplained: a client that gets no answer learns what stands between
// it and the server, in words it can act on.
func TestSilenceExplained(t *testing.T) {
	quiet := log.New(io.Discard, "", 0)
	server := httptest.NewUnstartedServer(nil)
	server.EnableHTTP2 = true
	server.Config.ErrorLog = quiet
	server.StartTLS()
	defer server.Close()
	addr := server.Listener.Addr().String()
	authority := x509.NewCertPool()
	authority.AddCert(server.Certificate())

	strict := httptest.NewUnstartedServer(nil)
	strict.EnableHTTP2 = true
	strict.Config.ErrorLog = quiet
	strict.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	strict.StartTLS()
	defer strict.Close()
	strictAuthority := x509.NewCertPool()
	strictAuthority.AddCert(strict.Certificate())

	plain := httptest.NewUnstartedServer(nil)
	plain.Config.ErrorLog = quiet
	plain.Start()
	defer plain.Close()

	peers := httptest.NewUnstartedServer(http.NotFoundHandler())
	peers.Config.Protocols = new(http.Protocols)
	peers.Config.Protocols.SetUnencryptedHTTP2(true)
	peers.Start()
	defer peers.Close()

	for _, test := range []struct {
		endpoint string
		config   *tls.Config
		want     string
	}{
		{"127.0.0.1:1", nil, "connection refused"},
		{addr, nil, "speaks TLS: use --endpoints=https://" + addr + " and add --cacert"},
		{"http://" + addr, nil, "speaks TLS"},
		{"https://" + addr, nil, "signed by an authority unknown here: add --cacert"},
		{addr, &tls.Config{}, "signed by an authority unknown here"},
		{addr, &tls.Config{RootCAs: authority, ServerName: "elsewhere"}, "is for other names"},
		{"https://" + addr, &tls.Config{RootCAs: authority}, ""},
		{strict.Listener.Addr().String(), &tls.Config{RootCAs: strictAuthority}, "add --cert FILE --key FILE"},
		{"https://" + plain.Listener.Addr().String(), nil, "does not speak TLS"},
		{plain.Listener.Addr().String(), nil, ""},
		{"unix:///no/such/socket", nil, "no such file"},
		{"127.0.0.1", nil, "127.0.0.1 is no address of a server: write HOST:PORT"},
		{"tcp://127.0.0.1:2379", nil, "write HOST:PORT, http://HOST:PORT"},
	} {
		hint, open := knock(context.Background(), test.endpoint, test.config, patience)
		if !strings.Contains(hint, test.want) || (test.want == "") != (hint == "") {
			t.Errorf("%s: got %q, want %q", test.endpoint, hint, test.want)
		}
		if open != (test.want == "") {
			t.Errorf("%s: open is %v", test.endpoint, open)
		}
	}

	// What answers speaks HTTP, but is no server for clients: another member's port.
	code, _, stderr := runCommand("kvorum", "", "get", "a", "--endpoints="+peers.Listener.Addr().String())
	if code != int(exitError) || !strings.Contains(stderr, "serves no clients") {
		t.Errorf("port for members: exit code %d, %s", code, stderr)
	}

	// The whole way, with the authority in a file.
	file := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(file, block, 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr = runCommand("kvorum", "", "get", "a", "--endpoints="+addr, "--command-timeout=300ms")
	if code != int(exitBadConnection) || !strings.Contains(stderr, "speaks TLS") {
		t.Errorf("without --cacert: exit code %d, %s", code, stderr)
	}
	code, _, stderr = runCommand("kvorum", "", "get", "a", "--endpoints=https://"+addr, "--cacert="+file, "--command-timeout=300ms")
	if code != int(exitError) || strings.Contains(stderr, "cacert") {
		t.Errorf("with --cacert: exit code %d, %s", code, stderr)
	}
}
