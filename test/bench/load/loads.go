package load

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"
)

// A Load is a kind of work. It makes callers: each is one closed loop that
// asks, waits for the answer, judges it, and asks again.
type Load interface {
	// Caller makes the caller with the given number out of so many. Callers
	// share nothing, so that each may run on its connection's own goroutine.
	Caller(number, of int, random *rand.Rand) Caller
}

// A Caller is one closed loop of a load.
type Caller interface {
	// Ask appends the next request to message and names its method. The turn
	// is a number that no other request of this run was given; turns start at
	// 0 and leave no gap.
	Ask(message []byte, turn uint64) (Method, []byte)

	// Judge looks at the answer to the last Ask. The bytes are valid only
	// during the call. An error means that the server answered wrongly.
	Judge(message []byte) error
}

// Keys names a numbered set of keys, all of one size.
type Keys struct {
	Prefix string // default "k"
	Bytes  int    // size of a key, default 24; grows if prefix and number need more
	Count  uint64 // how many, default 100,000
}

func (k Keys) filled() Keys {
	if k.Prefix == "" {
		k.Prefix = "k"
	}
	if k.Bytes == 0 {
		k.Bytes = 24
	}
	if k.Count == 0 {
		k.Count = 100_000
	}
	digits := 1
	for n := k.Count - 1; n >= 10; n /= 10 {
		digits++
	}
	k.Bytes = max(k.Bytes, len(k.Prefix)+digits)
	return k
}

// append writes the key with number n: the prefix, then n with leading zeros,
// so that keys sort by number.
func (k Keys) append(b []byte, n uint64) []byte {
	b = append(b, k.Prefix...)
	for range k.Bytes - len(k.Prefix) {
		b = append(b, '0')
	}
	for i := len(b) - 1; n > 0; i-- {
		b[i] = byte('0' + n%10)
		n /= 10
	}
	return b
}

// Key is the key with number n.
func (k Keys) Key(n uint64) []byte { return k.filled().append(nil, n) }

// Part is a range of keys: the i-th of so many of equal size, which together
// hold all.
func (k Keys) Part(i, of int) (key, end []byte) {
	k = k.filled()
	at := func(i int) []byte { return k.append(nil, uint64(i)*k.Count/uint64(of)) }
	if key = at(i); i == of-1 {
		return key, k.end()
	}
	return key, at(i + 1)
}

// end is a key behind all keys of the set.
func (k Keys) end() []byte { return append([]byte(k.Prefix), '9'+1) }

// scatter maps 0..n-1 onto itself in an order that jumps about, the same each
// time: neighbours in time are not neighbours in the key space.
func scatter(i, n uint64) uint64 {
	const prime = 2654435761 // larger than any key count used, so it shares no factor with one
	return i % n * prime % n
}

// pool is a stretch of random bytes that values are cut from at random places:
// a store that compresses should gain no more than it would from real secrets.
var pool = func() []byte {
	random := rand.NewChaCha8([32]byte{1})
	b := make([]byte, 4<<20)
	_, _ = random.Read(b) // never fails
	return b
}()

func valueOf(size int, random *rand.Rand) []byte {
	at := random.IntN(len(pool) - size + 1)
	return pool[at : at+size]
}

// epoch is what stamps count from: they mean nothing to another process.
var epoch = time.Now()

const stampBytes = 8

// stampedValue tells in its first bytes when it was made.
func stampedValue(b []byte, size int, random *rand.Rand) []byte {
	b = append(b[:0], valueOf(max(size, stampBytes), random)...)
	binary.BigEndian.PutUint64(b, uint64(time.Since(epoch)))
	return b
}

func stamped(value []byte) time.Time {
	if len(value) < stampBytes {
		return epoch
	}
	return epoch.Add(time.Duration(binary.BigEndian.Uint64(value)))
}

// Order tells which key a put takes next.
type Order uint8

const (
	Random    Order = iota // any key, each time anew
	InTurn                 // the keys in order of their numbers, then again
	Scattered              // each key once, in an order that jumps about, then again
)

// Put writes values to keys.
type Put struct {
	Keys  Keys
	Value int // bytes, default 256
	Order Order
	Timed bool // each value tells when it was put
}

func (l Put) Caller(_, _ int, random *rand.Rand) Caller {
	l.Keys = l.Keys.filled()
	if l.Value == 0 {
		l.Value = 256
	}
	return &putter{Put: l, random: random}
}

type putter struct {
	Put
	random *rand.Rand
	key    []byte
	value  []byte
	last   int64 // revision of the answer before
}

