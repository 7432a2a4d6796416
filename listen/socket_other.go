//go:build !unix

package listen

import "net"

// newSocket would return c as a connection that can be asked for what needs no
// waiting, on systems that can.
func newSocket(c counted) net.Conn { return &c }
