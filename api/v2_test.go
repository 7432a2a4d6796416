package api

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
	"github.com/kvorum/kvorum/web"
)

// v2 sends one request to the v2 API and returns the answer's status and body.
func (m *member) v2(t *testing.T, method, path, form string) (int, string) {
	t.Helper()
	resp := m.openV2(t, method, path, form)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, string(body)
}

func (m *member) openV2(t *testing.T, method, path, form string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, m.url+path, strings.NewReader(form))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp
}

func (m *member) wantV2(t *testing.T, method, path, form string, status int, body string) {
	t.Helper()
	gotStatus, got := m.v2(t, method, path, form)
	if gotStatus != status || strings.TrimSuffix(got, "\n") != body {
		t.Errorf("%s %s %s: %d %swant %d %s", method, path, form, gotStatus, got, status, body)
	}
}

func TestOneKeyspaceForBothAPIs(t *testing.T) {
	m := newMember(t, Options{})
	ctx := t.Context()
	m.wantV2(t, "PUT", "/v2/keys/a/b", "value=one", 201, `{"action":"set","node":{"key":"/a/b","value":"one","modifiedIndex":2,"createdIndex":2}}`)
	answer, err := m.kv().Range(ctx, get("/a/b"))
	if err != nil || len(answer.Kvs) != 1 || string(answer.Kvs[0].Value) != "one" {
		t.Fatalf("v3 reads %v (%v)", answer, err)
	}
	if _, err := m.kv().Put(ctx, put("/a/b", "two")); err != nil {
		t.Fatal(err)
	}
	m.wantV2(t, "GET", "/v2/keys/a/b", "", 200, `{"action":"get","node":{"key":"/a/b","value":"two","modifiedIndex":3,"createdIndex":3}}`)
	m.wantV2(t, "PUT", "/v2/keys/a/b?prevIndex=3", "value=three", 200,
		`{"action":"compareAndSwap","node":{"key":"/a/b","value":"three","modifiedIndex":4,"createdIndex":3},"prevNode":{"key":"/a/b","value":"two","modifiedIndex":3,"createdIndex":3}}`)
	if _, err := m.kv().DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("/"), RangeEnd: []byte("0")}); err != nil {
		t.Fatal(err)
	}
	m.wantV2(t, "GET", "/v2/keys/a", "", 404, `{"errorCode":100,"message":"Key not found","cause":"/a","index":5}`)
}

// What v3 changes is told to those who wait in v2: of a transaction, one-shot
// polls are told the first change that concerns them, streams all.
func TestV2HearsOfV3(t *testing.T) {
	m := newMember(t, Options{})
	poll := m.openV2(t, "GET", "/v2/keys/d?wait=true&recursive=true", "")
	defer poll.Body.Close()
	stream := m.openV2(t, "GET", "/v2/keys/d?wait=true&recursive=true&stream=true", "")
	defer stream.Body.Close()
	var ops []*pb.RequestOp
	for _, key := range []string{"/a", "/d/x", "/d/_hidden", "/d/y"} {
		ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put(key, "1")}})
	}
	if _, err := m.kv().Txn(t.Context(), &pb.TxnRequest{Success: ops}); err != nil {
		t.Fatal(err)
	}
	told := func(key string) string {
		return fmt.Sprintf(`{"action":"set","node":{"key":"%s","value":"1","modifiedIndex":2,"createdIndex":2}}`+"\n", key)
	}
	if all, err := io.ReadAll(poll.Body); err != nil || string(all) != told("/d/x") {
		t.Errorf("the poll was told %q (%v)", all, err)
	}
	lines := bufio.NewReader(stream.Body)
	for _, key := range []string{"/d/x", "/d/y"} {
		if line, err := lines.ReadString('\n'); err != nil || line != told(key) {
			t.Errorf("the stream was told %q (%v), want %s", line, err, key)
		}
	}
}

func TestV2CanBeSwitchedOff(t *testing.T) {
	m := newMember(t, Options{NoV2: true})
	m.wantV2(t, "GET", "/v2/keys", "", 404, "404 page not found")
	m.wantV2(t, "GET", "/version", "", 200, `{"etcdserver":"3.7.3","etcdcluster":"3.7.0","storage":"3.7.0"}`)
}

