package wireguard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"golang.zx2c4.com/wireguard/conn"

	"tulle/overlay/udp"
)

// batchLen is how many packets the library moves at a time. Its crypto runs on
// batches, so a super-packet's segments travel together.
const batchLen = conn.IdealBatchSize

// receiveLen is how many messages one receive takes; each may hold 64 datagrams.
const receiveLen = 8

// endpoint is where a peer is on the underlay. It never changes, so one may be
// shared by all datagrams from there.
type endpoint netip.AddrPort

var _ conn.Endpoint = (*endpoint)(nil)

func (e *endpoint) addr() netip.AddrPort { return netip.AddrPort(*e) }
func (e *endpoint) ClearSrc()            {}
func (e *endpoint) SrcToString() string  { return "" }
func (e *endpoint) SrcIP() netip.Addr    { return netip.Addr{} }
func (e *endpoint) DstToString() string  { return e.addr().String() }
func (e *endpoint) DstIP() netip.Addr    { return e.addr().Addr() }
func (e *endpoint) DstToBytes() []byte {
	b, _ := e.addr().MarshalBinary() // of an AddrPort it cannot fail
	return b
}

// bind moves the tunnel's datagrams over a socket that is there already.
type bind struct {
	conn udp.Conn

	mu     sync.Mutex // guards opened
	opened bool

	// The receiving goroutine's: what was received and not taken yet.
	batch   []udp.Message
	have    int // messages in batch
	at, off int // the next datagram: its message, and where in it
	from    *endpoint

	trains sync.Pool // of *train
}

var _ conn.Bind = (*bind)(nil)

// train is the scratch of one Send: datagrams of equal length, end to end.
type train struct{ b []byte }

func newBind(c udp.Conn) *bind {
	b := &bind{conn: c, from: new(endpoint), batch: make([]udp.Message, receiveLen)}
	for i := range b.batch {
		b.batch[i].Buf = make([]byte, 65535)
	}
	b.trains.New = func() any { return &train{make([]byte, 0, udp.MaxSend)} }
	return b
}

// Open implements conn.Bind. The socket is bound; the port asked for is ignored.
func (b *bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.opened {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	b.opened = true
	return []conn.ReceiveFunc{b.receive}, b.conn.Local().Port(), nil
}

// Close implements conn.Bind. The library calls it before Open as well, when
// there is nothing to close.
func (b *bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.opened {
		return nil
	}
	return b.conn.Close()
}

// SetMark implements conn.Bind; nobody here asks for a mark.
func (b *bind) SetMark(uint32) error { return nil }

// BatchSize implements conn.Bind.
func (b *bind) BatchSize() int { return batchLen }

// ParseEndpoint implements conn.Bind.
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	e := endpoint(netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
	return &e, nil
}

// receive fills packets with the datagrams that are there, and waits if there
// are none.
func (b *bind) receive(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	for b.at == b.have {
		n, err := b.conn.Receive(b.batch)
		if err != nil {
			if errors.Is(err, udp.ErrClosed) {
				err = net.ErrClosed
			}
			return 0, err
		}
		b.have, b.at, b.off = n, 0, 0
	}
	n := 0
	for n < len(packets) && b.at < b.have {
		m := &b.batch[b.at]
		if b.off == 0 && m.From != b.from.addr() {
			e := endpoint(m.From)
			b.from = &e
		}
		d := m.Buf[b.off:m.N]
		if m.Segment > 0 && len(d) > m.Segment {
			d = d[:m.Segment]
		}
		sizes[n] = copy(packets[n], d)
		eps[n] = b.from
		n++
		if b.off += len(d); b.off >= m.N {
			b.at, b.off = b.at+1, 0
		}
	}
	return n, nil
}

// Send implements conn.Bind: runs of datagrams of equal length, of which the last
// may be shorter, go in one call.
func (b *bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	e, ok := ep.(*endpoint)
	if !ok {
		return fmt.Errorf("send to %T: %w", ep, conn.ErrWrongEndpointType)
	}
	to := e.addr()
	t := b.trains.Get().(*train)
	defer b.trains.Put(t)
	var failed error
	for len(bufs) > 0 {
		segment := len(bufs[0])
		t.b = append(t.b[:0], bufs[0]...)
		n := 1
		for n < len(bufs) && n < udp.MaxSegments && len(bufs[n-1]) == segment && len(bufs[n]) <= segment &&
			len(t.b)+len(bufs[n]) <= udp.MaxSend {
			t.b = append(t.b, bufs[n]...)
			n++
		}
		bufs = bufs[n:]
		if err := b.sendTrain(to, t.b, segment); err != nil {
			failed = err
		}
	}
	return failed
}

// sendTrain sends one by one what does not fit the path in segments: a datagram
// alone is fragmented on its way.
func (b *bind) sendTrain(to netip.AddrPort, p []byte, segment int) error {
	err := b.conn.Send(to, p, segment)
	if err != udp.ErrMessageSize || len(p) <= segment {
		return err
	}
	for len(p) > 0 {
		n := min(segment, len(p))
		if err := b.conn.Send(to, p[:n], 0); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}