func (p *putter) Ask(message []byte, turn uint64) (Method, []byte) {
	n := turn % p.Keys.Count
	switch p.Order {
	case Random:
		n = p.random.Uint64N(p.Keys.Count)
	case Scattered:
		n = scatter(turn, p.Keys.Count)
	}
	p.key = p.Keys.append(p.key[:0], n)
	if p.Timed {
		p.value = stampedValue(p.value, p.Value, p.random)
		return KVPut, appendPut(message, p.key, p.value)
	}
	return KVPut, appendPut(message, p.key, valueOf(p.Value, p.random))
}

// Judge wants each put of a caller to stand at a later revision than the one
// before it: a put that changed nothing would not.
func (p *putter) Judge(message []byte) error {
	a, err := readPut(message)
	if err != nil {
		return err
	}
	if a.revision <= p.last {
		return fmt.Errorf("put answered with revision %d after revision %d", a.revision, p.last)
	}
	p.last = a.revision
	return nil
}

// Fill puts each key once, in an order that jumps about, many in a transaction:
// a store that shall be large is so in minutes. Run it for as many Requests.
type Fill struct {
	Keys  Keys
	Value int // bytes, default 256
}

const fillEach = 128 // puts to a transaction, as many as servers take by default

// Requests is how many put all keys.
func (l Fill) Requests() int64 { return int64((l.Keys.filled().Count + fillEach - 1) / fillEach) }

func (l Fill) Caller(_, _ int, random *rand.Rand) Caller {
	l.Keys = l.Keys.filled()
	if l.Value == 0 {
		l.Value = 256
	}
	return &filler{Fill: l, random: random}
}

type filler struct {
	Fill
	random *rand.Rand
	key    []byte
	asked  int // puts
}

func (f *filler) Ask(message []byte, turn uint64) (Method, []byte) {
	f.asked = 0
	for n := turn * fillEach; n < min((turn+1)*fillEach, f.Keys.Count); n++ {
		f.key = f.Keys.append(f.key[:0], scatter(n, f.Keys.Count))
		message = appendPutIn(message, f.key, valueOf(f.Value, f.random))
		f.asked++
	}
	return KVTxn, message
}

func (f *filler) Judge(message []byte) error {
	a, err := readTxn(message)
	if err == nil && (!a.succeeded || a.responses != f.asked) {
		err = fmt.Errorf("txn of %d puts answered succeeded %t with %d responses", f.asked, a.succeeded, a.responses)
	}
	return err
}

// Get reads single keys, all of which must exist.
type Get struct {
	Keys         Keys
	Value        int // bytes each value must have, default 256
	Serializable bool
}

func (l Get) Caller(_, _ int, random *rand.Rand) Caller {
	l.Keys = l.Keys.filled()
	if l.Value == 0 {
		l.Value = 256
	}
	return &getter{Get: l, random: random}
}

type getter struct {
	Get
	random *rand.Rand
	key    []byte
}

func (g *getter) Ask(message []byte, _ uint64) (Method, []byte) {
	g.key = g.Keys.append(g.key[:0], g.random.Uint64N(g.Keys.Count))
	return KVRange, appendRange(message, rangeRequest{key: g.key, serializable: g.Serializable})
}

func (g *getter) Judge(message []byte) error {
	a, err := readRange(message)
	if err != nil {
		return err
	}
	if a.pairs != 1 || a.number != 1 {
		return fmt.Errorf("get of %q gave %d pairs and count %d", g.key, a.pairs, a.number)
	}
	return checkPair(a.first, g.key, g.Value)
}

func checkPair(encoded, key []byte, value int) error {
	p, err := readPair(encoded)
	if err != nil {
		return err
	}
	if !bytes.Equal(p.key, key) || len(p.value) != value || p.modRevision <= 0 {
		return fmt.Errorf("asked for %q with %d bytes, got %q with %d bytes at revision %d", key, value, p.key, len(p.value), p.modRevision)
	}
	return nil
}

// Page reads a page of a large range: Limit pairs from a random key on, and the
// count of all that is left of the range. All keys must exist.
type Page struct {
	Keys  Keys
	Value int   // bytes each value must have, default 256
	Limit int64 // pairs to a page, default 1000
}

func (l Page) Caller(_, _ int, random *rand.Rand) Caller {
	l.Keys = l.Keys.filled()
	if l.Value == 0 {
		l.Value = 256
	}
	if l.Limit == 0 {
		l.Limit = 1000
	}
	return &pager{Page: l, random: random, end: l.Keys.end()}
}