func TestV2WithoutQuorum(t *testing.T) {
	m := newMember(t, Options{})
	m.wantV2(t, "PUT", "/v2/keys/a", "value=1", 201, `{"action":"set","node":{"key":"/a","value":"1","modifiedIndex":2,"createdIndex":2}}`)
	m.set(func(s *sequencer) {
		s.mu.status.Leader = 0
		s.mu.propose = fmt.Errorf("replica: propose: %w", fault.Timeout)
		s.mu.barrier = fmt.Errorf("replica: barrier: %w", fault.Timeout)
	})
	late := `{"errorCode":300,"message":"Raft Internal Error","cause":"etcdserver: request timed out","index":0}`
	m.wantV2(t, "PUT", "/v2/keys/a", "value=2", 500, late)
	m.wantV2(t, "GET", "/v2/keys/a?quorum=true", "", 500, late)
	m.wantV2(t, "GET", "/v2/keys/a", "", 200, `{"action":"get","node":{"key":"/a","value":"1","modifiedIndex":2,"createdIndex":2}}`)
	m.wantV2(t, "GET", "/v2/members/leader", "", 503, `{"message":"During election"}`)
	m.wantV2(t, "GET", "/v2/stats/leader", "", 403, `{"message":"not current leader"}`)
	poll := m.openV2(t, "GET", "/v2/keys/a?wait=true", "")
	defer poll.Body.Close()
	if poll.StatusCode != 200 || poll.Header.Get("X-Etcd-Index") != "2" {
		t.Errorf("a poll is answered %d, index %s", poll.StatusCode, poll.Header.Get("X-Etcd-Index"))
	}
}

func TestV2OfALearnerIsLocal(t *testing.T) {
	m := newMember(t, Options{})
	m.set(func(s *sequencer) { s.mu.status.Learner = true })
	refused := `{"errorCode":300,"message":"Raft Internal Error","cause":"etcdserver: rpc not supported for learner","index":0}`
	m.wantV2(t, "PUT", "/v2/keys/a", "value=1", 500, refused)
	m.wantV2(t, "GET", "/v2/keys?quorum=true", "", 500, refused)
	m.wantV2(t, "GET", "/v2/keys", "", 200, `{"action":"get","node":{"dir":true}}`)
}

func TestV2OnAFullDisk(t *testing.T) {
	m := newMember(t, Options{})
	m.wantV2(t, "PUT", "/v2/keys/a", "value=1", 201, `{"action":"set","node":{"key":"/a","value":"1","modifiedIndex":2,"createdIndex":2}}`)
	m.set(func(s *sequencer) { s.mu.size = defaultQuotaBytes })
	m.wantV2(t, "PUT", "/v2/keys/a", "value=2", 500, `{"errorCode":300,"message":"Raft Internal Error","cause":"etcdserver: mvcc: database space exceeded","index":0}`)
	m.wantV2(t, "DELETE", "/v2/keys/a", "", 200, `{"action":"delete","node":{"key":"/a","modifiedIndex":3,"createdIndex":2},"prevNode":{"key":"/a","value":"1","modifiedIndex":2,"createdIndex":2}}`)
}

// Whoever waits and hangs up is forgotten, and whoever waits when the server
// stops finds the end of an answer without an event.
func TestV2WaitingEnds(t *testing.T) {
	m := newMember(t, Options{})
	waiting := func(n int) {
		t.Helper()
		deadline := time.Now().Add(patience)
		for want := fmt.Sprintf(`"watchers":%d}`, n); ; {
			_, stats := m.v2(t, "GET", "/v2/stats/store", "")
			if strings.HasSuffix(stats, want) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s, want %s", stats, want)
			}
		}
	}
	gone := m.openV2(t, "GET", "/v2/keys/a?wait=true", "")
	stays := m.openV2(t, "GET", "/v2/keys/a?wait=true", "")
	defer stays.Body.Close()
	waiting(2)
	gone.Body.Close()
	waiting(1)
	m.hub.Close()
	if rest, err := io.ReadAll(stays.Body); err != nil || len(rest) != 0 {
		t.Errorf("at the end it was told %q (%v)", rest, err)
	}
	waiting(0)
}

