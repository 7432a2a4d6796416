// Package crash runs the real binary and does to it what happens to processes
// and machines: it is killed, paused and told to end at random moments while
// clients write, and it is started on directories, ports and disks that have
// something wrong with them. Nothing acknowledged may be lost, every fault must
// be told in one clear line, and a start that is refused must change nothing.
//
//	KVORUM_CRASH_SECONDS   how long to go on killing; default 6
//	KVORUM_CRASH_SEED      repeats the choices of a run, as far as processes allow
package crash
