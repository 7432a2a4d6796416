//go:build !unix

package listen

import (
	"errors"
	"syscall"
)

func reuse(_ syscall.RawConn, port, address bool) error {
	if port || address {
		return errors.New("this system cannot share a port: leave out --socket-reuse-port and --socket-reuse-address")
	}
	return nil
}
