package node

import "github.com/kvorum/kvorum/leader"

// duties are what this member does while it leads, all of it.
func (m *member) duties() []leader.Duty {
	return nil
}