type pager struct {
	Page
	random *rand.Rand
	end    []byte
	from   uint64
	key    []byte
}

func (p *pager) Ask(message []byte, _ uint64) (Method, []byte) {
	// The first half only, so that there is always much behind the page.
	p.from = p.random.Uint64N(p.Keys.Count/2 + 1)
	p.key = p.Keys.append(p.key[:0], p.from)
	return KVRange, appendRange(message, rangeRequest{key: p.key, end: p.end, limit: p.Limit})
}

func (p *pager) Judge(message []byte) error {
	a, err := readRange(message)
	if err != nil {
		return err
	}
	left := int64(p.Keys.Count - p.from)
	want := min(left, p.Limit)
	if int64(a.pairs) != want || a.number != left || a.more != (left > want) {
		return fmt.Errorf("page from %q gave %d pairs, count %d, more %t; want %d, %d, %t", p.key, a.pairs, a.number, a.more, want, left, left > want)
	}
	if err := checkPair(a.first, p.key, p.Value); err != nil {
		return err
	}
	p.key = p.Keys.append(p.key[:0], p.from+uint64(want)-1)
	return checkPair(a.last, p.key, p.Value)
}

// CompareAndPut changes keys by transactions that must find them as the caller
// left them; each caller has keys of its own, so each must succeed.
type CompareAndPut struct {
	Keys  Keys
	Value int // bytes, default 256
}

func (l CompareAndPut) Caller(number, of int, random *rand.Rand) Caller {
	l.Keys.Count = max(l.Keys.filled().Count, uint64(of))
	l.Keys = l.Keys.filled()
	if l.Value == 0 {
		l.Value = 256
	}
	own := l.Keys.Count / uint64(of)
	return &swapper{
		CompareAndPut: l,
		random:        random,
		first:         uint64(number) * own,
		seen:          make([]int64, own),
	}
}

type swapper struct {
	CompareAndPut
	random *rand.Rand
	first  uint64  // number of the first of its own keys
	seen   []int64 // mod revision of each own key; 0: not known to exist
	at     uint64  // the own key last asked for
	key    []byte
}

func (s *swapper) Ask(message []byte, _ uint64) (Method, []byte) {
	s.at = s.random.Uint64N(uint64(len(s.seen)))
	s.key = s.Keys.append(s.key[:0], s.first+s.at)
	return KVTxn, appendCompareAndPut(message, s.key, valueOf(s.Value, s.random), s.seen[s.at])
}

func (s *swapper) Judge(message []byte) error {
	a, err := readTxn(message)
	if err != nil {
		return err
	}
	if a.responses != 1 {
		return fmt.Errorf("txn gave %d responses", a.responses)
	}
	seen := &s.seen[s.at]
	switch {
	case a.succeeded && a.revision > *seen:
		*seen = a.revision
		return nil
	case a.succeeded || *seen != 0:
		return fmt.Errorf("txn on %q, last changed at %d, answered succeeded %t at revision %d", s.key, *seen, a.succeeded, a.revision)
	}

	// The key was there before this caller: take over from what the else branch read.
	got, err := readRangeOp(a.firstResponse)
	if err != nil {
		return err
	}
	if err := checkPair(got.first, s.key, s.Value); err != nil {
		return err
	}
	p, err := readPair(got.first)
	*seen = p.modRevision
	return err
}

// Delete removes keys, each of which must exist, one a request. It is bound by
// the number of keys: run it for as many requests as were put before.
type Delete struct {
	Keys Keys
}

func (l Delete) Caller(_, _ int, _ *rand.Rand) Caller {
	return &deleter{keys: l.Keys.filled()}
}

type deleter struct {
	keys Keys
	key  []byte
}

func (d *deleter) Ask(message []byte, turn uint64) (Method, []byte) {
	d.key = d.keys.append(d.key[:0], scatter(turn, d.keys.Count))
	return KVDeleteRange, appendDelete(message, d.key)
}

func (d *deleter) Judge(message []byte) error {
	a, err := readDelete(message)
	if err != nil {
		return err
	}
	if a.number != 1 {
		return fmt.Errorf("delete of %q removed %d keys", d.key, a.number)
	}
	return nil
}

// Mix asks Rare once in every Every requests, at random, and Common otherwise.
type Mix struct {
	Common, Rare Load
	Every        int // default 10
}

