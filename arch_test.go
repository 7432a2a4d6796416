package kvorum

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/kvorum/kvorum"

// arrows says who may import whom among our own packages: a line "a < b, c"
// lets b and c import a, and whatever a's own line lets a import stays with a:
// nothing is inherited. A package with no line on the right of a name may not
// import it. "x..." means x and all below it.
//
// Adding an arrow is a decision about the architecture: it belongs in
// ARCHITECTURE.md in the same commit. Do not add one to make a build pass.
const arrows = `
fault    < state..., replica, peer, watch, leader, rpc, api..., node, listen, internal/gateway, proxy...
metric   < state..., replica..., wal, peer, watch, leader, rpc, api..., node, listen, proxy...
internal/wire < state, api...
internal/mutant < state..., replica..., wal, watch, leader
internal/histogram < ctl/internal/load
internal/lockpb     < api/internal/gate, api/internal/v3, internal/gateway, proxy, proxy/internal/namespace
internal/electionpb < api/internal/gate, api/internal/v3, internal/gateway, proxy, proxy/internal/namespace
internal/gateway < api, proxy

state/internal/table < state/internal/mvcc, state/internal/lease, state/internal/auth, state/internal/member, state/internal/alarm, state
state/internal/ordered < state/internal/lease, state/internal/tree
state/internal/mvcc  < state, state/internal/tree
state/internal/tree  < state
state/internal/lease < state
state/internal/auth  < state
state/internal/member < state
state/internal/alarm < state
state                < watch, leader, api..., node

wal                      < replica/internal/raftlog, replica, node
replica/internal/raftlog < replica
replica                  < node
peer                     < node
watch                    < api..., node
leader                   < node

rpc    < api..., node, proxy
web    < api..., node
listen < node, peer, proxy, proxy/internal/upstream
api/internal/gate    < api...
api/internal/v3      < api
api/internal/v2      < api
api/internal/token   < api...
api/internal/console < api
api/internal/ops     < api...
api    < node
config < node, dev, cmd/kvorum
node   < dev, cmd/kvorum
dev    < cmd/kvorum
proxy/internal/upstream  < proxy
proxy/internal/namespace < proxy, proxy/internal/merge
proxy/internal/merge     < proxy
proxy  < cmd/kvorum
ctl    < cmd/kvorum
ctl/internal/load < ctl
`

// walls lists what a package must never import, and why.
var walls = []struct {
	packages string // "x..." means x and all below
	never    string // import paths, "p..." means p and all below
	because  string
}{
	{"state...", "net... os... time context math/rand... crypto/rand log... google.golang.org/grpc... go.etcd.io/raft/... github.com/prometheus/...",
		"I2: apply is a function of state and entry; clocks, chance, files and the network live further up"},
	{"replica", module + "/state... google.golang.org/grpc... github.com/cockroachdb/pebble/v2",
		"replica orders commands without knowing what they mean"},
	{"wal", "go.etcd.io/raft/... " + module + "/state...",
		"the log keeps bytes; it knows neither raft nor the state"},
	{"api...", "go.etcd.io/raft/... github.com/cockroachdb/pebble/... " + module + "/replica... " + module + "/wal",
		"api asks through the interfaces that node meets; how agreement is reached is not its business"},
	{"watch", "go.etcd.io/raft/... google.golang.org/grpc... " + module + "/replica...", "a listener's place in history needs no network and no log"},
	{"leader", "go.etcd.io/raft/... google.golang.org/grpc... " + module + "/replica...", "duties propose through a function they are given"},
	{"proxy...", module + "/state... " + module + "/replica... " + module + "/node... " + module + "/api...", "a proxy is a client like any other, and asks no other way"},
	{"ctl...", module + "/state... " + module + "/replica... " + module + "/node... " + module + "/api...", "the command line is a client like any other"},
}

// pebbleRooms may import Pebble itself; vfsRooms only its file system.
var (
	pebbleRooms = []string{"state/internal/table"}
	vfsRooms    = []string{"wal", "node", "replica", "replica/internal/raftlog", "state"}
)

type pkg struct {
	ImportPath string
	Dir        string
	Doc        string
	GoFiles    []string
	Imports    []string
}

