package crash

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// A network lies between members: each advertises the address of a door, and
// what comes in there is carried to the member behind it. A caller says in its
// hello who it is and whom it wants, so that each direction between two members
// can be troubled apart from all others.
type network struct {
	mu struct {
		sync.Mutex
		trouble  map[way]trouble
		changed  chan struct{} // closed when there is other trouble
		crossing map[*crossing]bool
		truncate int // snapshots that are still to be cut in the middle
	}
}

// way is one direction between two members.
type way struct{ from, to uint64 }

func (w way) back() way { return way{w.to, w.from} }

// trouble is what happens to bytes on a way; the zero value lets them pass.
type trouble struct {
	hold   bool          // they wait, and nobody is told
	refuse bool          // connections that carry them end
	delay  time.Duration // of each piece
}

// crossing is one connection through the network.
type crossing struct {
	way   way // from who has called
	ends  [2]net.Conn
	bytes int // that may still pass on the way, if limited
	limit bool
}

func (c *crossing) cut() {
	for _, end := range c.ends {
		end.Close()
	}
}

func newNetwork() *network {
	n := &network{}
	n.mu.trouble = map[way]trouble{}
	n.mu.changed = make(chan struct{})
	n.mu.crossing = map[*crossing]bool{}
	return n
}

// set makes trouble on ways, or ends it.
func (n *network) set(what trouble, ways ...way) {
	n.mu.Lock()
	for _, w := range ways {
		n.mu.trouble[w] = what
	}
	close(n.mu.changed)
	n.mu.changed = make(chan struct{})
	n.mu.Unlock()
	if what.refuse {
		n.cut(ways...)
	}
}

// cut ends the connections that there are.
func (n *network) cut(ways ...way) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.mu.crossing {
		for _, w := range ways {
			if c.way == w || c.way == w.back() {
				c.cut()
			}
		}
	}
}

// truncateSnapshots has the next snapshots cut in the middle.
func (n *network) truncateSnapshots(count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.truncate = count
}

func (n *network) untruncated() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mu.truncate
}

// door opens an address that leads to another, until the test ends.
func (n *network) door(t testing.TB, behind string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			running.Go(func() { n.cross(ctx, conn, behind) })
		}
	})
	t.Cleanup(func() {
		stop()
		l.Close()
		running.Wait()
	})
	return l.Addr().String()
}

// Where a hello says what matters here; PROTOCOL.md of package peer has it all.
const (
	helloMagic    = "\x8bkvpr"
	helloLane     = 20
	helloFrom     = 30
	helloTo       = 38
	helloBytes    = 46
	snapshotLane  = 4
	snapshotBytes = 100 << 10 // that pass of one that is cut
)

// cross carries one connection.
func (n *network) cross(ctx context.Context, caller net.Conn, behind string) {
	defer caller.Close()
	stop := context.AfterFunc(ctx, func() { caller.Close() })
	defer stop()
	head := make([]byte, helloBytes)
	read, err := io.ReadFull(caller, head)
	head = head[:read]
	c := &crossing{}
	if err == nil && string(head[:len(helloMagic)]) == helloMagic {
		c.way = way{binary.BigEndian.Uint64(head[helloFrom:]), binary.BigEndian.Uint64(head[helloTo:])}
	}
	if !n.pass(ctx, c.way) {
		return
	}
	callee, err := net.Dial("tcp", behind)
	if err != nil {
		return
	}
	defer callee.Close()
	stop = context.AfterFunc(ctx, func() { callee.Close() })
	defer stop()

	c.ends = [2]net.Conn{caller, callee}
	n.mu.Lock()
	n.mu.crossing[c] = true
	if n.mu.truncate > 0 && c.way.from != 0 && head[helloLane] == snapshotLane {
		n.mu.truncate--
		c.limit, c.bytes = true, snapshotBytes
	}
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		delete(n.mu.crossing, c)
		n.mu.Unlock()
	}()

	var both sync.WaitGroup
	both.Go(func() { n.carry(ctx, c, callee, io.MultiReader(bytes.NewReader(head), caller), c.way) })
	both.Go(func() { n.carry(ctx, c, caller, callee, c.way.back()) })
	both.Wait()
}

// carry carries the bytes of one direction, until there are no more.
func (n *network) carry(ctx context.Context, c *crossing, to net.Conn, from io.Reader, w way) {
	piece := make([]byte, 16<<10)
	for {
		k, err := from.Read(piece)
		if !n.pass(ctx, w) {
			c.cut()
			return
		}
		if k > 0 {
			if c.limit && w == c.way {
				if c.bytes -= k; c.bytes < 0 {
					c.cut()
					return
				}
			}
			if _, err := to.Write(piece[:k]); err != nil {
				c.cut()
				return
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			_ = to.(*net.TCPConn).CloseWrite() // or it is closed
			return
		case err != nil:
			c.cut()
			return
		}
	}
}

// pass waits until bytes may pass; false: they never will.
func (n *network) pass(ctx context.Context, w way) bool {
	for {
		n.mu.Lock()
		is, changed := n.mu.trouble[w], n.mu.changed
		n.mu.Unlock()
		var later <-chan time.Time
		switch {
		case is.refuse:
			return false
		case is.hold:
		case is.delay > 0:
			later = time.After(is.delay)
		default:
			return true
		}
		select {
		case <-later:
			return true
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}
