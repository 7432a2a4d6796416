package crash

import (
	"strings"
	"testing"
)

func TestMembersMeetInAnotherCluster(t *testing.T) {
	t.Parallel()
	registry := newSite(t)
	process := registry.start(t)
	known := registry.client(t)
	process.ready(t, known)
	ctx := t.Context()

	c := &cluster{t: t}
	flags := []string{"--discovery-token=fleet", "--discovery-endpoints=" + registry.addr}
	early := c.newMember()
	c.join(early, flags...)
	if code := early.code(t); code != 1 || !strings.Contains(early.output.String(), "discovery: size key not found") {
		t.Errorf("without a size it ended with %d:\n%s", code, early.output)
	}

	if _, err := known.Put(ctx, "/_etcd/registry/fleet/_config/size", "3"); err != nil {
		t.Fatal(err)
	}
	c.members = nil
	for range 3 {
		c.join(c.newMember(), flags...)
	}
	for _, m := range c.members {
		c.hears(m, "ready to serve client requests")
	}
	if list := c.members[0].list(t); len(list) != 3 {
		t.Errorf("members %v", list)
	}

	late := c.newMember()
	late.name = "late"
	c.join(late, flags...)
	if code := late.code(t); code != 1 || !strings.Contains(late.output.String(), "discovery: cluster is full") {
		t.Errorf("one too many ended with %d:\n%s", code, late.output)
	}
}
