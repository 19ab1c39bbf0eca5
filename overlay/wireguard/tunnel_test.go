package wireguard

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tulle/overlay/udp"
	"tulle/overlay/udp/udptest"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// frame is what came out of a tunnel.
type frame struct {
	from netip.Addr
	body string
}

// cell is one end, with everything that it received.
type cell struct {
	t      *testing.T
	name   string
	net    *udptest.Network
	tunnel *Tunnel
	key    PrivateKey
	conn   *udptest.Conn
	got    chan frame
	now    atomic.Int64  // its clock, which the test moves
	made   atomic.Int64  // sessions that it seals in, one after the other
	news   chan struct{} // capacity 1: there is one more
}

// A cell's log tells its test of sessions.
func (c *cell) Enabled(context.Context, slog.Level) bool { return true }
func (c *cell) WithAttrs([]slog.Attr) slog.Handler       { return c }
func (c *cell) WithGroup(string) slog.Handler            { return c }
func (c *cell) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "session" {
		c.made.Add(1)
		select {
		case c.news <- struct{}{}:
		default:
		}
	}
	return nil
}

// later moves the clocks of all, when whatever is on its way has arrived, and waits
// until what that brings about has arrived too.
func later[D time.Duration | int64](d D, cells ...*cell) {
	settle(cells...)
	for _, c := range cells {
		c.now.Add(int64(d))
	}
	for _, c := range cells {
		c.tunnel.tick()
	}
	settle(cells...)
}

// settle waits until nothing is on its way: the network is quiet, handshakes too, and
// they have sent nothing more.
func settle(cells ...*cell) {
	t, net := cells[0].t, cells[0].net
	t.Helper()
	for {
		before := 0
		eventually(t, "the network is quiet", func() (quiet bool) { before, quiet = net.Quiet(); return quiet })
		for _, c := range cells {
			c.tunnel.handshakes <- message{n: initiationLen} // what was queued before it is done when it is taken
			eventually(t, "handshakes are taken", func() bool { return len(c.tunnel.handshakes) == 0 })
		}
		if after, quiet := net.Quiet(); quiet && after == before {
			return
		}
	}
}

// inUse is how many indices stand for handshakes and sessions.
func (t *Tunnel) inUse() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.indices.n
}

// eventually waits for what tells nobody that it is true.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("never true: " + what)
		}
	}
}

func newCell(t *testing.T, net *udptest.Network, n int) *cell { return newCellWith(t, net, n, 1) }

// newCellWith makes a cell that has so many sockets.
func newCellWith(t *testing.T, net *udptest.Network, n, sockets int) *cell {
	t.Helper()
	return newCellOver(t, net, n, sockets, func(c udp.Conn) udp.Conn { return c })
}

