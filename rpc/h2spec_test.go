package rpc_test

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"testing"

	"github.com/kvorum/kvorum/rpc"
)

// TestH2spec has h2spec try what a client of HTTP/2 can get wrong.
func TestH2spec(t *testing.T) {
	h2spec := os.Getenv("KVORUM_H2SPEC")
	if h2spec == "" {
		t.Skip("KVORUM_H2SPEC names no h2spec to run: make h2spec does")
	}
	server := rpc.New(rpc.Options{ConcurrentStreamsMax: 100})
	server.AnswerAnything()
	host, port, err := net.SplitHostPort(start(t, server))
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), h2spec, "--strict", "--timeout", "5", "-h", host, "-p", port).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte(" 0 skipped, 0 failed")) {
		t.Errorf("%v\n%s", err, out)
	}
}
