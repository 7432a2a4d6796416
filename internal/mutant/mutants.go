//go:build mutants

// Package mutant breaks the program on purpose, to see whether the tests find
// out.
package mutant

var alive string

// On tells whether the mutant of that name is alive.
func On(name string) bool { return alive == name }

// Wake lets one mutant live, none if the name is empty. It is not for use
// beside running members.
func Wake(name string) { alive = name }
