// Package leader holds what only a leader does: expiry of leases, automatic
// compaction, promotion of learners, comparison of checksums. It is the only
// room with lease clocks, and all it can do is propose commands that carry
// the term it was elected in.
//
// It is empty so far.
package leader
