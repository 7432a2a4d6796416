// Package sim runs whole clusters in one goroutine and tries to break them.
// Clock, network, disks and chance belong to the simulation, and all chance
// comes from one seed, so that a run can be repeated exactly. What runs in it
// is real: replica, its log, wal, state, watch, and the clocks of leases. There are no sockets, and no
// api.
//
//	world_test.go    clock, events, trace, and what a seed is made of
//	member_test.go   a member: process, log, table
//	disk_test.go     the disk of a member, and what a crash leaves of it
//	network_test.go  messages and snapshots under way
//	client_test.go   clients and what they saw
//	lease_test.go    leaders who end leases, and when those have to end
//	watch_test.go    clients who watch, and what they have to be told
//	nemesis_test.go  faults
//	oracle_test.go   the committed log, replayed by a model of the store
//	history_test.go  judges what the clients saw, after the run
//	sim_test.go      the runs
//
// Each run has two phases. In the first there are faults, and nothing wrong may
// happen; then they end, and the right thing has to happen soon.
//
//	go test ./test/sim -seed 7 -runs 1 -v    repeats a run
//	make sim SEED=1 RUNS=10000               tries more of them
package sim
