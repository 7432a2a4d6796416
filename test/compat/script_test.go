package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
	"github.com/kvorum/kvorum/test/compat/process"
	_ "go.etcd.io/etcd/api/v3/etcdserverpb" // the messages that scripts name
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// TestScripts runs every script of testdata against a server of its own. The
// commands of a script:
//
//	server [flag=value ...]   start over with a fresh server, with these flags
//	grpc Service/Method       send the body, a message in protobuf's text format
//	http METHOD               send the lines behind the first, which is the path
//	watch answers=N           send each line on a stream of watches, and receive N answers
//
// Arguments of grpc: times=N repeats the body's text N times in one message,
// with {{i}} replaced by the count; field=(a,b) sends the message once for each
// value of that field, all combinations; calls=N makes the call so often, with
// {{i}}, and shows the last answer; until=error stops these calls at the first
// error. loose hides revisions. {{x*100}} stands for a hundred x, and
// <<text *100>> for a hundred times the text. as=NAME is the
// name by which allowed.txt knows the case. http shows the headers of
// cross-origin requests where cors is given. watch goes on with the stream of the
// watch before unless new is given, and sends no more where last is.
func TestScripts(t *testing.T) {
	if rewriting() && !process.Reference() {
		t.Fatalf("answers are recorded from a real etcd: set %s", process.Env)
	}
	scripts, err := filepath.Glob("testdata/*.script")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	allow := readAllowed(t)
	ran := map[string]bool{}
	for _, path := range scripts {
		name := strings.TrimSuffix(filepath.Base(path), ".script")
		t.Run(name, func(t *testing.T) {
			ran[name] = true // unless -run left it out
			s := &script{name: name, allow: allow}
			datadriven.RunTest(t, path, s.run)
			for _, difference := range s.differences {
				t.Error(difference)
			}
		})
	}
	for key, entry := range allow {
		if name, _, _ := strings.Cut(key, " "); ran[name] && !entry.used && !process.Reference() {
			t.Errorf("allowed.txt: %s no longer differs; remove its line", key)
		}
	}
}

func rewriting() bool { return flag.Lookup("rewrite").Value.String() == "true" }

type script struct {
	name  string
	allow map[string]*allowed

	server *process.Server
	conn   *grpc.ClientConn

	watching *watching

	differences []string
}

func (s *script) run(t *testing.T, d *datadriven.TestData) string {
	var answer string
	switch d.Cmd {
	case "server":
		s.start(t, d.CmdArgs)
		return ""
	case "grpc":
		answer = s.grpc(t, d)
	case "watch":
		answer = s.watch(t, d)
	case "http":
		answer = s.http(t, d)
	default:
		d.Fatalf(t, "unknown command %q", d.Cmd)
	}
	answer = s.normalise(answer)
	if has(d, "loose") {
		answer = revision.ReplaceAllString(answer, "${1}#")
	}
	if rewriting() {
		return answer
	}
	for key, entry := range s.allow {
		if entry.drop != nil && strings.HasPrefix(key, s.name+" ") {
			dropped := entry.drop.ReplaceAllString(answer, "")
			entry.used = entry.used || dropped != answer
			answer = dropped
		}
	}
	if answer == d.Expected {
		return answer
	}
	if entry := s.allow[s.name+" "+argument(d, "as")]; entry != nil && !process.Reference() {
		entry.used = true
		return d.Expected
	}
	// Told later, so that the script goes on: one difference seldom comes alone.
	s.differences = append(s.differences, fmt.Sprintf("%s: %s\n%s\n-etcd +this server:\n%s",
		d.Pos, d.Cmd, clip(d.Input), cmp.Diff(lines(d.Expected), lines(answer))))
	return d.Expected
}

func lines(text string) []string { return strings.Split(strings.TrimSuffix(text, "\n"), "\n") }

func clip(text string) string { return text[:min(len(text), 300)] }

func (s *script) start(t *testing.T, args []datadriven.CmdArg) {
	var flags []string
	for _, arg := range args {
		flags = append(flags, "--"+arg.Key+"="+strings.Join(arg.Vals, ","))
	}
	s.server = process.Start(t, process.Options{Flags: flags})
	s.conn = s.server.Dial(t)
	s.watching = nil
}