// newCellOver makes a cell whose sockets are what over makes of them.
func newCellOver(t *testing.T, net *udptest.Network, n, sockets int, over func(udp.Conn) udp.Conn) *cell {
	t.Helper()
	c := &cell{t: t, net: net, name: fmt.Sprintf("cell-%d", n), got: make(chan frame, 4096), news: make(chan struct{}, 1)}
	c.now.Store(int64(time.Hour))
	var err error
	if c.key, err = GenerateKey(); err != nil {
		t.Fatal(err)
	}
	if c.conn, err = net.Listen(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 51820)); err != nil {
		t.Fatal(err)
	}
	conns := []udp.Conn{over(c.conn)}
	for range sockets - 1 {
		beside, err := net.Listen(netip.AddrPortFrom(c.conn.Local().Addr(), 0))
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, over(beside))
	}
	c.tunnel, err = New(Options{
		Keys: []PrivateKey{c.key}, Address: netip.AddrFrom4([4]byte{100, 64, 0, byte(n)}), Conns: conns, MTU: 1440,
		Receive: func(batch []udp.Message) {
			for _, m := range batch {
				c.got <- frame{m.From.Addr(), string(m.Buf[:m.N])}
			}
		},
		Log: slog.New(c), clock: c.now.Load,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.tunnel.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *cell) peer() Peer {
	return Peer{Key: c.key.Public(), Address: c.tunnel.Address(), Endpoint: c.conn.Local()}
}

// nobody is a peer that there is not.
func (c *cell) nobody() Peer {
	return Peer{Key: newKey(c.t).Public(), Address: netip.MustParseAddr("100.64.0.77"), Endpoint: netip.MustParseAddrPort("192.0.2.77:51820")}
}

func (c *cell) knows(other *cell) {
	c.t.Helper()
	if err := c.tunnel.Set(other.name, other.peer()); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cell) send(to *cell, body string) {
	c.t.Helper()
	if err := c.tunnel.Send(to.tunnel.Address(), 0, []byte(body), 0); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cell) expect(from *cell, body string) {
	c.t.Helper()
	select {
	case f := <-c.got:
		if f.from != from.tunnel.Address() || f.body != body {
			c.t.Fatalf("%s got %q from %s, want %q from %s", c.name, f.body, f.from, body, from.name)
		}
	case <-time.After(patience):
		c.t.Fatalf("%s: nothing came, want %q", c.name, body)
	}
}

// nothing checks that only what marker sends now arrives, not what should not
// have before it.
func (c *cell) nothing(marker *cell) {
	c.t.Helper()
	marker.send(c, "marker")
	c.expect(marker, "marker")
}

func pair(t *testing.T) (net *udptest.Network, a, b *cell) {
	net = udptest.New()
	a, b = newCell(t, net, 1), newCell(t, net, 2)
	a.knows(b)
	b.knows(a)
	return net, a, b
}

func TestFramesCrossTheTunnel(t *testing.T) {
	net, a, b := pair(t)
	var mu sync.Mutex
	clear := 0
	net.SetHook(func(d *udptest.Datagram) udptest.Fate {
		mu.Lock()
		defer mu.Unlock()
		if bytes.Contains(d.Payload, []byte("the secret")) {
			clear++
		}
		return udptest.Deliver
	})
	a.send(b, "the secret")
	b.expect(a, "the secret")
	b.send(a, "the secret too")
	a.expect(b, "the secret too")
	mu.Lock()
	defer mu.Unlock()
	if clear != 0 {
		t.Errorf("%d datagrams show what they carry", clear)
	}
}

// A cell isn't deaf for good because the kernel was out of memory for a moment.
func TestSocketThatFailsIsReadAgain(t *testing.T) {
	net := udptest.New()
	var socket *udptest.Failing
	a, b := newCell(t, net, 1), newCellOver(t, net, 2, 1, func(c udp.Conn) udp.Conn {
		socket = &udptest.Failing{Conn: c}
		socket.Left.Store(4)
		return socket
	})
	a.knows(b)
	b.knows(a)
	a.send(b, "hello")
	b.expect(a, "hello")
	if left := socket.Left.Load(); left >= 0 {
		t.Errorf("%d errors were not met", left)
	}
}

// A train of frames arrives whole and in order, each a datagram of its own.
func TestTrainsKeepTheirOrder(t *testing.T) {
	_, a, b := pair(t)
	a.send(b, "hello") // the session is there
	b.expect(a, "hello")
	const each, last = 1362, 77
	for n := range 20 {
		train := make([]byte, 0, udp.MaxSend)
		for i := range 40 {
			train = append(train, bytes.Repeat([]byte{byte(n), byte(i)}, each/2)...)
		}
		train = append(train, bytes.Repeat([]byte{byte(n)}, last)...)
		if err := a.tunnel.Send(b.tunnel.Address(), 0, train, each); err != nil {
			t.Fatal(err)
		}
		for len(train) > 0 {
			k := min(each, len(train))
			b.expect(a, string(train[:k]))
			train = train[k:]
		}
	}
}

func TestPeerMovesOnTheUnderlay(t *testing.T) {
	net, a, b := pair(t)
	a.send(b, "from the first address")
	b.expect(a, "from the first address")
	b.send(a, "to the first address")
	a.expect(b, "to the first address")
	// Network translation: what a sends comes from elsewhere, and what goes there
	// comes to a.
	elsewhere := netip.MustParseAddrPort("198.51.100.7:4444")
	followed := make(chan struct{}, 4096)
	net.SetHook(func(d *udptest.Datagram) udptest.Fate {
		if d.From == a.conn.Local() {
			d.From = elsewhere
		}
		if d.To == elsewhere {
			d.To = a.conn.Local()
			followed <- struct{}{}
		}
		return udptest.Deliver
	})
	a.send(b, "from elsewhere")
	b.expect(a, "from elsewhere")
	for len(followed) > 0 {
		<-followed
	}
	b.send(a, "to elsewhere")
	a.expect(b, "to elsewhere")
	select {
	case <-followed:
	default:
		t.Error("the answer did not go where the peer is now")
	}
}

// A stranger that repeats to a restarted cell what a peer once began is answered, for
// the cell cannot know; but the peer is not taken to be where the stranger is.
func TestRepeatedHandshakeMovesNobody(t *testing.T) {
	net, a, b := pair(t)
	begun := make(chan []byte, 16)
	net.SetHook(func(d *udptest.Datagram) udptest.Fate {
		if typeOf(d) == typeInitiation {
			begun <- bytes.Clone(d.Payload)
		}
		return udptest.Deliver
	})
	speak(a, b)
	settle(a, b)
	if err := b.tunnel.Set(a.name, b.nobody()); err != nil { // what it knew of a is gone
		t.Fatal(err)
	}
	b.knows(a)
	stranger, err := net.Listen(netip.MustParseAddrPort("198.51.100.66:666"))
	if err != nil {
		t.Fatal(err)
	}
	if err := stranger.Send(b.conn.Local(), <-begun, 0); err != nil {
		t.Fatal(err)
	}
	got := []udp.Message{{Buf: make([]byte, 65535)}}
	if _, err := stranger.Receive(got); err != nil || got[0].N != responseLen {
		t.Fatalf("%d bytes, %v: want a response", got[0].N, err)
	}
	if err := stranger.Close(); err != nil {
		t.Fatal(err)
	}
	later(6*time.Second, a, b)
	b.send(a, "to where the peer is")
	a.expect(b, "to where the peer is")
}

func TestStrangersKeyOpensNothing(t *testing.T) {
	net, a, b := pair(t)
	liar := newCell(t, net, 3)
	liar.knows(b)
	liar.send(b, "I am nobody you know")
	a.send(b, "marker")
	b.expect(a, "marker")
	// Known, but under another key than it has.
	wrong, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	p := liar.peer()
	p.Key = wrong.Public()
	if err := b.tunnel.Set(liar.name, p); err != nil {
		t.Fatal(err)
	}
	liar.send(b, "I am not that key's")
	b.nothing(a)
}

// A peer sends from its own tunnel address and from no other.
func TestTunnelAddressIsTheKeysAlone(t *testing.T) {
	net := udptest.New()
	a, b := newCell(t, net, 1), newCell(t, net, 2)
	a.knows(b)
	p := a.peer()
	p.Address = netip.MustParseAddr("100.64.0.9") // not the one a sends from
	if err := b.tunnel.Set(a.name, p); err != nil {
		t.Fatal(err)
	}
	c := newCell(t, net, 3)
	b.knows(c)
	c.knows(b)
	a.send(b, "from an address that is not mine")
	b.nothing(c)
}

func TestReplayedDatagramIsTakenOnce(t *testing.T) {
	net, a, b := pair(t)
	a.send(b, "first")
	b.expect(a, "first")
	repeated := make(chan struct{}, 16)
	net.SetHook(func(d *udptest.Datagram) udptest.Fate {
		if d.From == a.conn.Local() && binary.LittleEndian.Uint32(d.Payload) == 4 { // transport data
			repeated <- struct{}{}
			return udptest.Duplicate
		}
		return udptest.Deliver
	})
	a.send(b, "once")
	b.expect(a, "once")
	<-repeated
	net.SetHook(nil)
	b.nothing(a)
}

// What is recorded is of no use after the session: a removed peer's key is
// nobody's, at once.
func TestRemovedPeerHasNoSession(t *testing.T) {
	net, a, b := pair(t)
	c := newCell(t, net, 3)
	b.knows(c)
	c.knows(b)
	c.send(b, "hello")
	b.expect(c, "hello")
	a.send(b, "still known")
	b.expect(a, "still known")
	b.tunnel.Remove(a.name)
	a.send(b, "removed")
	b.nothing(c)
	b.knows(a) // and may come back, under a new session
	b.send(a, "again")
	a.expect(b, "again")
}

// A peer's new key ends what the old one had.
func TestNewKeyReplacesTheOld(t *testing.T) {
	net, a, b := pair(t)
	a.send(b, "old")
	b.expect(a, "old")
	next := newCell(t, net, 7)
	p := next.peer()
	p.Address = netip.MustParseAddr("100.64.0.7")
	if err := b.tunnel.Set(a.name, p); err != nil {
		t.Fatal(err)
	}
	next.knows(b)
	a.send(b, "the old key speaks")
	next.send(b, "new")
	b.expect(next, "new")
}

// A cell that was started again makes itself known: its peer, which only ever
// sends, would go on in the old session.
func TestBeginAfterARestart(t *testing.T) {
	net, a, b := pair(t)
	a.send(b, "before")
	b.expect(a, "before")
	if err := b.tunnel.Close(); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Listen(b.conn.Local())
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1024)
	again, err := New(Options{
		Keys: []PrivateKey{b.key}, Address: b.tunnel.Address(), Conns: []udp.Conn{conn}, MTU: 1440, Log: slog.New(slog.DiscardHandler),
		Receive: func(batch []udp.Message) {
			for _, m := range batch {
				got <- string(m.Buf[:m.N])
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := again.Close(); err != nil {
			t.Error(err)
		}
	})
	confirmed := make(chan struct{}, 16)
	net.SetHook(func(d *udptest.Datagram) udptest.Fate {
		if d.From == b.conn.Local() && d.Payload[0] == 4 { // transport data, under the new session
			confirmed <- struct{}{}
		}
		return udptest.Deliver
	})
	if err := again.Set(a.name, a.peer()); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	again.Begin(a.name)
	again.Begin("nobody")
	<-confirmed
	for {
		a.send(b, "after") // until a has read the confirmation it seals for the old session
		select {
		case body := <-got:
			if took := time.Since(begun); body != "after" || took > 10*time.Second {
				t.Errorf("%q after %s", body, took)
			}
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func TestSetRefusesWhatIsAnothers(t *testing.T) {
	_, a, b := pair(t)
	third := netip.MustParseAddrPort("192.0.2.3:51820")
	free := netip.MustParseAddr("100.64.0.3")
	for name, c := range map[string]struct {
		p    Peer
		want error
	}{
		"no key":                 {Peer{Address: free, Endpoint: third}, ErrKey},
		"the own key":            {Peer{Key: a.key.Public(), Address: free, Endpoint: third}, ErrKey},
		"a key without a secret": {Peer{Key: PublicKey{1}, Address: free, Endpoint: third}, ErrKey},
		"another's key":          {Peer{Key: b.key.Public(), Address: free, Endpoint: third}, ErrKey},
		"no address":             {Peer{Key: PublicKey{9}, Endpoint: third}, ErrAddress},
		"the own address":        {Peer{Key: PublicKey{9}, Address: a.tunnel.Address(), Endpoint: third}, ErrAddress},
		"another's address":      {Peer{Key: PublicKey{9}, Address: b.tunnel.Address(), Endpoint: third}, ErrAddress},
		"an address of IPv6":     {Peer{Key: PublicKey{9}, Address: netip.MustParseAddr("fd00::1"), Endpoint: third}, ErrAddress},
	} {
		if err := a.tunnel.Set("third", c.p); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	a.send(b, "and the peer that is there is not touched")
	b.expect(a, "and the peer that is there is not touched")
}

func TestSendRefusesWhatNoTunnelTakes(t *testing.T) {
	_, a, b := pair(t)
	if err := a.tunnel.Send(netip.MustParseAddr("100.64.0.99"), 0, []byte("to nobody"), 0); err != nil {
		t.Fatal(err)
	}
	a.send(b, "to somebody")
	b.expect(a, "to somebody")
	if err := a.tunnel.Send(b.tunnel.Address(), 0, make([]byte, 65535), 0); err != udp.ErrMessageSize {
		t.Errorf("a frame of 65,535 bytes: %v, want %v", err, udp.ErrMessageSize)
	}
	if err := a.tunnel.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.tunnel.Send(b.tunnel.Address(), 0, []byte("late"), 0); err != udp.ErrClosed {
		t.Errorf("after Close: %v, want %v", err, udp.ErrClosed)
	}
	if err := a.tunnel.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
}

// Senders that wait for room end with the tunnel.
func TestCloseWakesSenders(t *testing.T) {
	_, a, b := pair(t)
	var wg sync.WaitGroup
	ended := make(chan error, 8)
	for range cap(ended) {
		wg.Go(func() {
			train := make([]byte, 60*1000)
			for {
				if err := a.tunnel.Send(b.tunnel.Address(), 0, train, 1000); err != nil {
					ended <- err
					return
				}
			}
		})
	}
	drain := make(chan struct{})
	go func() {
		for {
			select {
			case <-b.got:
			case <-drain:
				return
			}
		}
	}()
	<-b.got
	if err := a.tunnel.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	close(drain)
	for range cap(ended) {
		if err := <-ended; err != udp.ErrClosed {
			t.Errorf("a sender ended with %v", err)
		}
	}
	go func() { // b's receiver must not stand in its Close's way
		for range b.got {
		}
	}()
}
