package wireguard

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"tulle/overlay/udp"
	"tulle/overlay/udp/udptest"
)

// standard is wireguard-go at the other end, with a device in memory.
type standard struct {
	t      *testing.T
	key    PrivateKey
	conn   *udptest.Conn
	device *device.Device
	tun    *tuntest.ChannelTUN
}

// underlay is where a peer is on the underlay, as wireguard-go has it.
type underlay netip.AddrPort

func (e underlay) ClearSrc()           {}
func (e underlay) SrcToString() string { return "" }
func (e underlay) SrcIP() netip.Addr   { return netip.Addr{} }
func (e underlay) DstToString() string { return netip.AddrPort(e).String() }
func (e underlay) DstIP() netip.Addr   { return netip.AddrPort(e).Addr() }
func (e underlay) DstToBytes() []byte  { b, _ := netip.AddrPort(e).MarshalBinary(); return b }

// bind is wireguard-go's way to the network in memory.
type bind struct {
	conn *udptest.Conn
	open atomic.Bool
	in   []udp.Message
	left []byte
}

func (b *bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.open.Store(true)
	return []conn.ReceiveFunc{b.receive}, b.conn.Local().Port(), nil
}

func (b *bind) receive(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	m := &b.in[0]
	if len(b.left) == 0 {
		if _, err := b.conn.Receive(b.in); err != nil {
			return 0, net.ErrClosed
		}
		b.left = m.Buf[:m.N]
	}
	n := min(len(b.left), m.Segment)
	sizes[0], eps[0] = copy(packets[0], b.left[:n]), underlay(m.From)
	b.left = b.left[n:]
	return 1, nil
}

func (b *bind) Close() error {
	if b.open.Load() {
		return b.conn.Close()
	}
	return nil // before Open there is nothing to close
}

func (b *bind) SetMark(uint32) error { return nil }
func (b *bind) BatchSize() int       { return 1 }
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	return underlay(a), err
}
func (b *bind) Send(bufs [][]byte, to conn.Endpoint) error {
	for _, p := range bufs {
		if err := b.conn.Send(netip.AddrPort(to.(underlay)), p, 0); err != nil {
			return err
		}
	}
	return nil
}

// standardAddress is the other end's inside the tunnel.
var standardAddress = netip.MustParseAddr("100.64.0.99")

