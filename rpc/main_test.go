package rpc_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/kvorum/kvorum/test/leak"
)

func TestMain(m *testing.M) {
	if kind := os.Getenv(benchServer); kind != "" {
		fmt.Fprintln(os.Stderr, serveBench(kind))
		os.Exit(1)
	}
	leak.Main(m)
}
