package crash

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// v2 sends one request to a member's v2 API, as curl would.
func (m *clusterMember) v2(ctx context.Context, method, path, form string) (status int, body string, err error) {
	resp, err := m.openV2(ctx, method, path, form)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func (m *clusterMember) openV2(ctx context.Context, method, path, form string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://"+m.addr+"/v2/"+path, strings.NewReader(form))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return http.DefaultClient.Do(r)
}

// poll waits for what happens to a key, and returns what it will be told.
func (m *clusterMember) poll(t *testing.T, query string) *bufio.Reader {
	t.Helper()
	resp, err := m.openV2(t.Context(), "GET", "keys/"+query, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s at %s: %s", query, m.name, resp.Status)
	}
	return bufio.NewReader(resp.Body)
}

// putV2 puts until there is a leader who has it done.
func (c *cluster) putV2(m *clusterMember, key, value string) {
	c.t.Helper()
	c.await("a put of v2", func() bool {
		status, _, err := m.v2(c.t.Context(), "PUT", "keys/"+key, "value="+value)
		return err == nil && status/100 == 2
	})
}

func wantLine(t *testing.T, told *bufio.Reader, parts ...string) {
	t.Helper()
	line, err := told.ReadString('\n')
	for _, part := range parts {
		if err != nil || !strings.Contains(line, part) {
			t.Fatalf("told %q (%v), want %s", line, err, part)
		}
	}
}

// TestV2OutlivesLeadersAndQuorums follows those who wait: at a member that dies,
// at one that stays while another is elected, and while there is no quorum.
func TestV2OutlivesLeadersAndQuorums(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, clusterFlags)
	lead := c.leader()
	var stays, other *clusterMember
	for _, m := range c.members {
		switch {
		case m == lead:
		case stays == nil:
			stays = m
		default:
			other = m
		}
	}

	// Whatever member is asked, all see the same.
	c.putV2(stays, "a", "1")
	status, body, err := lead.v2(t.Context(), "GET", "keys/a?quorum=true", "")
	if err != nil || status != 200 || !strings.Contains(body, `"key":"/a","value":"1"`) {
		t.Fatalf("the leader reads %d %s (%v)", status, body, err)
	}
	var index int
	if _, err := fmt.Sscanf(body[strings.Index(body, `"modifiedIndex":`):], `"modifiedIndex":%d`, &index); err != nil {
		t.Fatal(err)
	}
	if status, body, err := stays.v2(t.Context(), "PUT", "keys/short", "value=x&ttl=2"); err != nil || status != 201 {
		t.Fatalf("put with a time to live: %d %s (%v)", status, body, err)
	}

	// A poll at a member that dies breaks; one at another goes on.
	cut := lead.poll(t, "a?wait=true")
	kept := stays.poll(t, "a?wait=true")
	expires := stays.poll(t, "short?wait=true")
	c.kill(lead)
	if rest, err := io.ReadAll(cut); err == nil && len(rest) > 0 {
		t.Errorf("the poll at the member that died was told %q", rest)
	}
	c.putV2(stays, "a", "2")
	wantLine(t, kept, `"action":"set"`, `"value":"2"`)
	wantLine(t, expires, `"action":"expire"`, `"key":"/short"`) // the new leader's clock will do

	// Who was cut off asks somebody else, from the index on that it knows.
	wantLine(t, other.poll(t, fmt.Sprintf("a?wait=true&waitIndex=%d", index+1)), `"value":"2"`, fmt.Sprintf(`"createdIndex":%d`, index))

	// Without a quorum, what is known here can be read and waited for.
	c.kill(other)
	c.await("the leader to be missed", func() bool {
		status, _, err := stays.v2(t.Context(), "GET", "members/leader", "")
		return err == nil && status == 503
	})
	if status, body, err := stays.v2(t.Context(), "GET", "keys/a", ""); err != nil || status != 200 {
		t.Errorf("a local read: %d %s (%v)", status, body, err)
	}
	kept = stays.poll(t, "a?wait=true")
	for _, request := range [][3]string{{"PUT", "keys/b", "value=1"}, {"GET", "keys/a?quorum=true", ""}} {
		status, body, err := stays.v2(t.Context(), request[0], request[1], request[2])
		if err != nil || status != 500 || !strings.Contains(body, `"errorCode":300,"message":"Raft Internal Error","cause":"etcdserver: request timed out`) {
			t.Errorf("%s %s without a quorum: %d %s (%v)", request[0], request[1], status, body, err)
		}
	}
	c.start(other, "existing")
	c.putV2(stays, "a", "3")
	wantLine(t, kept, `"value":"3"`, `"value":"2"`)
}
