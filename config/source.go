package config

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// given is one setting as somebody wrote it.
type given struct {
	name   string // of the setting, as written
	text   string
	items  []string // of a list in a file; nil when text counts
	number bool     // a bare number in a file
	from   string   // who wrote it, for notes and errors
	rank   int
}

const (
	rankFile = iota
	rankEtcdVariable
	rankVariable
	rankFlag
)

func (g given) setOn(v value) error {
	switch {
	case g.items != nil && v.setList != nil:
		return v.setList(g.items)
	case g.items != nil:
		return v.set(strings.Join(g.items, ","))
	case g.number && v.nanos:
		return v.set(g.text + "ns")
	}
	return v.set(g.text)
}

// refuse words err as Go's flag package words it, because scripts look for
// that text.
func (g given) refuse(err error) error {
	switch g.rank {
	case rankFlag:
		return usage("invalid value %q for flag -%s: %v", g.text, g.name, err)
	case rankFile:
		return fmt.Errorf("%s: invalid value %q: %w", g.from, strings.Join(append(g.items, g.text), ","), err)
	}
	return usage("invalid value %q for variable %s: %v", g.text, g.from, err)
}

// readFlags cuts the arguments into settings without looking into values. The
// standard library's parser takes one dash or two, as etcd's does.
func (p *parser) readFlags(args []string) ([]given, error) {
	var all []given
	var version bool
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	fs.BoolVar(&version, "version", false, "")
	add := func(name string, isBool bool) {
		record := func(text string) error {
			all = append(all, given{name: name, text: text, from: "--" + name, rank: rankFlag})
			return nil
		}
		if isBool {
			fs.BoolFunc(name, "", record)
		} else {
			fs.Func(name, "", record)
		}
	}
	add("config-file", false)
	for _, row := range p.rows() {
		add(row.name, row.value.isBool)
	}
	for name, l := range legacies {
		add(name, l.isBool)
	}

	if err := fs.Parse(args); err != nil {
		if err == flag.ErrHelp {
			return nil, ErrHelp
		}
		if unknown, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); ok {
			return nil, usage("flag provided but not defined: -%s%s", unknown, suggest(unknown, p.names()))
		}
		return nil, usage("%v", err)
	}
	if version {
		return nil, ErrVersion
	}
	if fs.NArg() > 0 {
		return nil, usage("%q is not a flag: settings start with two dashes", fs.Arg(0))
	}
	return all, nil
}

// readVariables takes KVORUM_* and ETCD_* in order of rank. Variables that
// mean nothing are only noted: a pod next to a service called "etcd" finds
// ETCD_PORT and the like in its environment, and images set ETCD_VERSION.
func (p *parser) readVariables(env []string) []given {
	known := make(map[string]bool)
	for _, name := range p.names() {
		known[name] = true
	}
	var all []given
	for _, prefix := range []struct {
		text string
		rank int
	}{{"ETCD_", rankEtcdVariable}, {"KVORUM_", rankVariable}} {
		for _, pair := range slices.Sorted(slices.Values(env)) {
			variable, text, _ := strings.Cut(pair, "=")
			key, ok := strings.CutPrefix(variable, prefix.text)
			if !ok || text == "" {
				continue
			}
			name := strings.ToLower(strings.ReplaceAll(key, "_", "-"))
			if known[name] {
				all = append(all, given{name: name, text: text, from: variable, rank: prefix.rank})
			} else if !isNoise(key) {
				p.note(slog.LevelWarn, "variable %s sets nothing%s", variable, suggest(name, p.names()))
			}
		}
	}
	return all
}

// isNoise tells whether a variable was put there by somebody who did not mean
// us: Kubernetes for a service of that name, or an image about itself.
func isNoise(key string) bool {
	switch key {
	case "VERSION", "UNSUPPORTED_ARCH", "PORT", "SERVICE_HOST", "SERVICE_PORT":
		return true
	}
	return strings.HasPrefix(key, "PORT_") || strings.HasPrefix(key, "SERVICE_PORT_")
}

// names returns all that may be given, for lookups and suggestions.
func (p *parser) names() []string {
	all := []string{"config-file"}
	for _, row := range p.rows() {
		all = append(all, row.name)
	}
	return slices.AppendSeq(all, maps.Keys(legacies))
}

func fileNamed(flags, variables []given) string {
	file := ""
	for _, g := range slices.Concat(variables, flags) {
		if g.name == "config-file" {
			file = g.text
		}
	}
	return file
}

