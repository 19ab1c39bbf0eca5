package wireguard

import (
	"encoding/binary"
	"net/netip"
	"os"
	"sync"

	"golang.zx2c4.com/wireguard/tun"

	"tulle/overlay/udp"
)

// What goes through the device, besides a frame:
//
//	0                   20            28
//	+-------------------+-------------+----------- - -
//	| IPv4, no options  | UDP, no sum | VXLAN frame
//	+-------------------+-------------+----------- - -
//
// The tunnel authenticates all of it, so the UDP checksum is left out, as RFC 7348
// section 5 wants it for VXLAN.
const (
	ipLen    = 20
	port     = 4789
	protoUDP = 17
	ttl      = 64
)

// memory is the network device that the library serves. Senders copy packets
// straight into the buffers of its waiting reader.
type memory struct {
	own     [4]byte
	mtu     int
	receive func([]udp.Message) // set before the library starts
	events  chan tun.Event

	mu     sync.Mutex // guards what follows
	room   sync.Cond  // senders wait for a reader with buffers left
	filled sync.Cond  // the reader waits for packets
	bufs   [][]byte   // of the waiting reader; nil: none waits
	sizes  []int
	offset int
	n      int // bufs filled
	id     uint16
	closed bool

	down  sync.Mutex // held around receive; guards batch
	batch []udp.Message
}

var _ tun.Device = (*memory)(nil)

func newMemory(own netip.Addr, mtu int, receive func([]udp.Message)) *memory {
	m := &memory{own: own.As4(), mtu: mtu, receive: receive, events: make(chan tun.Event), batch: make([]udp.Message, 0, batchLen)}
	m.room.L, m.filled.L = &m.mu, &m.mu
	return m
}

// send puts datagrams of segment bytes each into the tunnel. They are the
// caller's again when it returns.
func (m *memory) send(to netip.Addr, b []byte, segment int) error {
	dst := to.As4()
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(b) > 0 {
		for !m.closed && m.n == len(m.bufs) {
			m.filled.Signal()
			m.room.Wait()
		}
		if m.closed {
			return udp.ErrClosed
		}
		n := min(segment, len(b))
		out := m.bufs[m.n][m.offset:]
		m.id++
		header(out, m.own, dst, n, m.id)
		copy(out[HeaderLen:], b[:n])
		m.sizes[m.n] = HeaderLen + n
		m.n++
		b = b[n:]
	}
	m.filled.Signal()
	return nil
}

// header writes the headers before a frame of n bytes.
func header(b []byte, src, dst [4]byte, n int, id uint16) {
	b[0], b[1] = 0x45, 0
	binary.BigEndian.PutUint16(b[2:], uint16(HeaderLen+n))
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], 0)
	b[8], b[9] = ttl, protoUDP
	binary.BigEndian.PutUint16(b[10:], 0)
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	var sum uint32
	for i := 0; i < ipLen; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum&0xffff + sum>>16
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(b[20:], port)
	binary.BigEndian.PutUint16(b[22:], port)
	binary.BigEndian.PutUint16(b[24:], uint16(8+n))
	binary.BigEndian.PutUint16(b[26:], 0)
}

// unwrap is the frame in a packet that came out of the tunnel, and who sent it;
// nil if it is none for this cell. The library has held the source against the
// sender's key, and the packet's length against its header.
func (m *memory) unwrap(p []byte) (frame []byte, from netip.AddrPort) {
	if len(p) < HeaderLen || p[0] != 0x45 || p[9] != protoUDP ||
		binary.BigEndian.Uint16(p[6:])&0x3fff != 0 || // a fragment
		[4]byte(p[16:20]) != m.own || binary.BigEndian.Uint16(p[22:]) != port {
		return nil, from
	}
	n := int(binary.BigEndian.Uint16(p[24:]))
	if n <= 8 || n > len(p)-ipLen {
		return nil, from
	}
	from = netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[12:16])), binary.BigEndian.Uint16(p[20:]))
	return p[HeaderLen : ipLen+n], from
}

// Read implements tun.Device: waits for packets, as many as senders fill in until
// this goroutine runs.
func (m *memory) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bufs, m.sizes, m.offset, m.n = bufs, sizes, offset, 0
	m.room.Broadcast()
	for m.n == 0 && !m.closed {
		m.filled.Wait()
	}
	n := m.n
	m.bufs, m.sizes, m.n = nil, nil, 0
	if m.closed {
		return 0, os.ErrClosed
	}
	return n, nil
}

// Write implements tun.Device: hands on what a peer sent, all of it one peer's.
// Packets that are no frames for this cell are dropped.
func (m *memory) Write(bufs [][]byte, offset int) (int, error) {
	m.down.Lock()
	defer m.down.Unlock()
	m.batch = m.batch[:0]
	for _, b := range bufs {
		frame, from := m.unwrap(b[offset:])
		if frame == nil {
			// Still one datagram of the peer's: the receiver counts what it is not.
			from = m.source(b[offset:])
			frame = b[offset:offset]
		}
		m.batch = append(m.batch, udp.Message{Buf: frame, N: len(frame), Segment: len(frame), From: from})
	}
	m.receive(m.batch)
	clear(m.batch)
	return len(bufs), nil
}

// source is who sent a packet of any kind.
func (m *memory) source(p []byte) netip.AddrPort {
	if len(p) < ipLen || p[0]>>4 != 4 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[12:16])), 0)
}

// Close implements tun.Device; it wakes reader and senders, and is idempotent.
func (m *memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	close(m.events)
	m.room.Broadcast()
	m.filled.Broadcast()
	return nil
}

// The rest of tun.Device.

func (m *memory) File() *os.File           { return nil }
func (m *memory) MTU() (int, error)        { return m.mtu, nil }
func (m *memory) Name() (string, error)    { return "tunnel", nil }
func (m *memory) Events() <-chan tun.Event { return m.events }
func (m *memory) BatchSize() int           { return batchLen }
