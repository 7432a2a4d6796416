package compat

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
	"github.com/kvorum/kvorum/test/compat/process"
)

// envEtcd34 names an etcd 3.4, the last that has the v2 API and is in use.
const envEtcd34 = "KVORUM_COMPAT_ETCD34"

// TestV2 sends the requests of testdata/v2 to kvorum and finds the answers that
// etcd 3.4.23 with --enable-v2 gave, but for those of v2Differences.
func TestV2(t *testing.T) {
	if rewriting() {
		t.Skip("the answers are recorded by TestV2Etcd34")
	}
	ran := map[string]bool{} // unless -run left it out
	used := make([]bool, len(v2Differences))
	t.Run("scripts", func(t *testing.T) {
		var mu sync.Mutex
		replayV2(t, process.Options{}, func(script, request, answer string) bool {
			mu.Lock()
			defer mu.Unlock()
			ran[script] = true
			for i, d := range v2Differences {
				if d.script == script && d.request == request && d.kvorum == answer {
					used[i] = true
					return true
				}
			}
			return false
		})
	})
	for i, d := range v2Differences {
		if ran[d.script] && !used[i] {
			t.Errorf("%s: %s: no longer differs so; remove it from the table", d.script, d.request)
		}
	}
}

// TestV2Etcd34 has a real etcd say again what was recorded of it. With -rewrite,
// it records.
func TestV2Etcd34(t *testing.T) {
	replayV2(t, process.Options{Binary: etcd34(t), Flags: []string{"--enable-v2"}}, func(_, _, _ string) bool { return false })
}

func etcd34(t *testing.T) string {
	path := os.Getenv(envEtcd34)
	if path == "" && os.Getenv(envClients) == "" {
		t.Skipf("needs etcd 3.4: run make compat, or name one in %s", envEtcd34)
	}
	if path == "" {
		found, err := exec.LookPath("etcd")
		if err != nil {
			t.Skip("etcd 3.4 is not installed: apt-get install etcd-server")
		}
		path = found
	}
	out, err := exec.Command(path, "--version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "etcd Version: 3.4.") {
		t.Skipf("%s is not etcd 3.4: %s (%v)", path, out, err)
	}
	return path
}

// replayV2 runs every script of testdata/v2 against a server of its own. Its
// commands:
//
//	run      a request a line, as METHOD PATH BODY OPTION...
//	matrix   the lines up to -- set up a directory called $, those after it are
//	         requests; each, with every choice of its {alternatives}, is sent to
//	         a directory of its own
//	repeat   the first argument says how often to send a line, unseen
//
// Besides requests there are lines for those that wait: "watch NAME PATH" sends a
// request and shows its headers, "next NAME" shows the next line of what it is
// told, "end NAME" that there is no more, "close NAME" hangs up. The options are
// @type=CONTENT-TYPE, @cut, which sends a body in chunks, and @raw, which shows
// all that is usual too.
//
// Indexes are written as i+1: counted from the one before the command, or before
// the request in a matrix. <i+1> in a request stands for the number, <name i+1>
// for the name of a key in order.
//
// What differs from the recorded answers is an error unless it is allowed.
func replayV2(t *testing.T, o process.Options, allowed func(script, request, answer string) bool) {
	scripts, err := filepath.Glob("testdata/v2/*.script")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, path := range scripts {
		name := strings.TrimSuffix(filepath.Base(path), ".script")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &v2Script{server: process.Start(t, o), watches: map[string]*v2Watch{}}
			s.awaitVersion(t)
			defer s.hangUp()
			var differences []string
			datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
				answer := s.command(t, d)
				if rewriting() {
					return answer
				}
				want, got := exchanges(d.Expected), exchanges(answer)
				for i := range min(len(want), len(got)) {
					if got[i] != want[i] && allowed(name, got[i].Request, got[i].Answer) {
						got[i].Answer = want[i].Answer
					}
				}
				// Told later, so that the script goes on.
				if diff := cmp.Diff(want, got); diff != "" {
					differences = append(differences, fmt.Sprintf("%s\n-etcd +this server:\n%s", d.Pos, diff))
				}
				return d.Expected
			})
			for _, difference := range differences {
				t.Error(difference)
			}
		})
	}
}

type v2Script struct {
	server  *process.Server
	conn    net.Conn // for requests that do not wait; nil: none is open
	reader  *bufio.Reader
	base    int64 // what indexes are counted from
	fresh   int   // directories that a matrix has used
	watches map[string]*v2Watch
}