func (s *script) running(t *testing.T) *process.Server {
	if s.server == nil {
		s.start(t, nil)
	}
	return s.server
}

// callTime bounds each request; none of them has a reason to wait.
const callTime = time.Minute

func (s *script) grpc(t *testing.T, d *datadriven.TestData) string {
	s.running(t)
	method := positional(d, 0)
	body := expand(d.Input)
	if n := number(t, d, "times"); n > 0 {
		var all strings.Builder
		for i := range n {
			all.WriteString(strings.ReplaceAll(body, "{{i}}", strconv.Itoa(i)) + "\n")
		}
		body = all.String()
	}
	if n := number(t, d, "calls"); n > 0 {
		var answer string
		for i := range n {
			answer = s.call(t, d, method, strings.ReplaceAll(body, "{{i}}", strconv.Itoa(i)))
			if argument(d, "until") == "error" && strings.HasPrefix(answer, "error ") {
				return answer
			}
		}
		return answer
	}
	var out strings.Builder
	for _, fields := range combinations(d.CmdArgs) {
		if fields != "" {
			fmt.Fprintf(&out, "%s\n", fields)
		}
		answer := s.call(t, d, method, body+"\n"+fields)
		if fields != "" {
			answer = "  " + strings.ReplaceAll(strings.TrimSuffix(answer, "\n"), "\n", "\n  ") + "\n"
		}
		out.WriteString(answer)
	}
	return out.String()
}

// call sends one request, its type and shape taken from the API's descriptors.
func (s *script) call(t *testing.T, d *datadriven.TestData, name, body string) string {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	if meta := argument(d, "meta"); meta != "" {
		key, value, _ := strings.Cut(meta, ":")
		ctx = metadata.AppendToOutgoingContext(ctx, key, value)
	}
	service, method, ok := strings.Cut(name, "/")
	if !ok {
		d.Fatalf(t, "want Service/Method, got %q", name)
	}
	if !strings.Contains(service, ".") {
		service = "etcdserverpb." + service
	}
	full := "/" + service + "/" + method
	desc := methodOf(service, method)
	if desc == nil {
		// A method that nobody has: what matters is how it is refused.
		empty := newMessage("etcdserverpb.CompactionResponse")
		err := s.conn.Invoke(ctx, full, empty, newMessage("etcdserverpb.CompactionResponse"))
		return renderError(err)
	}
	req := newMessage(desc.Input().FullName())
	if err := prototext.Unmarshal([]byte(body), req); err != nil {
		d.Fatalf(t, "request: %v", err)
	}
	resp := newMessage(desc.Output().FullName())
	if !desc.IsStreamingServer() {
		if err := s.conn.Invoke(ctx, full, req, resp); err != nil {
			return renderError(err)
		}
		return render(resp)
	}
	stream, err := s.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, full)
	if err == nil {
		err = errors.Join(stream.SendMsg(req), stream.CloseSend())
	}
	if err != nil {
		return renderError(err)
	}
	// How a long answer is cut into pieces is the server's affair; together
	// they must be the answer.
	for {
		piece := newMessage(desc.Output().FullName())
		switch err := stream.RecvMsg(piece); {
		case errors.Is(err, io.EOF):
			return render(resp)
		case err != nil:
			return renderError(err)
		}
		proto.Merge(resp, piece)
	}
}

func methodOf(service, method string) protoreflect.MethodDescriptor {
	desc, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return nil
	}
	s, ok := desc.(protoreflect.ServiceDescriptor)
	if !ok {
		return nil
	}
	return s.Methods().ByName(protoreflect.Name(method))
}

func newMessage(name protoreflect.FullName) proto.Message {
	mt, err := protoregistry.GlobalTypes.FindMessageByName(name)
	if err != nil {
		panic(fmt.Sprintf("compat: no message %s: %v", name, err))
	}
	return mt.New().Interface()
}

