//go:build !mutants

// Package mutant breaks the program on purpose, to see whether the tests find
// out. A mutant is a mistake that somebody has made in a store like this one,
// guarded by On. Without the build tag mutants On is always false, and nothing
// of it is compiled in.
package mutant

// On tells whether the mutant of that name is alive.
func On(string) bool { return false }
