//go:build !invariants

package mvcc

// invariants arms checks that cost more than what they check.
const invariants = false