func renderError(err error) string {
	st := status.Convert(err)
	return fmt.Sprintf("error %s: %s\n", st.Code(), st.Message())
}

func (s *script) http(t *testing.T, d *datadriven.TestData) string {
	server := s.running(t)
	path, body, _ := strings.Cut(expand(d.Input), "\n")
	method := positional(d, 0)
	req, err := http.NewRequest(method, server.ClientURL()+path, strings.NewReader(body))
	if err != nil {
		d.Fatalf(t, "%v", err)
	}
	if meta := argument(d, "header"); meta != "" {
		key, value, _ := strings.Cut(meta, ":")
		req.Header.Set(key, value)
	}
	client := http.Client{Timeout: callTime, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	var out strings.Builder
	fmt.Fprintln(&out, resp.StatusCode)
	headers := []string{"Content-Type", "Grpc-Metadata-Content-Type", "Allow", "Location"}
	if has(d, "cors") {
		headers = append(headers, "Access-Control-Allow-Origin", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers")
	}
	for _, name := range headers {
		for _, value := range resp.Header.Values(name) {
			fmt.Fprintf(&out, "%s: %s\n", name, value)
		}
	}
	// The one liberty: encoders of protobuf's JSON change white space between
	// builds on purpose.
	var compact bytes.Buffer
	if json.Compact(&compact, text) == nil {
		ending := "\n"
		if !bytes.HasSuffix(text, []byte("\n")) {
			ending = "<no newline>\n"
		}
		out.WriteString(compact.String() + ending)
		return out.String()
	}
	if strings.HasPrefix(path, "/readyz") {
		text = sortedLines(text) // etcd walks a map
	}
	fmt.Fprintf(&out, "%q\n", text)
	return out.String()
}

// normalised are the parts of an answer that differ from run to run.
var normalised = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`\b((?:cluster_id|member_id|ID|leader|raft_term|raftTerm|raftIndex|raftAppliedIndex|dbSize|dbSizeInUse|db_size|hash|compact_hash|memberID|DbSize)"?:"?)[1-9]\d*`), "${1}#"},
	// protobuf's texts, with the spaces that it changes from build to build
	{regexp.MustCompile(`memberID:# +alarm`), "memberID:# alarm"},
	{regexp.MustCompile("proto:\u00a0"), "proto: "},
}

var revision = regexp.MustCompile(`\b(revision"?:"?)[1-9]\d*`)

func (s *script) normalise(answer string) string {
	for _, n := range normalised {
		answer = n.pattern.ReplaceAllString(answer, n.with)
	}
	answer = strings.ReplaceAll(answer, s.server.ClientAddr, "CLIENT")
	return strings.ReplaceAll(answer, s.server.PeerAddr, "PEER")
}

var repeated = regexp.MustCompile(`\{\{(.)\*(\d+)\}\}|<<(.+?) \*(\d+)>>`)

func expand(text string) string {
	return repeated.ReplaceAllStringFunc(text, func(m string) string {
		parts := repeated.FindStringSubmatch(m)
		n, _ := strconv.Atoi(parts[2] + parts[4])
		return strings.Repeat(parts[1]+parts[3], n)
	})
}

// combinations lists every choice of one value for each argument with several.
func combinations(args []datadriven.CmdArg) []string {
	all := []string{""}
	for _, arg := range args {
		if len(arg.Vals) < 2 {
			continue
		}
		var longer []string
		for _, fields := range all {
			for _, value := range arg.Vals {
				longer = append(longer, strings.TrimSpace(fields+" "+arg.Key+":"+value))
			}
		}
		all = longer
	}
	return all
}

func has(d *datadriven.TestData, word string) bool {
	for _, arg := range d.CmdArgs {
		if arg.Key == word && len(arg.Vals) == 0 {
			return true
		}
	}
	return false
}

// sortedLines sorts all lines but the last.
func sortedLines(text []byte) []byte {
	lines := strings.SplitAfter(string(text), "\n")
	if len(lines) > 2 {
		sort.Strings(lines[:len(lines)-2])
	}
	return []byte(strings.Join(lines, ""))
}

