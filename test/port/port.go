// Package port finds addresses for the servers of tests.
package port

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

// signs stand on UDP's ports of the numbers that were given away, for as long
// as this process lives: tests of other processes look for addresses meanwhile.
var signs struct {
	sync.Mutex
	conns []net.PacketConn
}

// Free returns an address of this machine that nobody listens on, and that no
// test is given again. It lies below those that the system gives to callers,
// who would take it while a server is not running.
func Free(t testing.TB) string {
	t.Helper()
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(20_000))
		if sign := put(addr); sign != nil {
			signs.Lock()
			signs.conns = append(signs.conns, sign)
			signs.Unlock()
			return addr
		}
	}
	t.Fatal("no port is free")
	return ""
}

// Take keeps addresses for a test until it ends, if nobody listens there and
// they were not given away.
func Take(t testing.TB, addrs ...string) bool {
	var signs []net.PacketConn
	remove := func() {
		for _, sign := range signs {
			sign.Close()
		}
	}
	for _, addr := range addrs {
		sign := put(addr)
		if sign == nil {
			remove()
			return false
		}
		signs = append(signs, sign)
	}
	t.Cleanup(remove)
	return true
}

// put puts a sign on an address, or returns nil when it is taken.
func put(addr string) net.PacketConn {
	sign, err := net.ListenPacket("udp", addr)
	if err != nil {
		return nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		sign.Close()
		return nil
	}
	l.Close()
	return sign
}