type v2Watch struct {
	conn net.Conn
	body *bufio.Reader
}

// awaitVersion waits until the members have agreed on a version, which is the
// last thing that uses up indexes in a cluster that nobody asks anything.
func (s *v2Script) awaitVersion(t *testing.T) {
	for deadline := time.Now().Add(v2Patience); ; {
		resp, err := http.Get(s.server.ClientURL() + "/version")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(body), "not_decided") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no version: %s", body)
		}
		time.Sleep(20 * time.Millisecond) // nothing tells when the other process gets there
	}
}

// v2Patience bounds each request and each wait.
const v2Patience = 15 * time.Second

func (s *v2Script) hangUp() {
	for name := range s.watches {
		s.forget(name)
	}
	if s.conn != nil {
		s.conn.Close()
	}
}

func (s *v2Script) command(t *testing.T, d *datadriven.TestData) string {
	s.base = s.index(t)
	var out strings.Builder
	switch d.Cmd {
	case "run":
		for line := range strings.Lines(d.Input) {
			out.WriteString(s.line(t, strings.TrimSuffix(line, "\n")))
		}
	case "repeat":
		times, err := strconv.Atoi(positional(d, 0))
		if err != nil {
			d.Fatalf(t, "repeat: %v", err)
		}
		for range times {
			s.ask(t, d.Input, false)
		}
	case "matrix":
		setUp, requests, _ := strings.Cut(d.Input, "\n--\n")
		for line := range strings.Lines(requests) {
			for _, request := range alternatives(strings.TrimSuffix(line, "\n")) {
				dir := fmt.Sprintf("t%d", s.fresh)
				s.fresh++
				for line := range strings.Lines(setUp) {
					s.ask(t, strings.ReplaceAll(strings.TrimSuffix(line, "\n"), "$", dir), false)
				}
				s.base = s.index(t)
				answer, _ := s.ask(t, strings.ReplaceAll(request, "$", dir), true)
				answer = regexp.MustCompile("/"+dir+`\b`).ReplaceAllString(answer, "/$$")
				out.WriteString(s.show(request, answer))
			}
		}
	default:
		d.Fatalf(t, "unknown command %q", d.Cmd)
	}
	return out.String()
}

func (s *v2Script) show(request, answer string) string {
	answer = strings.TrimSuffix(s.normalise(answer), "\n")
	if len(answer) > 5000 {
		answer = fmt.Sprintf("%s... and %x", answer[:300], sha256.Sum256([]byte(answer)))
	}
	return request + "\n  " + strings.ReplaceAll(answer, "\n", "\n  ") + "\n"
}

// exchange is a request and its answer as they are shown.
type exchange struct{ Request, Answer string }

func exchanges(shown string) (all []exchange) {
	for line := range strings.Lines(shown) {
		if text, ok := strings.CutPrefix(line, "  "); ok && len(all) > 0 {
			all[len(all)-1].Answer += text
		} else {
			all = append(all, exchange{Request: strings.TrimSuffix(line, "\n")})
		}
	}
	return all
}

// index is the present one of the store.
func (s *v2Script) index(t *testing.T) int64 {
	t.Helper()
	_, header := s.ask(t, "HEAD /v2/keys", false)
	n, err := strconv.ParseInt(header.Get("X-Etcd-Index"), 10, 64)
	if err != nil {
		t.Fatalf("the index: %v", err)
	}
	return n
}

// alternatives returns every choice of one word in each {a|b}.
func alternatives(text string) []string {
	before, rest, ok := strings.Cut(text, "{")
	if !ok {
		return []string{text}
	}
	choice, after, _ := strings.Cut(rest, "}")
	var all []string
	for word := range strings.SplitSeq(choice, "|") {
		for _, tail := range alternatives(after) {
			all = append(all, before+word+tail)
		}
	}
	return all
}

func (s *v2Script) line(t *testing.T, line string) string {
	verb, rest, _ := strings.Cut(line, " ")
	name, path, _ := strings.Cut(rest, " ")
	var answer string
	switch verb {
	case "":
		return "\n"
	case "watch":
		answer = s.watch(t, name, path)
	case "next":
		answer = s.next(t, name)
	case "end":
		answer = "nothing more"
		if text := s.next(t, name); text != "EOF" {
			answer = "more: " + text
		}
	case "close":
		s.forget(name)
		return line + "\n"
	default:
		answer, _ = s.ask(t, line, true)
	}
	return s.show(line, answer)
}

