package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/grpc/grpclog"

	"github.com/kvorum/kvorum/node"
)

// A client that hangs up leaves no trace, unless somebody looks for it.
func TestComplaintsOfLibrariesAreNoErrors(t *testing.T) {
	for _, level := range []slog.Level{slog.LevelInfo, slog.LevelDebug} {
		var out bytes.Buffer
		grpclog.SetLoggerV2(newGRPCLog(node.NewLogger(&out, level)))
		grpclog.Errorf("Failed to start streaming: %v", "canceled")
		grpclog.Warning("a client ", "is gone")
		grpclog.Info("all is well")
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if level == slog.LevelInfo {
			if out.Len() > 0 {
				t.Errorf("logged %s", &out)
			}
			continue
		}
		if len(lines) != 2 || !strings.Contains(lines[0], `"level":"debug"`) || !strings.Contains(lines[0], `"msg":"Failed to start streaming: canceled"`) ||
			!strings.Contains(lines[1], `"msg":"a client is gone"`) {
			t.Errorf("logged %s", &out)
		}
	}
}
