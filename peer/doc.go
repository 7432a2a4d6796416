// Package peer is how members talk to each other: raft messages, snapshot
// streams, and calls handed on to the leader. It carries bytes between
// members it can name and never decides anything.
//
// It is empty so far: one member needs no peers.
package peer
