// Package kvorum is a strongly consistent, distributed key-value store that
// speaks etcd's API. The folders beside this file are the architecture:
// ARCHITECTURE.md walks through them, and arch_test.go keeps their walls.
package kvorum