func positional(d *datadriven.TestData, n int) string {
	var words []string
	for _, arg := range d.CmdArgs {
		if len(arg.Vals) == 0 {
			words = append(words, arg.Key)
		}
	}
	if n >= len(words) {
		return ""
	}
	return words[n]
}

func argument(d *datadriven.TestData, key string) string {
	for _, arg := range d.CmdArgs {
		if arg.Key == key && len(arg.Vals) == 1 {
			return arg.Vals[0]
		}
	}
	return ""
}

func number(t *testing.T, d *datadriven.TestData, key string) int {
	text := argument(d, key)
	if text == "" {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		d.Fatalf(t, "%s: %v", key, err)
	}
	return n
}

// allowed is a difference that was looked at and found right.
type allowed struct {
	drop *regexp.Regexp // what this server says more; nil: a whole case differs
	used bool
}

var allowedLine = regexp.MustCompile("^(\\S+) (?:drop `(.+)`|(\\S+)): (.+)$")

// readAllowed reads the lines of allowed.txt, by script and case or pattern.
func readAllowed(t *testing.T) map[string]*allowed {
	text, err := os.ReadFile("testdata/allowed.txt")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*allowed{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		parts := allowedLine.FindStringSubmatch(line)
		if parts == nil {
			t.Fatalf("allowed.txt: not a script, a case and a reason: %q", line)
		}
		entry := &allowed{}
		if parts[2] != "" {
			entry.drop = regexp.MustCompile(parts[2])
		}
		all[parts[1]+" "+parts[2]+parts[3]] = entry
	}
	return all
}

// render writes a message in one fixed text form (protobuf's own changes its
// spaces from build to build): a field a line, messages below it in braces.
func render(m proto.Message) string {
	parts := renderFields(m.ProtoReflect())
	if len(parts) == 0 {
		return "(empty)\n"
	}
	return strings.Join(parts, "\n") + "\n"
}

// renderFields returns each set field as name:value, neighbours that are equal
// only once, with their number.
func renderFields(r protoreflect.Message) []string {
	var parts []string
	same := 1
	add := func(part string) {
		if n := len(parts); n > 0 && strings.TrimSuffix(parts[n-1], fmt.Sprintf(" (%d times)", same)) == part {
			same++
			parts[n-1] = fmt.Sprintf("%s (%d times)", part, same)
			return
		}
		same = 1
		parts = append(parts, part)
	}
	for _, f := range setFields(r) {
		v := r.Get(f)
		if !f.IsList() {
			add(fmt.Sprintf("%s:%s", f.Name(), renderValue(f, v)))
			continue
		}
		for i := range v.List().Len() {
			add(fmt.Sprintf("%s:%s", f.Name(), renderValue(f, v.List().Get(i))))
		}
	}
	return parts
}

func setFields(r protoreflect.Message) []protoreflect.FieldDescriptor {
	var fields []protoreflect.FieldDescriptor
	r.Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		fields = append(fields, f)
		return true
	})
	sort.Slice(fields, func(i, j int) bool { return fields[i].Number() < fields[j].Number() })
	if unknown := r.GetUnknown(); len(unknown) > 0 {
		panic(fmt.Sprintf("compat: unknown fields %x in %s", unknown, r.Descriptor().FullName()))
	}
	return fields
}

func renderValue(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch f.Kind() {
	case protoreflect.MessageKind:
		return "{" + strings.Join(renderFields(v.Message()), " ") + "}"
	case protoreflect.BytesKind:
		return quoteShort(string(v.Bytes()))
	case protoreflect.StringKind:
		return quoteShort(v.String())
	case protoreflect.EnumKind:
		if value := f.Enum().Values().ByNumber(v.Enum()); value != nil {
			return string(value.Name())
		}
		return strconv.Itoa(int(v.Enum()))
	}
	return v.String()
}

// quoteShort keeps megabytes out of the scripts.
func quoteShort(s string) string {
	if len(s) > 200 {
		return fmt.Sprintf("%q...(%d bytes)", s[:10], len(s))
	}
	return strconv.Quote(s)
}