func (p pkg) name() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
}

func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,Doc,GoFiles,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func matches(pattern, path string) bool {
	if base, below := strings.CutSuffix(pattern, "..."); below {
		base = strings.TrimSuffix(base, "/")
		return path == base || strings.HasPrefix(path, base+"/")
	}
	return path == pattern
}

func matchesAny(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, path) })
}

// allowed turns the arrows into importers by imported package.
func allowed(t *testing.T) map[string][]string {
	t.Helper()
	rules := map[string][]string{}
	for line := range strings.Lines(arrows) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		low, high, found := strings.Cut(line, "<")
		if !found {
			t.Fatalf("arrow without <: %q", line)
		}
		for importer := range strings.SplitSeq(high, ",") {
			rules[strings.TrimSpace(low)] = append(rules[strings.TrimSpace(low)], strings.TrimSpace(importer))
		}
	}
	return rules
}

func TestArrows(t *testing.T) {
	rules := allowed(t)
	for _, p := range packages(t) {
		if matchesAny([]string{"test...", "examples..."}, p.name()) {
			continue // they stand outside and may use every door
		}
		for _, imported := range p.Imports {
			target, own := strings.CutPrefix(imported, module+"/")
			if !own {
				continue
			}
			if !matchesAny(rules[target], p.name()) {
				t.Errorf("%s imports %s: no arrow allows it (arch_test.go, arrows)", p.name(), target)
			}
		}
	}
}

func TestWalls(t *testing.T) {
	for _, p := range packages(t) {
		for _, wall := range walls {
			if !matches(wall.packages, p.name()) {
				continue
			}
			for _, imported := range p.Imports {
				if matchesAny(strings.Fields(wall.never), imported) {
					t.Errorf("%s imports %s: %s", p.name(), imported, wall.because)
				}
			}
		}
		outside := matchesAny([]string{"test..."}, p.name())
		for _, imported := range p.Imports {
			switch {
			case outside || !strings.HasPrefix(imported, "github.com/cockroachdb/pebble/"):
			case strings.HasPrefix(imported, "github.com/cockroachdb/pebble/v2/vfs"):
				if !slices.Contains(vfsRooms, p.name()) && !slices.Contains(pebbleRooms, p.name()) {
					t.Errorf("%s imports %s: files are touched by wal, state and node alone", p.name(), imported)
				}
			case !slices.Contains(pebbleRooms, p.name()):
				t.Errorf("%s imports %s: only the table knows what it is made of", p.name(), imported)
			}
		}
	}
}

// TestStateIsSequential keeps goroutines and the randomness of select out of
// ring 1 (I2).
func TestStateIsSequential(t *testing.T) {
	for _, p := range packages(t) {
		if !matches("state...", p.name()) {
			continue
		}
		for _, file := range p.GoFiles {
			fset := token.NewFileSet()
			parsed, err := parser.ParseFile(fset, filepath.Join(p.Dir, file), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(parsed, func(n ast.Node) bool {
				switch n.(type) {
				case *ast.GoStmt:
					t.Errorf("%s: go statement in state (I2)", fset.Position(n.Pos()))
				case *ast.SelectStmt:
					t.Errorf("%s: select statement in state (I2)", fset.Position(n.Pos()))
				}
				return true
			})
		}
	}
}

func TestEveryPackageHasADoc(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no package doc", p.name())
		}
	}
}

// TestTheWallsStand breaks the rules on paper and wants to be told.
func TestTheWallsStand(t *testing.T) {
	rules := allowed(t)
	for _, forbidden := range [][2]string{
		{"state/internal/mvcc", "state/internal/lease"}, // siblings never meet
		{"state", "watch"},
		{"replica", "state"},
		{"api/internal/v3", "node"},
		{"ctl", "state"},
		{"wal", "replica"},
	} {
		if matchesAny(rules[forbidden[1]], forbidden[0]) {
			t.Errorf("%s may import %s", forbidden[0], forbidden[1])
		}
	}
	if !matches("net...", "net/http") || matches("net...", "network") || !matches("state...", "state") {
		t.Error("patterns do not match as written")
	}
}
