package compat

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kvorum/kvorum/test/compat/process"
)

// TestV2Random sends the same random requests to kvorum and to an etcd 3.4, and
// wants the same answers, but for where indexes begin.
func TestV2Random(t *testing.T) {
	if rewriting() {
		t.Skip("records nothing")
	}
	etcd := process.Options{Binary: etcd34(t), Flags: []string{"--enable-v2"}}
	const requests = 3000
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := v2Chance{rand.New(rand.NewPCG(seed, 0))}

	var servers []*v2Script
	for _, o := range []process.Options{{}, etcd} {
		s := &v2Script{server: process.Start(t, o)}
		s.awaitVersion(t)
		defer s.hangUp()
		s.base = s.index(t)
		servers = append(servers, s)
	}
	for n := range requests {
		line := r.request(servers[0].index(t) - servers[0].base)
		var answers []string
		for _, s := range servers {
			answer, _ := s.ask(t, line, true)
			answers = append(answers, s.normalise(answer))
		}
		if diff := cmp.Diff(answers[1], answers[0]); diff != "" {
			t.Fatalf("request %d of seed %d, %s\n-etcd +kvorum:\n%s", n, seed, line, diff)
		}
	}
}

// v2Chance makes requests that are likely to meet.
type v2Chance struct{ *rand.Rand }

func (r v2Chance) of(words ...string) string { return words[r.IntN(len(words))] }

// path names no hidden node: of those etcd tells when it looks back, though not
// when they happen.
func (r v2Chance) path() string {
	return r.of("/a", "/a", "/b", "/a/b", "/a/b", "/a/c", "/a/b/c", "/a-b", "/a/b/c/d/e", "/")
}

// request is a line for v2Script; passed is how far the index is from its base.
func (r v2Chance) request(passed int64) string {
	index := fmt.Sprintf("<i+%d>", max(0, passed-r.Int64N(6)))
	compare := r.of("prevValue=x", "prevValue=y", "prevIndex="+index, "prevValue=x&prevIndex="+index)
	write := r.of("", "value=x", "value=x", "value=y", "value=z&ttl=1000", "ttl=1000", "ttl=1000&refresh=true", "dir=true", "dir=true&ttl=1000", "dir=true&value=x")
	node := "/v2/keys" + r.path()
	switch r.IntN(14) {
	case 0, 1, 2:
		return "PUT " + node + " " + write
	case 3:
		return "PUT " + node + "?prevExist=false " + write
	case 4:
		return "PUT " + node + "?prevExist=true " + write
	case 5, 6:
		return "PUT " + node + "?" + compare + " " + write
	case 7:
		return "POST " + node + " " + write
	case 8, 9:
		return "DELETE " + node + "?" + r.of("", "dir=true", "recursive=true", "dir=true&recursive=true")
	case 10:
		return "DELETE " + node + "?" + compare
	case 11, 12:
		return "GET " + node + "?sorted=true&" + r.of("recursive=false", "recursive=true", "quorum=true")
	}
	if passed == 0 {
		return "GET " + node
	}
	// The last of what has happened may be a refresh, which is not told.
	return "GET /v2/keys?wait=true&recursive=true&waitIndex=" + fmt.Sprintf("<i+%d>", 1+r.Int64N(max(1, passed-20)))
}
