//go:build !unix

package rpc

import "net"

// socket would write without waiting, on systems that can.
type socket struct{}

func newSocket(net.Conn) *socket { return nil }

func (*socket) try([]byte) (int, error) { return 0, net.ErrClosed }

func (*socket) end() {}
