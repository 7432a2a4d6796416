package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/kvorum/kvorum/test/port"
)

// TestGolden asks us what a real etcd was asked, and wants its answers. Each
// file begins with an empty store. To record again from a real one:
//
//	KVORUM_RECORD=/path/to/etcd go test ./api -run Golden -rewrite
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			var to target
			if etcd := os.Getenv("KVORUM_RECORD"); etcd != "" {
				to = startEtcd(t, etcd)
			} else {
				to = newMember(t, Options{}).target
			}
			datadriven.RunTest(t, file, func(t *testing.T, d *datadriven.TestData) string { return to.run(t, d) })
		})
	}
}

// target is a server that scripts talk to.
type target struct {
	url  string // of its HTTP
	conn *grpc.ClientConn
}

// run answers one command of a script:
//
//	post|get|... PATH [headers] [plain]   over HTTP, the body below
//	call SERVICE/METHOD [name=value]      over gRPC, the request as JSON below; name=value is metadata
func (to target) run(t *testing.T, d *datadriven.TestData) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if d.Cmd == "call" {
		return to.call(ctx, t, d)
	}
	return to.http(ctx, t, d)
}

func (to target) http(ctx context.Context, t *testing.T, d *datadriven.TestData) string {
	req, err := http.NewRequestWithContext(ctx, strings.ToUpper(d.Cmd), to.url+d.CmdArgs[0].String(), strings.NewReader(d.Input))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%d\n", resp.StatusCode)
	for _, arg := range d.CmdArgs[1:] {
		if arg.Key == "headers" {
			for _, name := range []string{"Content-Type", "Grpc-Metadata-Content-Type", "Allow", "Location", "X-Content-Type-Options",
				"Access-Control-Allow-Origin", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers"} {
				if v := resp.Header.Get(name); v != "" {
					fmt.Fprintf(&out, "%s: %s\n", name, v)
				}
			}
		}
	}
	out.WriteString(normal(body))
	return out.String()
}

func (to target) call(ctx context.Context, t *testing.T, d *datadriven.TestData) string {
	service, name, _ := strings.Cut(d.CmdArgs[0].String(), "/")
	if !strings.Contains(service, ".") {
		service = "etcdserverpb." + service
	}
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		t.Fatal(err)
	}
	method := found.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(name))
	req, resp := newMessage(t, method.Input()), newMessage(t, method.Output())
	if d.Input != "" {
		if err := protojson.Unmarshal([]byte(d.Input), req); err != nil {
			t.Fatal(err)
		}
	}
	for _, arg := range d.CmdArgs[1:] {
		ctx = metadata.AppendToOutgoingContext(ctx, arg.Key, strings.Join(arg.Vals, ","))
	}

	full := "/" + service + "/" + name
	if !method.IsStreamingServer() {
		err := to.conn.Invoke(ctx, full, req, resp)
		return answer(t, resp, err)
	}
	stream, err := to.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: method.IsStreamingClient()}, full)
	if err == nil {
		err = errors.Join(stream.SendMsg(req), stream.CloseSend())
	}
	if err != nil && !errors.Is(err, io.EOF) { // a stream that was refused by now says why below
		t.Fatal(err)
	}
	var out strings.Builder
	for {
		resp := newMessage(t, method.Output())
		err := stream.RecvMsg(resp)
		if errors.Is(err, io.EOF) {
			return out.String() + "end\n"
		}
		out.WriteString(answer(t, resp, err))
		if err != nil {
			return out.String()
		}
	}
}

func newMessage(t *testing.T, d protoreflect.MessageDescriptor) proto.Message {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		t.Fatal(err)
	}
	return kind.New().Interface()
}

func answer(t *testing.T, resp proto.Message, err error) string {
	if err != nil {
		s := status.Convert(err)
		return fmt.Sprintf("%v: %s\n", s.Code(), s.Message())
	}
	if len(resp.ProtoReflect().GetUnknown()) != 0 {
		t.Errorf("the answer holds fields that its type does not know: %x", resp.ProtoReflect().GetUnknown())
	}
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(resp)
	if err != nil {
		t.Fatal(err)
	}
	return normal(b)
}

// What differs from one store to another, or from one engine to another.
var differs = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`"(cluster_id|member_id|raft_term|ID|leader|dbSize|dbSizeInUse|raftIndex|raftTerm|raftAppliedIndex)":"\d+"`), `"$1":"…"`},
	{regexp.MustCompile(`"hash":\d+`), `"hash":…`},
	{regexp.MustCompile(`"(peerURLs|clientURLs)":\["[^"]*"\]`), `"$1":["…"]`},
	// We answer with the text under its old name too.
	{regexp.MustCompile(`^\{"error":"(?:[^"\\]|\\.)*","code"`), `{"code"`},
	// Two libraries vary a space from build to build.
	{regexp.MustCompile(`proto:[ \x{a0}]`), `proto: `},
	{regexp.MustCompile(`(memberID:\d+) +alarm:`), `$1 alarm:`},
}

// normal returns body without white space between tokens where it is JSON,
// and without what differs.
func normal(body []byte) string {
	var lines []string
	for line := range strings.Lines(string(body)) {
		line = strings.TrimSuffix(line, "\n")
		var tight bytes.Buffer
		if json.Compact(&tight, []byte(line)) == nil {
			line = tight.String()
		}
		for _, d := range differs {
			line = d.pattern.ReplaceAllString(line, d.with)
		}
		if line == "" {
			line = "(empty line)"
		}
		lines = append(lines, line)
	}
	if len(lines) == 0 {
		return "(nothing)\n"
	}
	return strings.Join(lines, "\n") + "\n"
}

// startEtcd runs a real etcd with an empty store.
func startEtcd(t *testing.T, binary string) target {
	t.Helper()
	client, peer := port.Free(t), port.Free(t)
	cmd := exec.Command(binary, "--name=m", "--data-dir="+t.TempDir(),
		"--listen-client-urls=http://"+client, "--advertise-client-urls=http://"+client,
		"--listen-peer-urls=http://"+peer, "--initial-advertise-peer-urls=http://"+peer, "--initial-cluster=m=http://"+peer)
	log, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		var seen bytes.Buffer
		buf := make([]byte, 4096)
		for told := false; ; {
			n, err := log.Read(buf)
			if err != nil {
				return
			}
			// The version of the cluster is decided after the port is served.
			if seen.Write(buf[:n]); !told && bytes.Contains(seen.Bytes(), []byte("ready to serve client requests")) &&
				bytes.Contains(seen.Bytes(), []byte("cluster version is updated")) {
				told = true
				close(ready)
			}
		}
	}()
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		<-drained
		_ = cmd.Wait() // killed
	})
	select {
	case <-ready:
	case <-time.After(patience):
		t.Fatal("etcd is not ready")
	}
	return target{url: "http://" + client, conn: dial(t, client)}
}

func dial(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}
