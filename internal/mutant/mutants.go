//go:build mutants

// Package mutant breaks the program on purpose, to see whether the tests find
// out.
package mutant

import "os"

// A process can be told which mutant lives in it from the start.
var alive = os.Getenv("KVORUM_MUTANT")

// On tells whether the mutant of that name is alive.
func On(name string) bool { return alive == name }

// Wake lets one mutant live, none if the name is empty. It is not for use
// beside running members.
func Wake(name string) { alive = name }
