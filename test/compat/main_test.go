package compat

import (
	"os"
	"testing"

	"github.com/kvorum/kvorum/test/compat/process"
)

func TestMain(m *testing.M) {
	code := m.Run()
	process.Cleanup()
	os.Exit(code)
}