// What was compacted is not told any more, and the error says where to begin.
func TestV2OlderThanHistory(t *testing.T) {
	m := newMember(t, Options{})
	for i := range 5 {
		if _, err := m.kv().Put(t.Context(), put("/a", fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.kv().Compact(t.Context(), &pb.CompactionRequest{Revision: 4}); err != nil {
		t.Fatal(err)
	}
	oldest := m.machine.View().OldestChanges()
	m.wantV2(t, "GET", fmt.Sprintf("/v2/keys/a?wait=true&waitIndex=%d", oldest-1), "", 400, fmt.Sprintf(
		`{"errorCode":401,"message":"The event in requested index is outdated and cleared","cause":"the requested history has been cleared [%d/%d]","index":6}`, oldest, oldest-1))
	m.wantV2(t, "GET", fmt.Sprintf("/v2/keys/a?wait=true&waitIndex=%d", oldest), "", 200, fmt.Sprintf(
		`{"action":"set","node":{"key":"/a","value":"%d","modifiedIndex":%d,"createdIndex":%d},"prevNode":{"key":"/a","value":"%d","modifiedIndex":%d,"createdIndex":%d}}`,
		oldest-2, oldest, oldest, oldest-3, oldest-1, oldest-1))
}

func TestV2Members(t *testing.T) {
	m := newMember(t, Options{LaxReconfig: true})
	status, added := m.v2json(t, "POST", "/v2/members", `{"peerURLs":["http://127.0.0.1:7"]}`)
	if status != 201 || !strings.Contains(added, `"name":"","peerURLs":["http://127.0.0.1:7"],"clientURLs":[]}`) {
		t.Fatalf("added: %d %s", status, added)
	}
	var id state.MemberID
	for _, one := range m.machine.View().Members() {
		if one.ID != self {
			id = one.ID
		}
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", "", `{"peerURLs":["http://127.0.0.1:7"]}`, 409, `{"message":"membership: peerURL exists"}`},
		{"PUT", fmt.Sprintf("/%x", id), `{"peerURLs":["http://127.0.0.1:8"]}`, 204, ""},
		{"PUT", fmt.Sprintf("/%x", id), `{"peerURLs":["http://127.0.0.1:2380"]}`, 409, `{"message":"membership: peerURL exists"}`},
		{"DELETE", fmt.Sprintf("/%x", id), "", 204, ""},
		{"DELETE", fmt.Sprintf("/%x", id), "", 410, fmt.Sprintf(`{"message":"Member permanently removed: %x"}`, id)},
		{"PUT", fmt.Sprintf("/%x", id), `{"peerURLs":["http://127.0.0.1:9"]}`, 500, `{"message":"Internal Server Error"}`},
	} {
		if status, got := m.v2json(t, c.method, "/v2/members"+c.path, c.body); status != c.status || got != c.want {
			t.Errorf("%s %s: %d %s, want %d %s", c.method, c.path, status, got, c.status, c.want)
		}
	}
}

func (m *member) v2json(t *testing.T, method, path, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, m.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(answer)
}

// Who waits is told all, also if it comes to listen when much has happened
// since: only who begins is too late then.
func TestV2ThoseWhoWaitMayFallBehind(t *testing.T) {
	m := newMember(t, Options{})
	_, plain, err := m.api.HTTP(m.conn)
	if err != nil {
		t.Fatal(err)
	}
	_, wait := plain.Answer(t.Context(), &web.Request{Method: "GET", Path: "/v2/keys/a", Query: "wait=true&stream=true"}, nil)
	if wait == nil {
		t.Fatal("there is nothing to wait for")
	}
	defer wait.Close()
	const changes = state.ChangesKept + 200
	for range changes {
		if _, err := m.kv().Put(t.Context(), put("/a", "1")); err != nil {
			t.Fatal(err)
		}
	}
	told := 0
	for {
		piece, done := wait.Next(nil)
		told += strings.Count(string(piece), `"action":"set"`)
		if done {
			t.Fatalf("the stream is over after %d changes", told)
		}
		if len(piece) == 0 {
			break
		}
	}
	if told != changes {
		t.Errorf("%d changes were told, want %d", told, changes)
	}
}

// What is refused for its depth has not filled the disk.
func TestV2DeepPathsDoNotFillTheDisk(t *testing.T) {
	m := newMember(t, Options{})
	malformed := `{"errorCode":300,"message":"Raft Internal Error","cause":"kvorum: malformed request","index":0}`
	m.wantV2(t, "PUT", "/v2/keys"+strings.Repeat("/a", 100_000), "value=1", 500, malformed)
	m.wantV2(t, "PUT", "/v2/keys/a", "value=1", 201, `{"action":"set","node":{"key":"/a","value":"1","modifiedIndex":2,"createdIndex":2}}`)
}

// A stream that begins far back is told piece by piece: history need not fit
// into memory.
func TestV2TellsHistoryInPieces(t *testing.T) {
	m := newMember(t, Options{})
	const changes, size = 12, 512 << 10
	value := []byte(strings.Repeat("x", size))
	for range changes {
		if _, err := m.kv().Put(t.Context(), &pb.PutRequest{Key: []byte("/a"), Value: value}); err != nil {
			t.Fatal(err)
		}
	}
	_, plain, err := m.api.HTTP(m.conn)
	if err != nil {
		t.Fatal(err)
	}
	_, wait := plain.Answer(t.Context(), &web.Request{Method: "GET", Path: "/v2/keys/a", Query: "wait=true&stream=true&waitIndex=2"}, nil)
	if wait == nil {
		t.Fatal("there is nothing to wait for")
	}
	defer wait.Close()
	var all []byte
	for {
		piece, done := wait.Next(nil)
		if done {
			t.Fatal("the stream is over")
		}
		if len(piece) == 0 {
			break
		}
		if len(piece) > 6*size { // a message of at least a megabyte, and each change with the value before
			t.Errorf("a piece of %d bytes", len(piece))
		}
		all = append(all, piece...)
	}
	if told := strings.Count(string(all), `"action":"set"`); told != changes {
		t.Errorf("%d changes were told, want %d", told, changes)
	}
}
