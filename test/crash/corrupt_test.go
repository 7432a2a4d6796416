package crash

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

// forge gives the table of a member that was killed an entry that nobody has
// agreed to, in place of the one that its log holds.
func forge(t *testing.T, m *clusterMember) {
	t.Helper()
	machine, err := state.Open(state.Options{Dir: filepath.Join(m.dir, "table")})
	if err != nil {
		t.Fatal(err)
	}
	command, err := state.Command{Kind: state.Put, Request: &pb.PutRequest{Key: []byte("forged"), Value: []byte("x")}}.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	at := machine.View()
	if _, err := machine.Apply([]state.Entry{{Index: at.Index + 1, Term: at.Term, Commands: [][]byte{command}}}); err != nil {
		t.Fatal(err)
	}
	if err := machine.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := machine.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestAMemberWithOtherData is about one of three whose table was changed behind
// its back. It is found, named and fenced, the others serve on, and it can be
// replaced.
func TestAMemberWithOtherData(t *testing.T) {
	t.Parallel()
	// The table of a member that is killed is behind its log, far enough to be
	// forged.
	c := &cluster{t: t, flags: []string{"--heartbeat-interval=50", "--election-timeout=10000", "--strict-reconfig-check=false"}}
	c.found(3)
	c.put(20, 10)
	ctx := t.Context()
	m := c.others(c.leader())[0]
	healthy := c.others(m)
	c.kill(m)
	forge(t, m)

	m.flags = []string{"--feature-gates=InitialCorruptCheck=true"}
	c.start(m, "new")
	if code, text := m.code(t), m.output.String(); code != 1 || !strings.Contains(text, "found data inconsistency with peers") || strings.Contains(text, "ready to serve") {
		t.Errorf("asked to look first, it ended with %d:\n%s", code, text)
	}

	m.flags = nil
	c.start(m, "new")
	started := time.Now()
	alarms := func() (named []string) {
		var r *clientv3.AlarmResponse
		if err := insist(t, func() (err error) { r, err = healthy[0].client.AlarmList(ctx); return err }); err != nil {
			t.Fatal(err)
		}
		for _, a := range r.Alarms {
			named = append(named, fmt.Sprintf("%v of %x", a.Alarm, a.MemberID))
		}
		return named
	}
	c.await("an alarm", func() bool { return len(alarms()) > 0 })
	t.Logf("the alarm came %v after the start", time.Since(started).Round(time.Millisecond))
	if got, want := fmt.Sprint(alarms()), fmt.Sprintf("[CORRUPT of %x]", m.id); got != want {
		t.Fatalf("alarms %s, want %s", got, want)
	}

	c.await("the fence", func() bool {
		_, err := m.client.Get(ctx, "key1", clientv3.WithSerializable())
		return says(err, fault.Corrupt)
	})
	for what, ask := range map[string]func() error{
		"get":    func() error { _, err := m.client.Get(ctx, "key1"); return err },
		"put":    func() error { _, err := m.client.Put(ctx, "key1", "v"); return err },
		"delete": func() error { _, err := m.client.Delete(ctx, "key1"); return err },
	} {
		if err := ask(); !says(err, fault.Corrupt) {
			t.Errorf("%s on the corrupt member: %v", what, err)
		}
	}
	if got := healthOf(t, m); got != http.StatusServiceUnavailable {
		t.Errorf("health of the corrupt member: %d", got)
	}
	for _, one := range healthy {
		if _, err := one.client.Put(ctx, "after", "v"); err != nil {
			t.Errorf("put on %s: %v", one.name, err)
		}
		if _, err := one.client.Get(ctx, "after"); err != nil {
			t.Errorf("get on %s: %v", one.name, err)
		}
		if got := healthOf(t, one); got != http.StatusOK {
			t.Errorf("health of %s: %d", one.name, got)
		}
	}

	// To end the alarm heals nothing.
	if _, err := healthy[0].client.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: m.id, Alarm: pb.AlarmType_CORRUPT}); err != nil {
		t.Fatal(err)
	}
	c.await("the alarm again", func() bool { return len(alarms()) > 0 })

	// To replace the member does.
	if _, err := healthy[0].client.MemberRemove(ctx, m.id); err != nil {
		t.Fatal(err)
	}
	if code := m.code(t); code != 0 {
		t.Errorf("the removed member ended with %d:\n%s", code, m.output)
	}
	if got := alarms(); len(got) > 0 {
		t.Errorf("alarms %v are left of the removed member", got)
	}
	if err := os.RemoveAll(m.dir); err != nil {
		t.Fatal(err)
	}
	if _, err := healthy[0].client.MemberAdd(ctx, []string{m.url}); err != nil {
		t.Fatal(err)
	}
	c.start(m, "existing")
	m.ready(t, m.client)
	c.wantEqual()
}

func healthOf(t *testing.T, m *clusterMember) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.addr+"/health", nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	return r.StatusCode
}