func newStandard(t *testing.T, net *udptest.Network) *standard {
	t.Helper()
	s := &standard{t: t, key: newKey(t), tun: tuntest.NewChannelTUN()}
	var err error
	if s.conn, err = net.Listen(netip.MustParseAddrPort("192.0.2.99:51820")); err != nil {
		t.Fatal(err)
	}
	b := &bind{conn: s.conn, in: []udp.Message{{Buf: make([]byte, 65535)}}}
	s.device = device.NewDevice(s.tun.TUN(), b, device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(s.device.Close)
	s.set("private_key=%s\n", hex.EncodeToString(s.key.scalar[:]))
	if err := s.device.Up(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *standard) set(format string, args ...any) {
	s.t.Helper()
	if err := s.device.IpcSet(fmt.Sprintf(format, args...)); err != nil {
		s.t.Fatal(err)
	}
}

// knows makes a cell its peer.
func (s *standard) knows(c *cell, psk PresharedKey) {
	s.t.Helper()
	public := c.key.Public()
	s.set("public_key=%s\npreshared_key=%s\nendpoint=%s\nallowed_ip=%s/32\n",
		hex.EncodeToString(public[:]), hex.EncodeToString(psk[:]), c.conn.Local(), c.tunnel.Address())
}

func (s *standard) peer(psk ...PresharedKey) Peer {
	return Peer{Key: s.key.Public(), PSK: psk, Address: standardAddress, Endpoint: s.conn.Local()}
}

// packet is what its kernel sends for a frame.
func (s *standard) packet(c *cell, body string) []byte {
	b := make([]byte, HeaderLen+len(body))
	header(b, number(standardAddress), number(c.tunnel.Address()), len(body), 1)
	copy(b[HeaderLen:], body)
	return b
}

func (s *standard) send(c *cell, body string) {
	s.t.Helper()
	select {
	case s.tun.Outbound <- s.packet(c, body):
	case <-time.After(patience):
		s.t.Fatal("wireguard-go does not take a packet")
	}
}

func (s *standard) expect(c *cell, body string) {
	s.t.Helper()
	select {
	case p := <-s.tun.Inbound:
		frame, from := unwrap(p, number(standardAddress), number(c.tunnel.Address()))
		if string(frame) != body || from != netip.AddrPortFrom(c.tunnel.Address(), port) {
			s.t.Fatalf("wireguard-go got %x, want %q from %s", p, body, c.name)
		}
	case <-time.After(patience):
		s.t.Fatalf("wireguard-go: nothing came, want %q", body)
	}
}

func (c *cell) expectStandard(body string) {
	c.t.Helper()
	select {
	case f := <-c.got:
		if f.from != standardAddress || f.body != body {
			c.t.Fatalf("%s got %q from %s, want %q", c.name, f.body, f.from, body)
		}
	case <-time.After(patience):
		c.t.Fatalf("%s: nothing came, want %q", c.name, body)
	}
}

func (c *cell) sendStandard(body string) {
	c.t.Helper()
	if err := c.tunnel.Send(standardAddress, 0, []byte(body), 0); err != nil {
		c.t.Fatal(err)
	}
}

func meet(t *testing.T, psk ...PresharedKey) (*udptest.Network, *cell, *standard) {
	t.Helper()
	net := udptest.New()
	c, s := newCell(t, net, 1), newStandard(t, net)
	if err := c.tunnel.Set("standard", s.peer(psk...)); err != nil {
		t.Fatal(err)
	}
	s.knows(c, append(psk, PresharedKey{})[0])
	return net, c, s
}

// Whoever begins, with and without a preshared key, frames cross both ways.
func TestStandardPeer(t *testing.T) {
	for name, psk := range map[string][]PresharedKey{"": nil, ", preshared key": {{7: 1}}} {
		t.Run("begun here"+name, func(t *testing.T) {
			_, c, s := meet(t, psk...)
			c.sendStandard("hello")
			s.expect(c, "hello")
			s.send(c, "hello yourself")
			c.expectStandard("hello yourself")
		})
		t.Run("begun there"+name, func(t *testing.T) {
			_, c, s := meet(t, psk...)
			s.send(c, "hello")
			c.expectStandard("hello")
			c.sendStandard("hello yourself")
			s.expect(c, "hello yourself")
		})
	}
}

// Frames of every length cross, padded as the protocol wants it, and trains whole.
func TestStandardPeerTakesAllLengths(t *testing.T) {
	_, c, s := meet(t)
	for n := 1; n <= 1440-HeaderLen; n += 1 + n/8 {
		body := string(bytes.Repeat([]byte{byte(n)}, n))
		c.sendStandard(body)
		s.expect(c, body)
		s.send(c, body)
		c.expectStandard(body)
	}
	train := make([]byte, 40*1411+77)
	for i := range train {
		train[i] = byte(i / 1411)
	}
	if err := c.tunnel.Send(standardAddress, 0, train, 1411); err != nil {
		t.Fatal(err)
	}
	for len(train) > 0 {
		n := min(1411, len(train))
		s.expect(c, string(train[:n]))
		train = train[n:]
	}
}

// Sessions are renewed with a standard peer under traffic, and no frame is lost. (Its
// clock stands still, as it were; the sessions are this end's to renew.)
func TestStandardPeerTakesRekeys(t *testing.T) {
	_, c, s := meet(t)
	for second := range 300 {
		before := c.made.Load()
		later(time.Second, c)
		body := fmt.Sprint("second ", second)
		c.sendStandard(body)
		s.expect(c, body)
		s.send(c, body)
		c.expectStandard(body)
		if before > 0 && c.tunnel.peers["standard"].pending != nil {
			eventually(t, "the session is renewed", func() bool { return c.made.Load() > before })
		}
		if c.made.Load() > before {
			<-time.After(2 * device.HandshakeInitationRate) // it takes no two of one moment
		}
	}
	if n := c.made.Load(); n < 3 {
		t.Errorf("%d sessions in 300 s", n)
	}
}

// A standard peer roams: it answers to where it was sent from last. So it is sent to
// from one port, and is followed wherever it sends from.
func TestStandardPeerRoams(t *testing.T) {
	net := udptest.New()
	c, s := newCellWith(t, net, 1, 4), newStandard(t, net)
	if err := c.tunnel.Set("standard", s.peer()); err != nil {
		t.Fatal(err)
	}
	s.knows(c, PresharedKey{})
	var mu sync.Mutex
	from := map[uint16]bool{}
	elsewhere := netip.MustParseAddrPort("192.0.2.99:4444") // another port alone
	var moved, followed atomic.Bool
	net.SetHook(func(d *udptest.Datagram) udptest.Fate {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case d.From == s.conn.Local() && moved.Load():
			d.From = elsewhere
		case d.To == elsewhere:
			d.To = s.conn.Local()
			followed.Store(true)
		case d.From.Addr() == c.conn.Local().Addr():
			from[d.From.Port()] = true
		}
		return udptest.Deliver
	})
	for flow := range uint32(16) {
		if err := c.tunnel.Send(standardAddress, flow, []byte("flow"), 0); err != nil {
			t.Fatal(err)
		}
		s.expect(c, "flow")
	}
	mu.Lock()
	if len(from) != 1 || !from[c.conn.Local().Port()] {
		t.Errorf("it was sent to from ports %v", from)
	}
	mu.Unlock()
	moved.Store(true)
	s.send(c, "from another port")
	c.expectStandard("from another port")
	c.sendStandard("to another port")
	s.expect(c, "to another port")
	if !followed.Load() {
		t.Error("the answer did not go where the peer is now")
	}
}

// stranger is where floods come from.
var stranger = netip.MustParseAddrPort("198.51.100.1:1")

// flood puts n handshakes that nobody began before whoever is at to, all at once if the
// network holds them: their mac1 is right, which is no secret.
func flood(t *testing.T, net *udptest.Network, to netip.AddrPort, key PublicKey, n int) {
	t.Helper()
	from, err := net.Listen(stranger)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close() // nobody waits for an answer
	var macs device.CookieGenerator
	macs.Init(device.NoisePublicKey(key))
	for i := range n {
		b := make([]byte, initiationLen)
		endian.PutUint32(b, typeInitiation)
		endian.PutUint64(b[8:], uint64(i))
		macs.AddMacs(b)
		if err := from.Send(to, b, 0); err != nil {
			t.Fatal(err)
		}
	}
	net.Release()
}

// within waits for what must happen.
func within(t *testing.T, what string, happens <-chan struct{}) {
	t.Helper()
	select {
	case <-happens:
	case <-time.After(patience):
		t.Fatal("it does not happen: " + what)
	}
}

// A standard peer under load asks for a cookie, and gets it.
func TestStandardPeerAsksForCookies(t *testing.T) {
	net, c, s := meet(t)
	cookies := make(chan struct{}, 4096)
	var shown atomic.Bool
	net.SetHook(func(d *udptest.Datagram) udptest.Fate {
		switch {
		case d.From == stranger:
			return udptest.Hold
		case d.To == c.conn.Local() && typeOf(d) == typeCookie:
			cookies <- struct{}{}
		case d.From == c.conn.Local() && typeOf(d) == typeInitiation:
			shown.Store(!bytes.Equal(d.Payload[initiationLen-16:], make([]byte, 16)))
		}
		return udptest.Deliver
	})
	flood(t, net, s.conn.Local(), s.key.Public(), 900)
	c.sendStandard("under load")
	within(t, "a cookie is asked for", cookies)
	later(6*time.Second, c)
	s.expect(c, "under load")
	if !shown.Load() {
		t.Error("the handshake that was taken shows no cookie")
	}
}

// Under load this end asks a standard peer for a cookie, gets it with the next
// handshake (after the 5 s of its clock), and strangers' handshakes cost nothing more.
func TestCookiesAreAskedOfAStandardPeer(t *testing.T) {
	net, c, s := meet(t)
	asked := make(chan struct{}, 4096)
	net.SetHook(func(d *udptest.Datagram) udptest.Fate {
		if d.From == stranger {
			return udptest.Hold
		}
		if d.To == s.conn.Local() && typeOf(d) == typeCookie {
			asked <- struct{}{}
		}
		return udptest.Deliver
	})
	flood(t, net, c.conn.Local(), c.key.Public(), queueLen-10)
	s.send(c, "with a cookie")
	within(t, "a cookie is asked for", asked)
	c.expectStandard("with a cookie")
}
