// Package watch tells those who listen. A Hub hears of every apply; a Stream is
// one client's watchers, each a cursor: a place in the history of the store.
// Cursors that keep up are handed each event as it is published, those that
// fall behind read history until they meet the head. It knows neither the wire
// nor how members agree.
//
// A publisher looks up who is concerned and leaves a pointer in a queue. It
// never waits for a listener: a queue that is full only marks the cursors
// behind.
//
// W1: a cursor is told each event of its span once, in the order of revisions,
// and all events of one revision together (I7).
// W2: a cursor is level or behind. All that concerns a level one and is not yet
// told lies in the queue of its stream; what is in the queue for one that is
// behind is skipped, for it will be read.
// W3: what is said of progress is the place of cursors, never the head: it was
// read together with the queue, and is said when all of that queue is told.
// W4: what a stream holds for a client that does not read is bounded, but for a
// single revision, which is never cut.
package watch
