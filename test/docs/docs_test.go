// Package docs runs what the documentation tells readers to type.
package docs

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kvorum/kvorum/test/compat/process"
)

func TestMain(m *testing.M) {
	code := m.Run()
	process.Cleanup()
	os.Exit(code)
}

// A script is a block of shell and what it prints.
type script struct{ title, shell, prints string }

var fence = regexp.MustCompile("(?ms)^## ([^\n]*)$|^```(\\w+)\n(.*?)^```$")

// scripts returns the blocks of a document that print something.
func scripts(t *testing.T, path string) (all []script) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var s script
	for _, m := range fence.FindAllStringSubmatch(string(text), -1) {
		switch title, language, body := m[1], m[2], m[3]; {
		case title != "":
			s = script{title: title}
		case language == "sh":
			s.shell = body
		case s.shell != "":
			s.prints = body
			all = append(all, s)
			s.shell = ""
		}
	}
	return all
}

// varying is what differs from run to run.
var varying = regexp.MustCompile(`(Index"|index"|ttl"|expiration"|clientURLs"):("[^"]*"|\d+|\[[^]]*\])`)

func TestCurl(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is not installed")
	}
	server := process.Start(t, process.Options{Flags: []string{"--enable-v2=true"}})
	all := scripts(t, "../../docs/curl.md")
	if len(all) < 12 {
		t.Fatalf("found %d scripts", len(all))
	}
	for _, s := range all {
		t.Run(s.title, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, "sh", "-eu")
			cmd.Dir = t.TempDir()
			cmd.Stdin = strings.NewReader("E=" + server.ClientURL() + "/v2/keys\n" + s.shell)
			cmd.Stderr = os.Stderr
			cmd.WaitDelay = time.Second // for what it has left in the background
			out, err := cmd.Output()
			if err != nil {
				t.Error(err)
			}
			got := varying.ReplaceAllString(string(out), "$1:…")
			if diff := cmp.Diff(varying.ReplaceAllString(s.prints, "$1:…"), got); diff != "" {
				t.Errorf("-as documented +printed\n%s", diff)
			}
		})
	}
}
