package crash

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/kvorum/kvorum/fault"
)

// refused tells whether a member that was started has ended by itself, with
// one line that says this.
func (m *clusterMember) refused(t *testing.T, says ...string) {
	t.Helper()
	if code := m.code(t); code != 1 {
		t.Errorf("%s ended with %d", m.name, code)
	}
	line := oneLine(t, m.output.String())
	for _, text := range says {
		if !strings.Contains(line, text) {
			t.Errorf("does not say %q: %s", text, line)
		}
	}
}

// says waits until a member has logged a line that holds all these words.
func (c *cluster) says(m *clusterMember, words ...string) {
	c.t.Helper()
	c.await(fmt.Sprintf("%s to say %q", m.name, words), func() bool {
		for line := range strings.Lines(m.output.String()) {
			all := true
			for _, word := range words {
				all = all && strings.Contains(line, word)
			}
			if all {
				return true
			}
		}
		return false
	})
}

// TestStrangersAreRefused starts members as what they are not, one after the
// other, in the place of a member of a cluster that goes on meanwhile.
func TestStrangersAreRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, steadyFlags)
	c.put(10, 10)
	lead := c.leader()
	term := c.status(lead).RaftTerm
	place, other := c.others(lead)[0], c.others(lead)[1]
	c.kill(place)
	own := place.dir

	// Its own name and addresses, but nothing of what it has promised.
	place.dir = newSite(t).dir
	c.start(place, "new")
	place.refused(t, fmt.Sprintf("%x", place.id), "has already been bootstrapped", place.dir, "remove the member from the cluster and add it again")
	c.start(place, "existing")
	place.refused(t, fmt.Sprintf("%x", place.id), "has run before", "remove the member and add it again")

	// A founder by another token, and one with another list.
	place.flags = []string{"--initial-cluster-token=another"}
	c.start(place, "new")
	place.refused(t, "runs cluster", "would found another", "--initial-cluster-token")
	place.flags = []string{"--initial-cluster=" + place.name + "=" + place.url + "," + other.name + "=" + other.url}
	c.start(place, "new")
	place.refused(t, "runs cluster", "would found another", "--initial-cluster")

	// Another member's data.
	c.kill(other)
	place.dir, place.flags = newSite(t).dir, nil
	if err := os.CopyFS(place.dir, os.DirFS(other.dir)); err != nil {
		t.Fatal(err)
	}
	c.start(other, "new")
	other.ready(t, other.client)
	before := contents(t, place.dir)
	c.start(place, "new")
	place.refused(t, place.dir, fmt.Sprintf("holds the data of member %x", other.id), fmt.Sprintf("is member %x", place.id), "--data-dir")
	for _, line := range difference(before, contents(t, place.dir)) {
		if !strings.Contains(line, place.dir+"/table/") { // which its engine puts in order
			t.Errorf("the directory was changed: %s", line)
		}
	}

	// Names and addresses that are not its own alone.
	place.dir = newSite(t).dir
	place.flags = []string{"--name=" + other.name}
	c.start(place, "new")
	place.refused(t, "--initial-cluster says that "+other.name+" is at", "--initial-advertise-peer-urls", "make both the same")
	place.flags = []string{fmt.Sprintf("--initial-cluster=%s=%s,%s=%s", place.name, place.url, other.name, place.url)}
	c.start(place, "new")
	if code := place.code(t); code != 2 || !strings.Contains(place.output.String(), place.url+" is given to ") {
		t.Errorf("an address for two: code %d\n%s", code, place.output)
	}
	if _, err := other.client.MemberAdd(t.Context(), []string{place.url}); !says(err, fault.PeerURLExists) {
		t.Errorf("an address was added twice: %v", err)
	}

	// A cluster of its own, where the member was.
	place.flags = []string{"--initial-cluster=" + place.name + "=" + place.url}
	c.start(place, "new")
	place.ready(t, place.client)
	c.says(other, "cluster ID mismatch", "remedy", "join with an empty data directory")
	c.kill(place)

	place.dir, place.flags = own, nil
	c.start(place, "new")
	place.ready(t, place.client)
	c.put(10, 20)
	c.wantEqual()
	if now := c.status(c.leader()).RaftTerm; now != term {
		t.Errorf("term %d before, %d after", term, now)
	}
}
