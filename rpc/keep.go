package rpc

import (
	"errors"
	"math"
	"math/rand/v2"
	"net"
	"time"

	"golang.org/x/net/http2"
)

const (
	// A client is told to leave in two steps, so that no request is lost that
	// was under way: streams count until it has confirmed that it knows, or
	// should have.
	leaveTimeout = 5 * time.Second

	strikesMax       = 2
	quietPingsMin    = 2 * time.Hour // between pings without calls
	ageJitterPortion = 10            // connections made together shall not end together

	restAfter = time.Second // of silence
)

var leavePing = [8]byte{'k', 'v', 'l', 'e', 'a', 'v', 'i', 'n'}

// keep is what is known of a connection's age and liveliness. It is guarded by
// the connection's mu. Times are counted from the connection's beginning.
type keep struct {
	timer *time.Timer // nil: not established, or ended

	answered bool // since the last ping of the client
	strikes  int
	lastPing time.Duration // of the client
	pinged   bool

	cutOff bool // what the reader read, so that it rests

	asked     bool          // for a sign of life
	askedAt   time.Duration // and when
	idleSince time.Duration
	ageMax    time.Duration
	leaving   bool // the client was told to leave
	leaveAt   time.Duration
	graceEnds time.Duration
}

var (
	errSilent = errors.New("rpc: the client has been silent")
	past      = time.Unix(1, 0)
)

func (k *keep) stop() {
	if k.timer != nil {
		k.timer.Stop()
		k.timer = nil
	}
}

// establish ends the handshake. c.mu is held.
func (c *conn) establish() {
	c.established = true
	c.nc.SetDeadline(time.Time{})
	k := &c.keep
	k.graceEnds = forever
	if k.ageMax = c.options.ConnectionAgeMax; k.ageMax != forever {
		portion := k.ageMax / ageJitterPortion
		k.ageMax += time.Duration(rand.Int64N(int64(2*portion)+1)) - portion
	}
	k.idleSince = time.Since(c.born)
	k.timer = time.AfterFunc(min(c.server.restAfter, k.ageMax, c.options.ConnectionIdleMax, c.options.KeepaliveInterval), c.tick)
}

// idle is called when the last call has ended. c.mu is held.
func (c *conn) idle() {
	if c.options.ConnectionIdleMax != forever {
		c.keep.idleSince = time.Since(c.born)
	}
	if c.left {
		c.close()
	}
}

// close gives a client that has left the time to read what is on the way, and
// to close the connection itself. c.mu is held.
func (c *conn) close() {
	if !c.closing {
		c.closing = true
		c.nc.SetReadDeadline(time.Now().Add(lingerTimeout))
	}
}

// tick does what is due, and comes again for what is due next.
func (c *conn) tick() {
	c.mu.Lock()
	defer c.flush()
	defer c.mu.Unlock()
	k := &c.keep
	if k.timer == nil {
		return
	}
	now, next := time.Since(c.born), forever
	due := func(since, after time.Duration) bool {
		if after == forever || since == forever {
			return false
		}
		if since+after <= now {
			return true
		}
		next = min(next, since+after-now)
		return false
	}

	idleSince := k.idleSince
	if len(c.calls) > 0 {
		idleSince = now
	}
	if !k.leaving && due(idleSince, c.options.ConnectionIdleMax) {
		c.startLeaving("max_idle")
	}
	if !k.leaving && due(k.ageMax, 0) {
		c.startLeaving("max_age")
		if c.options.ConnectionAgeGrace != forever {
			k.graceEnds = now + c.options.ConnectionAgeGrace
		}
	}
	if k.leaving && !c.left && due(k.leaveAt, leaveTimeout) {
		c.finishLeaving()
	}
	heard := time.Duration(c.lastRead.Load())
	if !k.cutOff && !c.closing && due(heard, c.server.restAfter) {
		k.cutOff = true
		c.nc.SetReadDeadline(past)
	}
	if k.asked && heard > k.askedAt {
		k.asked = false
	}
	if !k.asked && due(heard, c.options.KeepaliveInterval) {
		k.asked, k.askedAt = true, now
		c.out.ping(0, [8]byte{})
	}
	if due(k.graceEnds, 0) || k.asked && due(k.askedAt, c.options.KeepaliveTimeout) {
		c.closing = true
		c.nc.Close()
		return
	}
	if next != forever {
		k.timer.Reset(next)
	}
}

// mayRest tells the reader whether its read has ended because it shall rest.
func (c *conn) mayRest(err error) bool {
	var late net.Error
	if c.rests || !errors.As(err, &late) || !late.Timeout() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.keep.cutOff {
		return false
	}
	if !c.closing { // else there is another deadline
		c.nc.SetReadDeadline(time.Time{})
	}
	c.rests = true
	return true
}

// wake ends the reader's rest.
func (c *conn) wake() {
	c.rests = false
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keep.cutOff = false
	if c.keep.timer != nil {
		c.keep.timer.Reset(c.server.restAfter)
	}
}

// leave asks the client to go when its calls have ended.
func (c *conn) leave(why string) {
	c.mu.Lock()
	if !c.established {
		c.nc.Close()
	} else if c.keep.timer != nil {
		c.startLeaving(why)
		c.keep.timer.Reset(0)
	}
	c.mu.Unlock()
	c.flush()
}

func (c *conn) startLeaving(why string) {
	k := &c.keep
	if k.leaving {
		return
	}
	k.leaving, k.leaveAt = true, time.Since(c.born)
	c.out.goAway(math.MaxInt32, http2.ErrCodeNo, why)
	c.out.ping(0, leavePing)
}

// finishLeaving lets no further call in.
func (c *conn) finishLeaving() {
	c.left = true
	c.out.goAway(c.lastID, http2.ErrCodeNo, "")
	if len(c.calls) == 0 {
		c.close()
	}
}

func (c *conn) takePing(f *http2.PingFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := &c.keep
	if f.IsAck() {
		if k.leaving && !c.left && f.Data == leavePing {
			c.finishLeaving()
		}
		return c.tired()
	}
	c.out.ping(http2.FlagPingAck, f.Data)

	now := time.Since(c.born)
	least := c.options.PingIntervalMin
	if len(c.calls) == 0 && !c.options.PingWithoutStream {
		least = quietPingsMin
	}
	switch {
	case k.answered:
		k.answered, k.strikes = false, 0
	case k.pinged && now-k.lastPing < least:
		k.strikes++
	}
	k.pinged, k.lastPing = true, now
	if k.strikes > strikesMax {
		return connError{http2.ErrCodeEnhanceYourCalm, "too_many_pings"}
	}
	return nil
}
