// Package port finds addresses for the servers of tests.
package port

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

// given are the addresses that were given away. They lie below those that the
// system gives to callers, who would take them while a server is not running.
var given = struct {
	sync.Mutex
	addrs map[string]bool
}{addrs: map[string]bool{}}

// Free returns an address of this machine that nobody listens on, each only
// once.
func Free(t testing.TB) string {
	t.Helper()
	given.Lock()
	defer given.Unlock()
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(20_000))
		if given.addrs[addr] {
			continue
		}
		if l, err := net.Listen("tcp", addr); err == nil {
			given.addrs[addr] = true
			l.Close()
			return addr
		}
	}
	t.Fatal("no port is free")
	return ""
}
