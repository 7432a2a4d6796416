package node

import (
	"fmt"
	"slices"

	"github.com/kvorum/kvorum/state"
)

// claims are as whom a member is started.
type claims struct {
	dir      string // of its data
	name     string
	peerURLs []string
}

// check refuses to run on the data of another member: a directory that was
// copied, or mounted in the wrong place. Of two runs with one identity each
// forgets what the other has promised. That a member has a new name or new
// addresses is its own affair, so both have to be those of somebody else.
func (c claims) check(id uint64, known *state.View) error {
	own := slices.Sorted(slices.Values(c.peerURLs))
	for _, m := range known.Members() {
		if uint64(m.ID) != id && m.Name != "" && m.Name == c.name && slices.Equal(slices.Sorted(slices.Values(m.PeerURLs)), own) {
			return fmt.Errorf("%s holds the data of member %x, but %s at %v is member %x: give this one its own --data-dir", c.dir, id, c.name, own, uint64(m.ID))
		}
	}
	return nil
}
