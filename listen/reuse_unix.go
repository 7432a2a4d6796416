//go:build unix

package listen

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// reuse sets the socket options that let a port be shared.
func reuse(raw syscall.RawConn, port, address bool) error {
	var errPort, errAddress error
	err := raw.Control(func(fd uintptr) {
		if port {
			errPort = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}
		if address {
			errAddress = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		}
	})
	for _, e := range []error{err, errPort, errAddress} {
		if e != nil {
			return fmt.Errorf("set socket options: %w", e)
		}
	}
	return nil
}
