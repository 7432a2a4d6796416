// Package node is the hall where the rings meet: it opens, wires, runs and
// stops, and holds no logic of its own. What happens when an entry has been
// applied stands in applied.go, all of it; the order of shutdown is Run, read
// from top to bottom.
package node