var (
	placeholder = regexp.MustCompile(`<(name )?i([+-]\d+)>`)

	indexFields   = regexp.MustCompile(`"(modifiedIndex|createdIndex|index)":([1-9]\d*)`)
	orderedNames  = regexp.MustCompile(`/(0{8}\d{12})\b`)
	comparedIndex = regexp.MustCompile(`\[(\d+) != (\d+)\]`)
	lackedIndex   = regexp.MustCompile(`\[(\d+)/(\d+)\]`)
	headerIndex   = regexp.MustCompile(`(?m)^(\d+ .*)\bindex=([1-9]\d*)`)
	expirations   = regexp.MustCompile(`"expiration":"[^"]*"`)
	secondsLeft   = regexp.MustCompile(`"ttl":(\d+)`)
	memberIDs     = regexp.MustCompile(`\b[0-9a-f]{12,16}\b`)
)

func (s *v2Script) relative(number string) string {
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return number
	}
	return fmt.Sprintf("i%+d", n-s.base)
}

// normalise replaces what is every run's own.
func (s *v2Script) normalise(answer string) string {
	replace := func(re *regexp.Regexp, with func(parts []string) string) {
		answer = re.ReplaceAllStringFunc(answer, func(m string) string { return with(re.FindStringSubmatch(m)) })
	}
	answer = strings.ReplaceAll(answer, s.server.ClientAddr, "CLIENT")
	answer = strings.ReplaceAll(answer, s.server.PeerAddr, "PEER")
	replace(orderedNames, func(p []string) string { return "/<name " + s.relative(p[1]) + ">" })
	replace(headerIndex, func(p []string) string { return p[1] + "index=" + s.relative(p[2]) })
	replace(indexFields, func(p []string) string { return `"` + p[1] + `":` + s.relative(p[2]) })
	replace(comparedIndex, func(p []string) string { return "[" + s.relative(p[1]) + " != " + s.relative(p[2]) + "]" })
	replace(lackedIndex, func(p []string) string { return "[" + s.relative(p[1]) + "/" + s.relative(p[2]) + "]" })
	replace(secondsLeft, func(p []string) string {
		// A slow machine may have used up some of many.
		if n, err := strconv.ParseInt(p[1], 10, 64); err == nil && n > 1 {
			return fmt.Sprintf(`"ttl":%d`, (n+9)/10*10)
		}
		return p[0]
	})
	answer = expirations.ReplaceAllString(answer, `"expiration":"TIME"`)
	return memberIDs.ReplaceAllString(answer, "ID")
}

// send writes a request as it stands: no client cleans its path.
func (s *v2Script) send(conn net.Conn, line string) (method string, err error) {
	line = placeholder.ReplaceAllStringFunc(expand(line), func(m string) string {
		p := placeholder.FindStringSubmatch(m)
		n, _ := strconv.ParseInt(p[2], 10, 64)
		if p[1] != "" {
			return fmt.Sprintf("%020d", s.base+n)
		}
		return strconv.FormatInt(s.base+n, 10)
	})
	words := strings.Split(line, " ")
	contentType, cut := "application/x-www-form-urlencoded", false
	words = slices.DeleteFunc(words, func(word string) bool {
		option, value, _ := strings.Cut(word, "=")
		switch option {
		case "@type":
			contentType = strings.ReplaceAll(value, "~", " ")
		case "@cut":
			cut = true
		case "@raw":
		default:
			return false
		}
		return true
	})
	method = words[0]
	body := strings.Join(words[2:], " ")
	request := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\n", method, words[1], s.server.ClientAddr)
	if contentType != "" && (body != "" || method == "PUT" || method == "POST" || method == "DELETE") {
		request += "Content-Type: " + contentType + "\r\n"
	}
	switch {
	case cut:
		request += fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	case body != "" || method == "PUT" || method == "POST":
		request += fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)
	default:
		request += "\r\n"
	}
	if err := conn.SetDeadline(time.Now().Add(v2Patience)); err != nil {
		return "", err
	}
	_, err = conn.Write([]byte(request))
	return method, err
}

func (s *v2Script) dial(t *testing.T) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", s.server.ClientAddr)
	if err != nil {
		t.Fatal(err)
	}
	return conn, bufio.NewReader(conn)
}

