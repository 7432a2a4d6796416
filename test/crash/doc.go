// Package crash runs the real binary and does to it what happens to processes
// and machines: it is killed, paused and told to end at random moments while
// clients write, and it is started on directories, ports and disks that have
// something wrong with them. Members of clusters also cannot hear each other, in
// one direction or both, or only slowly. Nothing acknowledged may be lost, every fault must
// be told in one clear line, and a start that is refused must change nothing.
//
//	KVORUM_CRASH_SECONDS   how long to go on killing; default 4
//	KVORUM_CRASH_SEED      repeats the choices of a run, as far as processes allow
//
// A history that cannot be is written to a file, for package linear to judge
// again.
package crash
