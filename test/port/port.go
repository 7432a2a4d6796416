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
		sign, err := net.ListenPacket("udp", addr)
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			sign.Close()
			continue
		}
		l.Close()
		signs.Lock()
		signs.conns = append(signs.conns, sign)
		signs.Unlock()
		return addr
	}
	t.Fatal("no port is free")
	return ""
}
