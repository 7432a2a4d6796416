package crash

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/kvorum/kvorum/test/port"
)

// lived makes a site where a server has lived: it was killed with acknowledged
// writes behind what its table holds.
func lived(t *testing.T) site {
	t.Helper()
	s := newSite(t)
	p := s.start(t, "--snapshot-count=10")
	c := s.client(t)
	p.ready(t, c)
	for i := range 40 {
		if _, err := c.Put(t.Context(), fmt.Sprintf("key-%02d", i), strings.Repeat("v", 500)); err != nil {
			t.Fatalf("%v\n%s", err, p.output)
		}
	}
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.code(t)
	return s
}

// whole checks that a server with the writes of lived starts here.
func (s site) whole(t *testing.T) {
	t.Helper()
	p := s.start(t)
	c := s.client(t)
	p.ready(t, c)
	r, err := c.Get(t.Context(), "key-", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || r.Count != 40 {
		t.Errorf("after the fault was mended there are %d of 40 keys, error %v", r.Count, err)
	}
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.code(t); code != 0 {
		t.Errorf("exit code %d after SIGTERM:\n%s", code, p.output)
	}
}

// contents returns a line for each file below dir. The locks are left out:
// they say who tried last.
func contents(t *testing.T, dir string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() == "LOCK" {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s %v", path, info.Mode())
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %x", len(b), sha256.Sum256(b))
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// oneLine returns the only line of a refused start that is an error.
func oneLine(t *testing.T, output string) string {
	t.Helper()
	var found []string
	for line := range strings.Lines(output) {
		var entry struct{ Level, Msg, Error string }
		switch err := json.Unmarshal([]byte(line), &entry); {
		case err == nil && entry.Level == "error":
			found = append(found, entry.Error)
		case err != nil && strings.TrimSpace(line) != "":
			found = append(found, line)
		}
	}
	if len(found) != 1 {
		t.Errorf("%d lines say what is wrong, should be 1:\n%s", len(found), output)
		return output
	}
	return found[0]
}

func edit(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

func replace(old, with string) func([]byte) []byte {
	return func(b []byte) []byte { return []byte(strings.Replace(string(b), old, with, 1)) }
}

// flip damages a byte.
func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte {
		b[at] ^= 0x10
		return b
	}
}

func only(t *testing.T, pattern string) string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		t.Fatalf("nothing is called %s", pattern)
	}
	return names[0]
}

// largest returns the largest file of a kind.
func largest(t *testing.T, pattern string) string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		t.Fatalf("nothing is called %s", pattern)
	}
	return slices.MaxFunc(names, func(a, b string) int {
		x, errX := os.Stat(a)
		y, errY := os.Stat(b)
		if errX != nil || errY != nil {
			t.Fatal(errX, errY)
		}
		return int(x.Size() - y.Size())
	})
}

