package egress

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"tulle/overlay/netstack"
)

// line joins a container's connection with a socket of the host: bytes both ways,
// each direction's end passed on by itself, a reset as a reset. Idle it has one
// goroutine, parked in the poller, and no buffer.
type line struct {
	conn    *netstack.Conn
	sock    *socket
	session *session
	done    func(*line)
	stop    func() // of Notify

	// state of the container's direction: pumping, and whether there may be more.
	out atomic.Int32

	mu    sync.Mutex // guards what follows
	open  int        // directions
	ended bool
}

const (
	parked  = iota // nobody reads the container's side
	pumping        // somebody does
	again          // and news came meanwhile
)

func newLine(conn *netstack.Conn, sock *socket, done func(*line)) *line {
	return &line{conn: conn, sock: sock, done: done, open: 2}
}

func (l *line) start() {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return
	}
	l.stop = l.conn.Notify(l.news)
	l.mu.Unlock()
	go l.in()
	l.news() // what came before there was someone to tell
}

// news is called from the stack's goroutines.
func (l *line) news() {
	for {
		switch l.out.Load() {
		case parked:
			if l.out.CompareAndSwap(parked, pumping) {
				go l.pump()
				return
			}
		case pumping:
			if l.out.CompareAndSwap(pumping, again) {
				return
			}
		default:
			return
		}
	}
}

// pump carries what the container has sent, until there is no more for now.
func (l *line) pump() {
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
			if l.out.CompareAndSwap(pumping, parked) {
				return
			}
			l.out.Store(pumping)
		case errors.Is(err, io.EOF):
			// It stays "pumping": nothing more comes, and nobody need look.
			l.sock.shut()
			l.half()
			return
		default:
			l.abort()
			return
		}
	}
}

// in carries what the far end sends.
func (l *line) in() {
	for {
		b, n, err := l.sock.read(buffers.get, buffers.put)
		if n > 0 {
			err = l.conn.WriteAll(b[:n])
		} else if err == nil {
			buffers.put(b)
			if l.conn.CloseWrite() != nil {
				l.abort()
				return
			}
			l.half()
			return
		}
		if b != nil {
			buffers.put(b)
		}
		if err != nil {
			l.abort()
			return
		}
	}
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