// ask sends a request and returns what was answered.
func (s *v2Script) ask(t *testing.T, line string, show bool) (string, http.Header) {
	t.Helper()
	if s.conn == nil {
		s.conn, s.reader = s.dial(t)
		// etcd tells protocols apart by the first bytes, and does not get far
		// with a first line that is long.
		s.index(t)
	}
	method, err := s.send(s.conn, line)
	var resp *http.Response
	if err == nil {
		resp, err = http.ReadResponse(s.reader, &http.Request{Method: method})
	}
	var body []byte
	if err == nil {
		body, err = io.ReadAll(resp.Body)
	}
	if err != nil || resp.Close {
		s.conn.Close()
		s.conn = nil
	}
	if err != nil {
		t.Fatalf("%.100s: %v", line, err)
	}
	if !show {
		return "", resp.Header
	}
	return render2(resp, body, strings.Contains(line, "@raw")), resp.Header
}

// render2 shows an answer. What is the same in nearly all of them has a short
// name: "json" is JSON of the keys' kind, "cluster" the header that names the
// cluster, "raft" the two with the log's index and term.
func render2(resp *http.Response, body []byte, raw bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d", resp.StatusCode)
	h := resp.Header
	show := func(name, short string) {
		if h.Get(name) != "" {
			b.WriteString(" " + short)
		}
	}
	switch contentType := h.Get("Content-Type"); contentType {
	case "":
	case "application/json":
		b.WriteString(" json")
	default:
		fmt.Fprintf(&b, " (%s)", contentType)
	}
	show("X-Etcd-Cluster-Id", "cluster")
	show("X-Etcd-Index", "index="+h.Get("X-Etcd-Index"))
	if h.Get("X-Raft-Index") != "" && h.Get("X-Raft-Term") != "" {
		b.WriteString(" raft")
	}
	show("Allow", "allow="+h.Get("Allow"))
	show("Location", "location="+h.Get("Location"))
	show("X-Content-Type-Options", h.Get("X-Content-Type-Options"))
	if raw {
		for _, name := range []string{"Access-Control-Allow-Methods", "Access-Control-Allow-Origin", "Access-Control-Allow-Headers"} {
			fmt.Fprintf(&b, "\n%s: %s", name, h.Get(name))
		}
		fmt.Fprintf(&b, "\nlength %d, chunked %v", resp.ContentLength, len(resp.TransferEncoding) > 0)
	}
	b.WriteByte('\n')
	switch text := string(body); {
	case text == "":
	case strings.HasSuffix(text, "\n") && strings.Count(text, "\n") == 1:
		b.WriteString(text)
	default:
		fmt.Fprintf(&b, "%q\n", text)
	}
	return b.String()
}

func (s *v2Script) watch(t *testing.T, name, path string) string {
	t.Helper()
	if s.watches[name] != nil {
		s.forget(name)
	}
	conn, reader := s.dial(t)
	w := &v2Watch{conn: conn}
	s.watches[name] = w
	_, err := s.send(conn, "GET "+path)
	var resp *http.Response
	if err == nil {
		resp, err = http.ReadResponse(reader, &http.Request{Method: "GET"})
	}
	if err != nil {
		t.Fatalf("watch %s: %v", path, err)
	}
	w.body = bufio.NewReader(resp.Body)
	answer := render2(resp, nil, strings.Contains(path, "@raw"))
	if resp.StatusCode != http.StatusOK {
		body, err := io.ReadAll(w.body)
		if err != nil {
			t.Fatal(err)
		}
		s.forget(name)
		return answer + string(body)
	}
	return answer
}

// next returns the next line that a watch is told.
func (s *v2Script) next(t *testing.T, name string) string {
	t.Helper()
	w := s.watches[name]
	if w == nil {
		t.Fatalf("there is no watch %s", name)
	}
	if err := w.conn.SetDeadline(time.Now().Add(v2Patience)); err != nil {
		t.Fatal(err)
	}
	line, err := w.body.ReadString('\n')
	var late net.Error
	switch {
	case err == nil:
		return line
	case errors.As(err, &late) && late.Timeout():
		return "silence"
	case err == io.EOF && line == "":
		s.forget(name)
		return "EOF"
	}
	return fmt.Sprintf("%q (%v)", line, err)
}

func (s *v2Script) forget(name string) {
	s.watches[name].conn.Close()
	delete(s.watches, name)
}
