package wireguard

import (
	"errors"
	"net/netip"
	"sync"
	"time"

	"tulle/overlay/udp"
)

// How many messages one receive takes; each may hold 64 datagrams. Peers answer to
// the first socket; those of a standard WireGuard alone may find another.
const (
	receiveLen     = 8
	receiveLenAlso = 1
)

// receiver is one socket's goroutine and its scratch. Datagrams are opened where
// they were received, and handed on from there.
type receiver struct {
	t    *Tunnel
	conn udp.Conn
	in   []udp.Message
	out  []udp.Message // frames, parts of in

	// The run at hand: datagrams in a row of one session and from one place.
	session *session
	from    netip.AddrPort
	run     []opened

	busy sync.Mutex // held while datagrams are opened and handed on
}

// opened is one datagram of a run.
type opened struct {
	packet  []byte
	counter uint64
}

func newReceiver(t *Tunnel, conn udp.Conn, n int) *receiver {
	r := &receiver{t: t, conn: conn, in: make([]udp.Message, n),
		out: make([]udp.Message, 0, n*udp.MaxSegments), run: make([]opened, 0, udp.MaxSegments)}
	for i := range r.in {
		r.in[i].Buf = make([]byte, 65535)
	}
	return r
}

// How long a receiver waits after an error of its socket: the first time, and at most.
const (
	retryFirst = time.Millisecond
	retryMost  = time.Second
)

// loop receives until the socket is closed. Nobody else reads it: whatever else the
// kernel says (it is out of memory; somebody aborted the socket) may pass.
func (r *receiver) loop() {
	retry := retryFirst
	for {
		n, err := r.conn.Receive(r.in)
		switch {
		case err == nil:
			retry = retryFirst
		case errors.Is(err, udp.ErrClosed):
			return
		default:
			r.t.log.Error("tunnel socket cannot be read; it is tried again", "local", r.conn.Local(), "error", err, "after", retry)
			select {
			case <-time.After(retry):
			case <-r.t.stop:
			}
			retry = min(2*retry, retryMost)
			continue
		}
		r.take(r.in[:n])
	}
}

// take opens a batch and hands on what is in it.
func (r *receiver) take(in []udp.Message) {
	r.busy.Lock()
	defer r.busy.Unlock()
	for i := range in {
		m := &in[i]
		for b := m.Buf[:m.N]; len(b) > 0; {
			n := len(b)
			if m.Segment > 0 {
				n = min(n, m.Segment)
			}
			r.datagram(b[:n:n], m.From)
			b = b[n:]
		}
	}
	r.finish()
	if len(r.out) > 0 {
		r.t.receive(r.out)
		clear(r.out)
		r.out = r.out[:0]
	}
}

// idle waits for what take is at.
func (r *receiver) idle() {
	r.busy.Lock()
	defer r.busy.Unlock()
}

// datagram opens one, or hands it to who deals with handshakes.
func (r *receiver) datagram(d []byte, from netip.AddrPort) {
	switch kind(d) {
	case 0:
		return
	case typeTransport:
	default:
		r.t.queue(d, from)
		return
	}
	e := r.t.indices.get(endian.Uint32(d[indexAt:]))
	if e == nil || !e.session.lives() {
		return
	}
	counter := endian.Uint64(d[counterAt:])
	if counter >= rejectAfterMessages {
		return
	}
	packet, ok := e.session.openAt(d)
	if !ok {
		return
	}
	if e.session != r.session || from != r.from || len(r.run) == cap(r.run) {
		r.finish()
		r.session, r.from = e.session, from
	}
	r.run = append(r.run, opened{packet, counter})
}

// finish takes from a run what was not there before, and hands it on.
func (r *receiver) finish() {
	s := r.session
	if len(r.run) == 0 {
		return
	}
	kept := r.run[:0]
	s.mu.Lock()
	for _, o := range r.run {
		if s.window.ValidateCounter(o.counter, rejectAfterMessages) {
			kept = append(kept, o)
		}
	}
	s.mu.Unlock()
	if len(kept) > 0 {
		if s.unconfirmed.Load() {
			r.t.confirm(s)
		}
		s.peer.move(r.from, false)
		r.unwrap(s.peer, kept)
		if s.initiator && s.ageNow() == lastMinute && !s.peer.lastMinute.Swap(true) {
			r.t.begin(s.peer)
		}
	}
	clear(r.run)
	r.run, r.session = r.run[:0], nil
}

// unwrap appends a run's frames to out.
func (r *receiver) unwrap(p *peer, run []opened) {
	data := false
	theirs := p.address.Load()
	for _, o := range run {
		if len(o.packet) == 0 {
			continue // to keep the session alive
		}
		data = true
		frame, from := unwrap(o.packet, r.t.number, theirs)
		if !from.IsValid() {
			continue
		}
		// A packet that is no frame is told of as an empty one: the receiver counts it.
		r.out = append(r.out, udp.Message{Buf: frame, N: len(frame), Segment: len(frame), From: from})
	}
	p.heard(data)
}

// heard notes for the timers that something authentic came from the peer.
func (p *peer) heard(data bool) {
	if p.unanswered.Load() != 0 {
		p.unanswered.Store(0)
	}
	if data {
		if p.owed.Load() == 0 {
			p.owed.Store(p.t.now.Load())
		} else if !p.another.Load() {
			p.another.Store(true)
		}
	}
}
