package egress

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"tulle/overlay/netstack"
)

// line joins a container's connection with a socket of the host: bytes both ways,
// each direction's end passed on by itself, a reset as a reset. Idle it has no
// goroutine and no buffer.
type line struct {
	e       *Egress
	conn    *netstack.Conn
	sock    *stream
	session *session
	done    func(*line)
	stop    func() // of Notify

	// Of the container's direction, and of the far end's: whether somebody reads, and
	// whether there may be more.
	outward, inward turn

	mu    sync.Mutex // guards what follows
	open  int        // directions
	ended bool
}

// turn lets one goroutine at a time carry a direction, and none of the news get lost.
type turn struct{ state atomic.Int32 }

const (
	parked   = iota // nobody reads
	carrying        // somebody does
	again           // and news came meanwhile
)

// take is called with news; true: the caller carries now.
func (t *turn) take() bool {
	for {
		switch t.state.Load() {
		case parked:
			if t.state.CompareAndSwap(parked, carrying) {
				return true
			}
		case carrying:
			if t.state.CompareAndSwap(carrying, again) {
				return false
			}
		default:
			return false
		}
	}
}

// leave is called by who carries and has no more; false: there may be more again. At a
// direction's end it is not called: nothing more comes, and nobody need look.
func (t *turn) leave() bool {
	if t.state.CompareAndSwap(carrying, parked) {
		return true
	}
	t.state.Store(carrying)
	return false
}

func (e *Egress) newLine(conn *netstack.Conn, sock *stream, done func(*line)) *line {
	return &line{e: e, conn: conn, sock: sock, done: done, open: 2}
}

// start carries from now on; what is there already first, in the caller's goroutine.
// Before, the poller does not know the line: what it has to tell of the socket it tells
// when the socket is watched anew.
func (l *line) start() {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return
	}
	l.outward.take() // whatever comes while it is made known is looked at below
	l.stop = l.conn.Notify(l.said)
	l.mu.Unlock()
	l.sock.line.Store(l)
	if err := l.sock.watch(); err != nil {
		l.abort()
		return
	}
	l.out()
}

// said is called from the stack's goroutines.
func (l *line) said() {
	if l.outward.take() {
		l.e.workers.do(l.out)
	}
}

// arrived is called by the poller.
func (l *line) arrived() {
	if l.inward.take() {
		l.in(true)
	}
}

// out carries what the container has sent, until there is no more for now.
func (l *line) out() {
	b := buffers.get()
	defer buffers.put(b)
	for {
		n, err := l.conn.TryRead(b)
		switch {
		case n > 0:
			if err := l.sock.write(b[:n]); err != nil {
				l.abort()
				return
			}
		case errors.Is(err, netstack.ErrWouldBlock):
			if l.outward.leave() {
				return
			}
		case errors.Is(err, io.EOF):
			l.sock.shut()
			l.half()
			return
		default:
			l.abort()
			return
		}
	}
}

// briefly is how often the poller's goroutine reads at most before it sees to others.
const briefly = 8

// in carries what the far end has sent, until there is no more for now. The poller's
// goroutine carries little, and never waits: what takes longer is a worker's.
func (l *line) in(brief bool) {
	b := buffers.get()
	if brief && len(b) > smallBuffer {
		b = b[:smallBuffer]
	}
	for rounds := 1; ; rounds++ {
		n, more, err := l.sock.read(b)
		switch {
		case n > 0:
			if rest, err := l.conn.TryWrite(b[:n]); err != nil {
				buffers.put(b)
				l.abort()
				return
			} else if len(rest) > 0 {
				if brief {
					l.e.workers.do(func() { l.rest(b, rest) })
					return
				}
				if err := l.conn.WriteAll(rest); err != nil {
					buffers.put(b)
					l.abort()
					return
				}
			}
			switch {
			case !more && l.inward.leave():
				buffers.put(b)
				return
			case brief && (n == len(b) || rounds == briefly):
				buffers.put(b)
				l.e.workers.do(func() { l.in(false) })
				return
			}
		case errors.Is(err, errAgain):
			if l.inward.leave() {
				buffers.put(b)
				return
			}
		case err == nil:
			buffers.put(b)
			if l.conn.CloseWrite() != nil {
				l.abort()
				return
			}
			l.half()
			return
		default:
			buffers.put(b)
			l.abort()
			return
		}
	}
}

// rest writes what the container had no room for, and carries on.
func (l *line) rest(b, rest []byte) {
	err := l.conn.WriteAll(rest)
	buffers.put(b)
	if err != nil {
		l.abort()
		return
	}
	l.in(false)
}

// half notes the end of a direction; after both all is closed in order.
func (l *line) half() {
	l.mu.Lock()
	l.open--
	last := l.open == 0 && !l.ended
	if last {
		l.ended = true
	}
	l.mu.Unlock()
	if last {
		l.stop()
		l.sock.close()
		_ = l.conn.Close()
		l.done(l)
	}
}

// abort resets both ends at once.
func (l *line) abort() {
	l.mu.Lock()
	ended := l.ended
	l.ended = true
	stop := l.stop
	l.mu.Unlock()
	if ended {
		return
	}
	if stop != nil {
		stop()
	}
	l.sock.abort()
	l.conn.Abort()
	l.done(l)
}

// buffers are few large ones, for those who stream, and small ones for as many as
// there may be: what is stuck in a slow far end is bounded.
var buffers = pool{large: make(chan struct{}, largeBuffers)}

const (
	largeBuffer  = 256 << 10
	largeBuffers = 64
	smallBuffer  = 8 << 10
)

type pool struct {
	large  chan struct{} // a token for each large buffer that is out
	bigs   sync.Pool
	smalls sync.Pool
}

func (p *pool) get() []byte {
	select {
	case p.large <- struct{}{}:
		if b, _ := p.bigs.Get().(*[largeBuffer]byte); b != nil {
			return b[:]
		}
		return make([]byte, largeBuffer)
	default:
	}
	if b, _ := p.smalls.Get().(*[smallBuffer]byte); b != nil {
		return b[:]
	}
	return make([]byte, smallBuffer)
}

func (p *pool) put(b []byte) {
	if cap(b) >= largeBuffer {
		p.bigs.Put((*[largeBuffer]byte)(b[:largeBuffer]))
		<-p.large
		return
	}
	p.smalls.Put((*[smallBuffer]byte)(b[:smallBuffer]))
}