// readFile takes etcd's YAML (or JSON, which is YAML). Keys are the flags'
// names, and etcd's nested blocks.
func (p *parser) readFile(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("config: --config-file: %w", err)
	}
	return p.parseFile(path, data)
}

func (p *parser) parseFile(path string, data []byte) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("config: %s: %w", path, err)
	}
	if doc.Kind == 0 || doc.Content[0].Tag == "!!null" {
		return nil // empty, or nothing but comments
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		return fmt.Errorf("config: %s:%d: want settings, one a line: \"name: value\"", path, top.Line)
	}
	keys := make(map[string]string) // key in the file → name of the setting
	for _, name := range p.names() {
		keys[name] = name
	}
	blocks := make(map[string]bool)
	for _, row := range p.rows() {
		for _, key := range row.keys {
			keys[key] = row.name
			block, _, _ := strings.Cut(key, ".")
			blocks[block] = true
		}
	}
	r := fileReader{p, path, keys, blocks}
	r.mapping("", top)
	return nil
}

type fileReader struct {
	p      *parser
	path   string
	keys   map[string]string
	blocks map[string]bool
}

// mapping reads one level; within names the block we are in, with its dot.
func (r *fileReader) mapping(within string, m *yaml.Node) {
	for i := 0; i+1 < len(m.Content); i += 2 {
		key, node := m.Content[i], m.Content[i+1]
		if node.Kind == yaml.AliasNode {
			node = node.Alias
		}
		full := within + key.Value
		at := fmt.Sprintf("%s:%d: %s", r.path, key.Line, full)
		name, known := r.keys[full]
		switch {
		case within == "" && r.blocks[full] && node.Kind == yaml.MappingNode:
			r.mapping(full+".", node)
		case within == "" && r.blocks[full] && node.Tag == "!!null":
		case !known:
			r.p.note(slog.LevelWarn, "%s sets nothing%s", at, suggest(full, sortedKeys(r.keys)))
		case name == "config-file":
			r.p.note(slog.LevelWarn, "%s: a file cannot name another one; passed over", at)
		case node.Tag == "!!null" || node.Kind == yaml.ScalarNode && node.Value == "":
			// Samples list every key and leave most of them empty.
		case node.Kind == yaml.ScalarNode:
			r.p.give(given{name: name, text: plainNumber(node), number: node.Tag == "!!int", from: at, rank: rankFile})
		case node.Kind == yaml.SequenceNode:
			items := []string{}
			for _, item := range node.Content {
				items = append(items, item.Value)
			}
			r.p.give(given{name: name, items: items, from: at, rank: rankFile})
		default:
			r.p.note(slog.LevelWarn, "%s: want a value, not a block; passed over", at)
		}
	}
}

// plainNumber undoes YAML's other ways to write whole numbers (1_000, 0x10).
func plainNumber(node *yaml.Node) string {
	var n int64
	if node.Tag == "!!int" && node.Decode(&n) == nil {
		return fmt.Sprint(n)
	}
	return node.Value
}

// homeOf returns where data goes when nobody says: beside the caller for
// etcd, as ever; for kvorum where the system keeps state.
func homeOf(env []string, called string) func(name string) (string, error) {
	variable := func(key string) string {
		for _, pair := range env {
			if text, ok := strings.CutPrefix(pair, key+"="); ok {
				return text
			}
		}
		return ""
	}
	return func(name string) (string, error) {
		if filepath.Base(called) == "etcd" {
			return name + ".etcd", nil
		}
		if state := variable("XDG_STATE_HOME"); filepath.IsAbs(state) {
			return filepath.Join(state, "kvorum", name), nil
		}
		if os.Geteuid() == 0 {
			return filepath.Join("/var/lib/kvorum", name), nil
		}
		if home := variable("HOME"); filepath.IsAbs(home) {
			return filepath.Join(home, ".local/state/kvorum", name), nil
		}
		return "", fmt.Errorf("config: no home directory to keep data in: give --data-dir")
	}
}

// suggest returns ": did you mean X?" when a known name is close enough to
// what was written.
func suggest[S ~string](written string, known []S) string {
	best, least := "", 1+min(len(written)/3, 4)
	for _, name := range known {
		if d := distance(written, string(name), least); d < least {
			best, least = string(name), d
		}
	}
	if best == "" {
		return ""
	}
	return ": did you mean " + best + "?"
}

// distance counts the letters to change, add or drop to turn a into b, and
// gives up at most.
func distance(a, b string, most int) int {
	if len(a)-len(b) >= most || len(b)-len(a) >= most {
		return most
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// Time a host name may take to resolve when settings are compared.
const lookupTimeout = 5 * time.Second