// TestFaultsAtStart starts a server where something is wrong. It must refuse,
// say what and what to do in one line, and leave everything as it was.
func TestFaultsAtStart(t *testing.T) {
	t.Parallel()
	var damaged []string
	type fault struct {
		name  string
		flags []string
		fresh bool // nothing has lived there
		spoil func(t *testing.T, s site)
		mend  func(t *testing.T, s site) // nil: cannot be mended in place
		opens bool                       // the fault shows only after the table's engine has put its files in order
		code  int
		says  []string // {dir} stands for the data directory, {addr} for the address
	}
	identity := func(s site) string { return filepath.Join(s.dir, "identity.json") }
	var kept []byte // what was spoiled
	keep := func(t *testing.T, path string) {
		t.Helper()
		var err error
		if kept, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	spoilIdentity := func(old, with string) func(*testing.T, site) {
		return func(t *testing.T, s site) {
			keep(t, identity(s))
			edit(t, identity(s), replace(old, with))
		}
	}
	anotherIdentity := func(field string) func(*testing.T, site) {
		return func(t *testing.T, s site) {
			keep(t, identity(s))
			edit(t, identity(s), func(b []byte) []byte {
				var id map[string]any
				if err := json.Unmarshal(b, &id); err != nil {
					t.Fatal(err)
				}
				id[field] = "77"
				b, err := json.Marshal(id)
				if err != nil {
					t.Fatal(err)
				}
				return b
			})
		}
	}
	mendIdentity := func(t *testing.T, s site) {
		if err := os.WriteFile(identity(s), kept, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	for _, f := range []fault{
		{
			name: "the directory is in use",
			spoil: func(t *testing.T, s site) {
				other := s
				other.addr, other.peer = port.Free(t), port.Free(t)
				p := other.start(t)
				p.ready(t, other.client(t))
				p.pause(t) // what it writes would be taken for changes
			},
			code: 1, says: []string{"{dir}", "in use by process", "(kvorum)", "stop it"},
		},
		{
			name: "identity of another cluster", opens: true,
			spoil: anotherIdentity("cluster_id"), mend: mendIdentity,
			code: 1, says: []string{"{dir}/table", "belongs to cluster", "not to 4d", "put the right files back"},
		},
		{
			name: "identity of another member", opens: true,
			spoil: anotherIdentity("member_id"), mend: mendIdentity,
			code: 1, says: []string{"{dir}/table", "belongs to member", "not to 4d", "put the right files back"},
		},
		{
			name:  "identity of a newer format",
			spoil: spoilIdentity(`"format": 1`, `"format": 9`), mend: mendIdentity,
			code: 1, says: []string{"{dir}", "format 9", "run the newer version"},
		},
		{
			name:  "identity damaged",
			spoil: spoilIdentity(`{`, `[`), mend: mendIdentity,
			code: 1, says: []string{"{dir}/identity.json", "damaged", "restore it from a copy"},
		},
		{
			name:  "identity missing",
			spoil: func(t *testing.T, s site) { keep(t, identity(s)); os.Remove(identity(s)) }, mend: mendIdentity,
			code: 1, says: []string{"{dir}/identity.json", "missing", "restore the file from a copy"},
		},
		{
			name: "log of a newer format", opens: true,
			spoil: func(t *testing.T, s site) { edit(t, only(t, filepath.Join(s.dir, "wal", "*.wal")), newerLog) },
			code:  1, says: []string{"{dir}/wal", "format version 99", "use the program that wrote it"},
		},
		{
			name: "log damaged in the middle", opens: true,
			spoil: func(t *testing.T, s site) {
				edit(t, only(t, filepath.Join(s.dir, "wal", "*.wal")), flip(3000))
			},
			mend: func(t *testing.T, s site) { edit(t, only(t, filepath.Join(s.dir, "wal", "*.wal")), flip(3000)) },
			code: 1, says: []string{"{dir}/wal", ".wal is corrupt at offset", "nothing was changed", "add it again"},
		},
		{
			name:  "log lost",
			spoil: func(t *testing.T, s site) { os.RemoveAll(filepath.Join(s.dir, "wal")) },
			code:  1, says: []string{"{dir}/wal", "has lost its log", "add it again"},
		},
		{
			name: "table damaged", opens: true,
			spoil: func(t *testing.T, s site) {
				// All of them: some may have been merged into others, or were
				// not finished when the server was killed, and nobody reads those.
				damaged = nil
				names, _ := filepath.Glob(filepath.Join(s.dir, "table", "table-*", "*.sst"))
				for _, name := range names {
					if info, err := os.Stat(name); err == nil && info.Size() > 100 {
						edit(t, name, flip(100))
						damaged = append(damaged, name)
					}
				}
			},
			mend: func(t *testing.T, s site) {
				for _, name := range damaged {
					if _, err := os.Stat(name); err == nil { // the engine deletes what it does not read
						edit(t, name, flip(100))
					}
				}
			},
			code: 1, says: []string{"{dir}/table", ".sst", "add it again"},
		},
		{
			name: "manifest of the table damaged",
			spoil: func(t *testing.T, s site) {
				edit(t, largest(t, filepath.Join(s.dir, "table", "table-*", "MANIFEST-*")), flip(20))
			},
			mend: func(t *testing.T, s site) {
				edit(t, largest(t, filepath.Join(s.dir, "table", "table-*", "MANIFEST-*")), flip(20))
			},
			code: 1, says: []string{"{dir}/table", "MANIFEST", "add it again"},
		},
		{
			name: "port in use", fresh: true,
			spoil: func(t *testing.T, s site) {
				l, err := net.Listen("tcp", s.addr)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { l.Close() })
			},
			code: 1, says: []string{"{addr}", "in use", fmt.Sprint(os.Getpid())},
		},
		{
			name: "port in use, with data",
			spoil: func(t *testing.T, s site) {
				l, err := net.Listen("tcp", s.addr)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { l.Close() })
			},
			code: 1, says: []string{"{addr}", "in use", fmt.Sprint(os.Getpid())},
		},
		{
			name: "no such flag", fresh: true, flags: []string{"--no-such-flag"},
			code: 2, says: []string{"no-such-flag"},
		},
		{
			name: "a flag without sense", fresh: true, flags: []string{"--heartbeat-interval=soon"},
			code: 2, says: []string{"heartbeat-interval", "soon"},
		},
		{
			name: "certificate missing", fresh: true,
			flags: []string{"--listen-client-urls=https://127.0.0.1:0", "--cert-file=/nonexistent/server.crt", "--key-file=/nonexistent/server.key"},
			code:  1, says: []string{"/nonexistent/server.crt"},
		},
	} {
		t.Run(f.name, func(t *testing.T) {
			s := newSite(t)
			if !f.fresh {
				s = lived(t)
			}
			if f.spoil != nil {
				f.spoil(t, s)
			}
			var before []string
			if !f.fresh {
				before = contents(t, s.dir)
			}
			for range 2 { // a second start is told the same
				p := s.start(t, f.flags...)
				if code := p.code(t); code != f.code {
					t.Errorf("exit code %d, want %d:\n%s", code, f.code, p.output)
				}
				line := p.output.String()
				if f.code == 1 {
					line = oneLine(t, line)
				}
				for _, says := range f.says {
					says = strings.NewReplacer("{dir}", s.dir, "{addr}", s.addr).Replace(says)
					if !strings.Contains(line, says) {
						t.Errorf("does not say %q:\n%s", says, line)
					}
				}
			}
			if f.fresh {
				if _, err := os.Stat(s.dir); !os.IsNotExist(err) {
					t.Errorf("the data directory was made: %v", err)
				}
				return
			}
			for _, line := range difference(before, contents(t, s.dir)) {
				if f.opens && strings.Contains(line, s.dir+"/table/") {
					continue
				}
				t.Errorf("the directory was changed: %s", line)
			}
			if f.mend != nil {
				f.mend(t, s)
				s.whole(t)
			}
		})
	}
}

func difference(before, after []string) (lines []string) {
	for _, line := range before {
		if !slices.Contains(after, line) {
			lines = append(lines, "- "+line)
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			lines = append(lines, "+ "+line)
		}
	}
	return lines
}

// newerLog makes a segment claim a format that is not known yet. The first 16
// bytes mean the same in every version.
func newerLog(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[8:], 99)
	binary.LittleEndian.PutUint32(b[12:], crc32.Checksum(b[:12], crc32.MakeTable(crc32.Castagnoli)))
	return b
}
