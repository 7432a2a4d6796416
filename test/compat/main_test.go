package compat

import (
	"os"
	"testing"

	"github.com/kvorum/kvorum/test/compat/process"
)

func TestMain(m *testing.M) {
	if os.Getenv(envSelf) != "" {
		os.Exit(beEtcdctl())
	}
	code := m.Run()
	process.Cleanup()
	os.Exit(code)
}
