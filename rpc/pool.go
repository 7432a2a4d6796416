package rpc

import "sync"

// job is what a worker can do.
type job interface{ run(w *worker) }

// workers are goroutines that are used again: what a handler costs beside its
// work is mostly the growth of a fresh stack.
type workers struct {
	running sync.WaitGroup

	mu struct {
		sync.Mutex
		idle   []*worker // the last to become idle is the first to work
		closed bool
	}
}

// idleMax is how many workers stay for later.
const idleMax = 512

type worker struct {
	jobs chan job // at most one waits
	call *stream  // the unary call that runs here
	in   []byte   // its message

	decode func(any) error // decodes in; made once
}

func newWorkers() *workers { return &workers{} }

// start has j run, and does not wait.
func (p *workers) start(j job) {
	p.mu.Lock()
	if n := len(p.mu.idle); n > 0 {
		w := p.mu.idle[n-1]
		p.mu.idle = p.mu.idle[:n-1]
		p.mu.Unlock()
		w.jobs <- j
		return
	}
	p.mu.Unlock()
	w := &worker{jobs: make(chan job, 1)}
	w.decode = func(v any) error { return w.call.decode(w.in, v) }
	p.running.Go(func() { p.work(w, j) })
}

func (p *workers) work(w *worker, j job) {
	for {
		j.run(w)
		if !p.rest(w) {
			return
		}
		var more bool
		if j, more = <-w.jobs; !more {
			return
		}
	}
}

func (p *workers) rest(w *worker) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.closed || len(p.mu.idle) >= idleMax {
		return false
	}
	p.mu.idle = append(p.mu.idle, w)
	return true
}

// close ends all workers once their jobs are done, and waits for them. No job
// may be started any more.
func (p *workers) close() {
	p.mu.Lock()
	p.mu.closed = true
	for _, w := range p.mu.idle {
		close(w.jobs)
	}
	p.mu.idle = nil
	p.mu.Unlock()
	p.running.Wait()
}

// buffer is a slice of bytes that is used again.
type buffer struct{ b []byte }

// bufferMax is the largest buffer that is kept: one large value must not stay
// with us for ever.
const bufferMax = 64 << 10

var buffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, 0, 1024)} }}

func newBuffer() *buffer { return buffers.Get().(*buffer) }

func (b *buffer) free() {
	if b != nil && cap(b.b) <= bufferMax {
		b.b = b.b[:0]
		buffers.Put(b)
	}
}

// What a connection has to send lies in small buffers of its own, and in large
// ones, which are lent, while it is much.
const (
	smallBytes = 16 << 10
	largeBytes = readyMax + 2*(frameHeaderBytes+frameBytesMax)
)

type largeBuffer [largeBytes]byte

var largeBuffers = sync.Pool{New: func() any { return new(largeBuffer) }}
