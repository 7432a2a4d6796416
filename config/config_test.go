package config

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// TestScripts reads testdata. Each "parse" takes one argument, variable or,
// below a line "file:", one line of the configuration file per line; it prints
// the settings asked for by show=, the notes and the error.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		if strings.HasSuffix(path, ".yml") {
			return
		}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd != "parse" {
				d.Fatalf(t, "unknown command %s", d.Cmd)
			}
			return runParse(t, d)
		})
	})
}

func runParse(t *testing.T, d *datadriven.TestData) string {
	called := "etcd"
	d.MaybeScanArgs(t, "called", &called)
	var args, env []string
	settled, file, hasFile := strings.Cut(d.Input, "file:\n")
	for line := range strings.Lines(settled) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "ETCD_"), strings.HasPrefix(line, "KVORUM_"), strings.HasPrefix(line, "HOME="), strings.HasPrefix(line, "XDG_"):
			env = append(env, line)
		case line != "":
			args = append(args, line)
		}
	}
	dir := t.TempDir()
	if hasFile {
		name := filepath.Join(dir, "c.yml")
		if err := os.WriteFile(name, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"--config-file", name}, args...)
	}

	s := new(Server)
	p := newParser(s, env, called)
	p.address = func(...string) (string, error) { return "198.51.100.7", nil }
	err := p.parse(s, args, env)

	var b strings.Builder
	rows := rows(settings(s))
	for _, arg := range d.CmdArgs {
		if arg.Key != "show" || err != nil {
			continue
		}
		for _, name := range arg.Vals {
			i := slices.IndexFunc(rows, func(r setting) bool { return r.name == name })
			if i < 0 {
				d.Fatalf(t, "no setting is called %s", name)
			}
			fmt.Fprintf(&b, "%s: %v\n", name, rows[i].value.show())
		}
	}
	for _, n := range p.notes {
		fmt.Fprintf(&b, "%s: %s\n", strings.ToLower(n.Level.String()), n.Text)
	}
	var misuse *UsageError
	switch {
	case errors.As(err, &misuse):
		fmt.Fprintf(&b, "usage: %v\n", err)
	case err != nil:
		fmt.Fprintf(&b, "refused: %v\n", err)
	}
	return strings.ReplaceAll(b.String(), dir+"/", "")
}

func TestEveryDefaultIsWithinItsRules(t *testing.T) {
	s, notes, err := Parse(nil, nil, "etcd")
	if err != nil {
		t.Fatal(err)
	}
	if len(notes) != 0 {
		t.Errorf("defaults are worth no note, got %v", notes)
	}
	if got, want := s.InitialCluster.String(), "default=http://localhost:2380"; got != want {
		t.Errorf("initial cluster %q, want %q", got, want)
	}
	if got, want := s.DataDir, "default.etcd"; got != want {
		t.Errorf("data dir %q, want %q", got, want)
	}
}

func TestTableHoldsEachNameOnce(t *testing.T) {
	seen := make(map[string]bool)
	for _, row := range rows(settings(new(Server))) {
		for _, name := range append([]string{row.name}, row.keys...) {
			if seen[name] {
				t.Errorf("%s stands twice in the table", name)
			}
			seen[name] = true
		}
		if row.help == "" {
			t.Errorf("--%s has no help", row.name)
		}
	}
	for name, old := range legacies {
		if seen[name] {
			t.Errorf("%s is both a setting and a legacy", name)
		}
		if old.flag != "" && !seen[old.flag] {
			t.Errorf("%s passes to --%s, which does not exist", name, old.flag)
		}
	}
}

func TestDumpShowsNumbersAsNumbersAndNoSecrets(t *testing.T) {
	s, _, err := Parse([]string{"--snapshot-catchup-entries=1000", "--discovery-password=hunter2"}, nil, "etcd")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	slog.New(slog.NewJSONHandler(&b, nil)).LogAttrs(t.Context(), slog.LevelInfo, "starting", s.Dump()...)
	for _, want := range []string{
		`"snapshot-catchup-entries":1000`, `"v2-deprecation":"write-only"`, `"heartbeat-interval":"100ms"`,
		`"listen-client-urls":["http://localhost:2379"]`, `"discovery-password-given":true`,
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("dump lacks %s:\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "hunter2") {
		t.Errorf("dump shows a password:\n%s", b.String())
	}
}

func TestHelpShowsEveryFlag(t *testing.T) {
	var b strings.Builder
	if err := Usage(&b, "kvorum"); err != nil {
		t.Fatal(err)
	}
	for _, row := range rows(settings(new(Server))) {
		if !strings.Contains(b.String(), "  --"+row.name+" '") {
			t.Errorf("help lacks --%s", row.name)
		}
	}
	for line := range strings.Lines(b.String()) {
		if len(line) > helpWidth+1 && !strings.Contains(line, "rotation") {
			t.Errorf("help line is too wide: %s", line)
		}
	}
}

func TestQuestions(t *testing.T) {
	for arg, want := range map[string]error{"--version": ErrVersion, "-version": ErrVersion, "-h": ErrHelp, "--help": ErrHelp} {
		if _, _, err := Parse([]string{"--name=a", arg}, nil, "etcd"); err != want {
			t.Errorf("%s: got %v, want %v", arg, err, want)
		}
	}
}

func TestSampleFileOfEtcdStarts(t *testing.T) {
	s, notes, err := Parse([]string{"--config-file", "testdata/sample.yml"}, nil, "etcd")
	if err != nil {
		t.Fatal(err)
	}
	if len(s.CipherSuites) != 2 || s.Log.Level != "debug" || s.AutoCompaction.Period.Hours() != 1 || s.StrictReconfigCheck {
		t.Errorf("settings of the file are not all taken: %+v", s)
	}
	for _, n := range notes {
		if strings.Contains(n.Text, "sets nothing") {
			t.Errorf("a key of the sample is unknown: %s", n.Text)
		}
	}
}

func FuzzArguments(f *testing.F) {
	f.Add("--name=a\n--listen-peer-urls\nhttp://0.0.0.0:1", "ETCD_NAME=b")
	f.Add("-listen-client-urls=unix://localhost:1\n--auto-compaction-retention=5m", "KVORUM_FEATURE_GATES=A=true,B")
	f.Add("--auth-token=jwt,sign-method=RS256,pub-key=a,ttl=3s", "ETCD_QUOTA_BACKEND_BYTES=2GiB")
	f.Fuzz(func(t *testing.T, args, env string) {
		if strings.Contains(args, "config-file") || strings.Contains(env, "CONFIG_FILE") {
			return // would read the machine's files
		}
		s, _, err := Parse(strings.Split(args, "\n"), strings.Split(env, "\n"), "etcd")
		if err == nil {
			s.Dump()
		}
	})
}

func FuzzFile(f *testing.F) {
	for _, name := range []string{"testdata/sample.yml"} {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("a: &a [*a]\nname: *a\n<<: *a"))
	f.Add([]byte("{name: 1, client-transport-security: {cert-file: [a, {}]}}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := new(Server)
		p := newParser(s, nil, "etcd")
		if p.parseFile("f", data) == nil {
			if err := p.apply(s); err == nil {
				s.Dump()
			}
		}
	})
}
