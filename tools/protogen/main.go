// Protogen writes the Go code for .proto files beside them: messages, gRPC
// services and the gateway's handlers. It compiles them itself and needs no
// protoc.
//
//	go run -C tools ./protogen ../internal/lockpb/lock.proto
//
// The files may import those of etcd's api module, by the names under which
// that module registers them ("rpc.proto", "kv.proto").
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	_ "go.etcd.io/etcd/api/v3/etcdserverpb"
	_ "google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/pluginpb"
)

func main() {
	for _, file := range os.Args[1:] {
		if err := generate(file); err != nil {
			fmt.Fprintf(os.Stderr, "protogen: %s: %v\n", file, err)
			os.Exit(1)
		}
	}
}

func generate(file string) error {
	dir, name := filepath.Split(file)
	compiler := protocompile.Compiler{
		Resolver: protocompile.CompositeResolver{
			&protocompile.SourceResolver{ImportPaths: []string{dir}},
			protocompile.ResolverFunc(registered),
		},
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(context.Background(), name)
	if err != nil {
		return err
	}

	request := &pluginpb.CodeGeneratorRequest{FileToGenerate: []string{name}}
	seen := map[string]bool{}
	var add func(protoreflect.FileDescriptor)
	add = func(f protoreflect.FileDescriptor) { // what is imported comes first
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		for i := range f.Imports().Len() {
			add(f.Imports().Get(i).FileDescriptor)
		}
		request.ProtoFile = append(request.ProtoFile, protoutil.ProtoFromFileDescriptor(f))
	}
	add(files[0])

	for _, plugin := range []struct{ name, parameter string }{
		{"protoc-gen-go", "paths=source_relative"},
		{"protoc-gen-go-grpc", "paths=source_relative"},
		{"protoc-gen-grpc-gateway", "paths=source_relative"},
	} {
		request.Parameter = &plugin.parameter
		if err := run(plugin.name, request, dir); err != nil {
			return fmt.Errorf("%s: %w", plugin.name, err)
		}
	}
	return nil
}

// registered finds the files that are compiled into this program. Those of etcd
// import each other by paths in a source tree; here they have their names.
func registered(path string) (protocompile.SearchResult, error) {
	f, err := protoregistry.GlobalFiles.FindFileByPath(path)
	if err != nil {
		return protocompile.SearchResult{}, err
	}
	described := protodesc.ToFileDescriptorProto(f)
	for i, imported := range described.Dependency {
		if strings.HasPrefix(imported, "etcd/api/") {
			described.Dependency[i] = filepath.Base(imported)
		}
	}
	return protocompile.SearchResult{Proto: described}, nil
}

// aboutGateway is what the gateway's generator says of every package, whatever
// else is in it. Ours say what they are in a doc.go.
var aboutGateway = regexp.MustCompile(`(?s)/\*\nPackage \w+ is a reverse proxy\..*?\*/\n`)

func run(plugin string, request *pluginpb.CodeGeneratorRequest, dir string) error {
	input, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	c := exec.Command("go", "tool", plugin)
	c.Stdin, c.Stderr = bytes.NewReader(input), os.Stderr
	output, err := c.Output()
	if err != nil {
		return err
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(output, &response); err != nil {
		return err
	}
	if response.Error != nil {
		return fmt.Errorf("%s", response.GetError())
	}
	for _, f := range response.File {
		content := aboutGateway.ReplaceAllString(f.GetContent(), "")
		if err := os.WriteFile(filepath.Join(dir, f.GetName()), []byte(content), 0o666); err != nil {
			return err
		}
	}
	return nil
}
