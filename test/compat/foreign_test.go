package compat

import (
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/kvorum/kvorum/test/authority"
	"github.com/kvorum/kvorum/test/compat/process"
)

// Programs in other languages come with gRPC clients of their own, which share
// no code with ours or Go's.

func TestNodeClient(t *testing.T) {
	needClients(t)
	node, npm := program(t, "node"), program(t, "npm")
	dir := t.TempDir()
	for _, name := range []string{"package.json", "client.js"} {
		b, err := os.ReadFile(filepath.Join("testdata", "foreign", name))
		want(t, err)
		want(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	install := exec.Command(npm, "install", "--no-audit", "--no-fund", "--ignore-scripts")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("npm install: %v\n%s", err, out)
	}
	runForeign(t, node, filepath.Join(dir, "client.js"))
}

const python = "/usr/bin/python3" // Debian's, which has Debian's packages

func TestPythonClient(t *testing.T) {
	needClients(t)
	if err := exec.Command(python, "-c", "import grpc, google.protobuf").Run(); err != nil {
		t.Skip("grpcio is not installed: apt-get install python3-grpcio")
	}
	runForeign(t, python, filepath.Join("testdata", "foreign", "client.py"))
}

func needClients(t *testing.T) {
	t.Helper()
	if os.Getenv(envClients) == "" {
		t.Skipf("needs clients from elsewhere: run make compat, or set %s=1", envClients)
	}
}

func program(t *testing.T, name string) string {
	t.Helper()
	found, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	return found
}

// runForeign runs a client's script against a server, in clear text and over
// TLS.
func runForeign(t *testing.T, interpreter, script string) {
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		at := filepath.Join(dir, name)
		want(t, os.WriteFile(at, b, 0o600))
		return at
	}
	ca := authority.New(t, "compat")
	pair := ca.Issue("server")
	s := process.Start(t, process.Options{Cert: file("cert", pair.Cert), Key: file("key", pair.Key)})
	descriptors := file("descriptors", describe(t, (*pb.PutRequest)(nil).ProtoReflect().Descriptor().ParentFile()))
	for name, more := range map[string][]string{"plain": nil, "tls": {file("ca", ca.PEM)}} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{script, s.ClientAddr, descriptors}, more...)
			out, err := exec.CommandContext(deadline(t), interpreter, args...).CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			t.Logf("%s", out)
		})
	}
}

// describe encodes f and all it needs, so that clients need no compiler.
func describe(t *testing.T, f protoreflect.FileDescriptor) []byte {
	set := &descriptorpb.FileDescriptorSet{}
	seen := map[string]bool{}
	var add func(protoreflect.FileDescriptor)
	add = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		p := protodesc.ToFileDescriptorProto(f)
		for i, name := range p.Dependency {
			needed, err := protoregistry.GlobalFiles.FindFileByPath(name)
			if err != nil {
				// etcd's own files are imported by longer names than they have.
				needed, err = protoregistry.GlobalFiles.FindFileByPath(path.Base(name))
			}
			want(t, err)
			p.Dependency[i] = needed.Path()
			add(needed)
		}
		set.File = append(set.File, p)
	}
	add(f)
	b, err := proto.Marshal(set)
	want(t, err)
	return b
}
