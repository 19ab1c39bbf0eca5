package wireguard

import (
	"net/netip"
	"sync"

	"golang.zx2c4.com/wireguard/device"

	"tulle/overlay/udp"
)

// A train is frames of equal length, the last may be shorter, in the places that
// they have as datagrams:
//
//	 0        16      44              stride
//	+--------+-------+-------+---+---+--------+-------+-------+---+---+
//	| header | IPv4, | frame |pad|tag| header | IPv4, | frame |pad|tag|
//	|        | UDP   |       |   |16 |        | UDP   |       |   |16 |
//	+--------+-------+-------+---+---+--------+-------+-------+---+---+
//
// Who makes frames puts them there; the rest is filled in, sealed in place, and is
// one call of the socket's.
type train struct {
	b     []byte // up to the end of the last frame; room for its pad and tag behind
	frame int
	flow  uint32
}

const (
	// before a frame lie the headers.
	before = transportLen + HeaderLen
	// after is room enough behind the last one.
	after = padding - 1 + tagLen

	// maxFrame is the longest frame.
	maxFrame = device.MaxContentSize - HeaderLen

	// A peer without a session has at most so much waiting for one.
	maxStaged    = 128
	maxStagedLen = 256 << 10
)

// Room is what there must be around the frames of n bytes in a train: before the
// first, from one to the next, and behind the last one.
func (t *Tunnel) Room(n int) (first, stride, last int) { return before, t.stride(n), after }

func (t *Tunnel) stride(n int) int { return transportLen + t.padded(HeaderLen+n) + tagLen }

// padded is how long a packet of n bytes becomes.
func (t *Tunnel) padded(n int) int {
	p := (n + padding - 1) &^ (padding - 1)
	if t.mtu > 0 && p > t.mtu {
		p = max(n, t.mtu)
	}
	return p
}

// SendTrain sends the frames in b, of frame bytes each and the last one what is left,
// to the peer with that tunnel address. They lie as Room says; b ends with the last
// one, and is one train of [udp.Conn]'s at most. All of it is rewritten, and the
// caller's again when SendTrain returns. The flow says which packets keep their
// order: those of one take one way.
//
// Frames for nobody are dropped; those for a peer without a session wait for it, and
// the oldest are dropped when too many do.
func (t *Tunnel) SendTrain(to netip.Addr, flow uint32, b []byte, frame int) error {
	if t.closed.Load() {
		return udp.ErrClosed
	}
	if frame > maxFrame {
		return udp.ErrMessageSize
	}
	p := t.byAddress.get(number(to))
	if p == nil {
		return nil
	}
	return p.send(train{b, frame, flow})
}

// Send sends a copy of b, as frames of segment bytes each, the last as long as what
// is left; segment 0 is one frame.
func (t *Tunnel) Send(to netip.Addr, flow uint32, b []byte, segment int) error {
	if segment <= 0 || segment > len(b) {
		segment = len(b)
	}
	if segment > maxFrame {
		return udp.ErrMessageSize
	}
	buf := trains.Get().(*[]byte)
	defer trains.Put(buf)
	stride := t.stride(segment)
	most := max(1, min(udp.MaxSegments, udp.MaxSend/stride))
	for len(b) > 0 {
		n := 0
		for i := 0; i < most && len(b) > 0; i++ {
			k := copy((*buf)[i*stride+before:], b[:min(segment, len(b))])
			b = b[k:]
			n = i*stride + before + k
		}
		if err := t.SendTrain(to, flow, (*buf)[:n], segment); err != nil {
			return err
		}
	}
	return nil
}

// trains are the buffers of Send; one holds the longest frame.
var trains = sync.Pool{New: func() any { return new(make([]byte, 1<<16+before+after)) }}

// send seals in the peer's session, or waits for one.
func (p *peer) send(tr train) error {
	s := p.current.Load()
	if !s.lives() {
		return p.t.stage(p, tr)
	}
	sealed, err := p.transmit(s, tr)
	if !sealed {
		return p.t.stage(p, tr)
	}
	if (s.initiator && s.ageNow() >= stale || s.counter.Load() > rekeyAfterMessages) &&
		p.t.now.Load()-p.asked.Load() >= rekeyTimeout {
		p.t.begin(p)
	}
	return err
}

