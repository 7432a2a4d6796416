package node

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kvorum/kvorum/config"
	"github.com/kvorum/kvorum/state"
)

func TestWhoMayJoin(t *testing.T) {
	members := []state.Member{
		{ID: 0xa, Name: "a", PeerURLs: []string{"http://10.0.0.1:2380"}},
		{ID: 0xb, PeerURLs: []string{"http://b:2380", "http://10.0.0.2:2380"}, Learner: true},
	}
	local := []state.Member{{ID: 0xa, Name: "a", PeerURLs: []string{"http://localhost:2380"}}}
	for _, tt := range []struct {
		story   string
		wish    wish
		members []state.Member
		token   string
		want    string // of the objection; empty: none
	}{
		{"a new one", wish{"c", []string{"http://c:2380"}, ""}, members, "", ""},
		{"one that was added and never ran", wish{"b", []string{"http://10.0.0.2:2380", "http://b:2380"}, ""}, members, "", ""},
		{"one that has lost its directory", wish{"a", []string{"http://10.0.0.1:2380"}, ""}, members, "", "has run at http://10.0.0.1:2380 before"},
		{"one with the name of another", wish{"a", []string{"http://c:2380"}, ""}, members, "", "the name a belongs to member a"},
		{"one that listens for itself alone", wish{"c", []string{"http://[::1]:2380"}, ""}, members, "", "nobody on another machine can reach this member"},
		{"all on one machine", wish{"c", []string{"http://127.0.0.1:3380"}, ""}, local, "", ""},
		{"a first member that listens for itself alone", wish{"c", []string{"http://c:2380"}, ""}, local, "", "member a is known at http://localhost:2380"},
		{"the same token", wish{"c", []string{"http://c:2380"}, "x"}, members, "x", ""},
		{"no token in particular", wish{"c", []string{"http://c:2380"}, ""}, members, "x", ""},
		{"another token", wish{"c", []string{"http://c:2380"}, "y"}, members, "x", "another --initial-cluster-token"},
	} {
		got := tt.wish.objection(tt.members, tt.token)
		if got == "" && tt.want != "" || !strings.Contains(got, tt.want) || got != "" && tt.want == "" {
			t.Errorf("%s: got %q, want %q", tt.story, got, tt.want)
		}
	}
}

func TestJoiningNobodySaysWhatToLookAt(t *testing.T) {
	dial := peerDialer(nil)
	e := &enlisting{
		wish: wish{Name: "c", PeerURLs: []string{"http://127.0.0.1:1"}}, addresses: []string{"127.0.0.1:1"},
		patience: time.Nanosecond, log: slog.New(slog.DiscardHandler),
		peerDial: dial, clientDial: dial, peerScheme: "http", clientScheme: "http",
	}
	_, err := e.run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "no member can be reached: see that one runs at an address of --join") {
		t.Errorf("joining nobody: %v", err)
	}
}

// TestToldToEndWhileItWaitsToJoin: that is an end like any other.
func TestToldToEndWhileItWaitsToJoin(t *testing.T) {
	s, _, err := config.Parse([]string{
		"--name=c", "--data-dir=" + t.TempDir(), "--join=127.0.0.1:1", "--listen-peer-urls=http://127.0.0.1:0",
		"--listen-client-urls=http://127.0.0.1:0", "--advertise-client-urls=http://127.0.0.1:0",
	}, nil, "kvorum")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	waits := &awaited{text: "; ask http://127.0.0.1:1 as a client", then: cancel}
	if err := Run(ctx, s, NewTerminalLogger(waits, slog.LevelInfo)); err != nil {
		t.Errorf("ended with %v", err)
	}
	if ctx.Err() != context.Canceled {
		t.Error("it never said what it waits for")
	}
}

// awaited is a log in which one text has a consequence.
type awaited struct {
	text string
	then func()
	once sync.Once
}

func (a *awaited) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte(a.text)) {
		a.once.Do(a.then)
	}
	return len(line), nil
}