func (l Mix) Caller(number, of int, random *rand.Rand) Caller {
	if l.Every == 0 {
		l.Every = 10
	}
	return &mixer{
		every:  l.Every,
		random: random,
		common: l.Common.Caller(number, of, random),
		rare:   l.Rare.Caller(number, of, random),
	}
}

type mixer struct {
	every        int
	random       *rand.Rand
	common, rare Caller
	asked        Caller
}

func (m *mixer) Ask(message []byte, turn uint64) (Method, []byte) {
	m.asked = m.common
	if m.random.IntN(m.every) == 0 {
		m.asked = m.rare
	}
	return m.asked.Ask(message, turn)
}

func (m *mixer) Judge(message []byte) error { return m.asked.Judge(message) }

// Compact drops all history below Revision and answers when that is done on
// disk too. It is asked once.
type Compact struct {
	Revision int64
}

func (l Compact) Caller(_, _ int, _ *rand.Rand) Caller { return compacter{l.Revision} }

type compacter struct{ revision int64 }

func (c compacter) Ask(message []byte, _ uint64) (Method, []byte) {
	return KVCompact, appendCompact(message, c.revision, true)
}

func (c compacter) Judge(message []byte) error {
	a, err := readPut(message)
	if err == nil && a.revision < c.revision {
		err = fmt.Errorf("compaction at %d answered with revision %d", c.revision, a.revision)
	}
	return err
}

// Paced asks what Load asks, so many times a second. It waits where it asks, so
// that each caller needs a connection of its own.
type Paced struct {
	Load
	Rate float64
}

func (l Paced) Caller(number, of int, random *rand.Rand) Caller {
	return &pacer{Caller: l.Load.Caller(number, of, random), every: time.Duration(float64(of) / l.Rate * float64(time.Second)), random: random}
}

type pacer struct {
	Caller
	every  time.Duration
	random *rand.Rand
	next   time.Time
}

// Ask waits for the moment of the next request. One that has passed is not made
// up for: the rate that was reached tells.
func (p *pacer) Ask(message []byte, turn uint64) (Method, []byte) {
	now := time.Now()
	switch {
	case p.next.IsZero(): // not all together
		p.next = now.Add(time.Duration(p.random.Int64N(int64(p.every) + 1)))
	case p.next.Before(now):
		p.next = now
	}
	time.Sleep(p.next.Sub(now))
	p.next = p.next.Add(p.every)
	return p.Caller.Ask(message, turn)
}

// Grant grants leases, whose numbers count from First on.
type Grant struct {
	Seconds int64
	First   int64
}

func (l Grant) Caller(_, _ int, _ *rand.Rand) Caller { return &granter{Grant: l} }

type granter struct {
	Grant
	id int64
}

func (g *granter) Ask(message []byte, turn uint64) (Method, []byte) {
	g.id = int64(turn) + max(g.First, 1)
	return LeaseGrant, appendGrant(message, g.id, g.Seconds)
}

func (g *granter) Judge(message []byte) error {
	a, err := readGranted(message)
	if err == nil && (a.id != g.id || a.seconds < g.Seconds || len(a.refusal) > 0) {
		err = fmt.Errorf("lease %d for %d seconds was granted as %d for %d: %s", g.id, g.Seconds, a.id, a.seconds, a.refusal)
	}
	return err
}

// GrantAndPut grants a lease and hangs a key on it, in turn, so that two requests
// make one of them. All leases run out in the second before Deadline.
type GrantAndPut struct {
	Keys     Keys
	Deadline time.Time
}

func (l GrantAndPut) Caller(_, _ int, random *rand.Rand) Caller {
	l.Keys = l.Keys.filled()
	return &bequeather{GrantAndPut: l, random: random, putter: putter{Put: Put{Keys: l.Keys}}}
}

type bequeather struct {
	GrantAndPut
	random  *rand.Rand
	granter granter
	putter  putter
	granted bool
}

func (b *bequeather) Ask(message []byte, turn uint64) (Method, []byte) {
	if b.granted {
		b.putter.key = b.Keys.append(b.putter.key[:0], uint64(b.granter.id)%b.Keys.Count)
		return KVPut, appendLeasedPut(message, b.putter.key, valueOf(16, b.random), b.granter.id)
	}
	b.granter.Seconds = int64(time.Until(b.Deadline) / time.Second)
	return b.granter.Ask(message, turn)
}

func (b *bequeather) Judge(message []byte) error {
	if b.granted = !b.granted; !b.granted {
		return b.putter.Judge(message)
	}
	return b.granter.Judge(message)
}