// transmit seals a train and sends it. Where the session has no more numbers it is
// not sealed.
func (p *peer) transmit(s *session, tr train) (sealed bool, err error) {
	t := p.t
	b, stride := tr.b, t.stride(tr.frame)
	n := 1 + (len(b)-before-1)/stride
	counter := s.counter.Add(uint64(n)) - uint64(n)
	if counter >= rejectAfterMessages-uint64(n) {
		s.age.Store(uint32(dead))
		return false, nil
	}
	own, to := t.number, p.address.Load()
	total := 0
	for i := range n {
		at := i * stride
		frame := min(tr.frame, len(b)-at-before)
		plain := HeaderLen + frame
		padded := t.padded(plain)
		d := b[at : at+transportLen+padded+tagLen : cap(b)]
		header(d[transportLen:], own, to, frame, uint16(counter)+uint16(i))
		clear(d[transportLen+plain : transportLen+padded])
		s.sealAt(d, padded, counter+uint64(i))
		total = at + len(d)
	}
	p.sent(true)
	return true, p.put(b[:total], stride, tr.flow)
}

// put gives datagrams to a socket. Those that do not fit the path in one call go one
// by one: a datagram alone is fragmented on its way.
func (p *peer) put(b []byte, segment int, flow uint32) error {
	at := p.at.Load()
	if !at.addr.IsValid() {
		return nil // nobody knows where it is; it will tell
	}
	conn := p.t.conns[0]
	if at.spread && at.published && len(p.t.conns) > 1 {
		conn = p.t.conns[flow%uint32(len(p.t.conns))]
	}
	err := conn.Send(at.addr, b, segment)
	if err != udp.ErrMessageSize || len(b) <= segment {
		return err
	}
	for len(b) > 0 {
		n := min(segment, len(b))
		if err := conn.Send(at.addr, b[:n], 0); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// sent notes for the timers that something authentic went to the peer.
func (p *peer) sent(data bool) {
	if p.owed.Load() != 0 {
		p.owed.Store(0)
	}
	if data && p.unanswered.Load() == 0 {
		p.unanswered.Store(p.t.now.Load())
	}
}

// stage keeps a copy of a train until there is a session, and begins one.
func (t *Tunnel) stage(p *peer, tr train) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.gone || t.closed.Load() {
		return nil
	}
	if s := p.current.Load(); s.lives() { // made meanwhile
		sealed, err := p.transmit(s, tr)
		if sealed {
			return err
		}
	}
	kept := append(make([]byte, 0, len(tr.b)+after), tr.b...)
	for len(p.staged) > 0 && (len(p.staged) == maxStaged || p.stagedLen+len(kept) > maxStagedLen) {
		p.stagedLen -= len(p.staged[0].b)
		p.staged = p.staged[1:]
	}
	p.staged = append(p.staged, train{kept, tr.frame, tr.flow})
	p.stagedLen += len(kept)
	p.attempts = 0
	t.beginLocked(p, t.clock())
	return nil
}

// sendStagedLocked sends what waited for the session that is there now.
func (t *Tunnel) sendStagedLocked(p *peer, s *session) (any bool) {
	for _, tr := range p.staged {
		if sealed, err := p.transmit(s, tr); err != nil || !sealed {
			t.log.Debug("what waited for a session is lost", "peer", p.name, "err", err)
		}
		any = true
	}
	p.dropStaged()
	return any
}

func (p *peer) dropStaged() { p.staged, p.stagedLen = nil, 0 }

// keepaliveLocked sends a message with nothing in it, if there is a session.
func (t *Tunnel) keepaliveLocked(p *peer) {
	s := p.current.Load()
	if !s.lives() {
		p.owed.Store(0)
		return
	}
	counter := s.counter.Add(1) - 1
	if counter >= rejectAfterMessages-1 {
		s.age.Store(uint32(dead))
		return
	}
	b := make([]byte, transportLen+tagLen)
	s.sealAt(b, 0, counter)
	p.sent(false)
	if err := p.put(b, len(b), 0); err != nil {
		t.log.Debug("keepalive is not sent", "peer", p.name, "err", err)
	}
}
