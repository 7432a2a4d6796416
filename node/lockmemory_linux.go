package node

import "syscall"

// lockMemory keeps all of this process in memory.
func lockMemory() error { return syscall.Mlockall(syscall.MCL_CURRENT | syscall.MCL_FUTURE) }
