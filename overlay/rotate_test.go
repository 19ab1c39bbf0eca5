package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/overlay/udp"
	"tulle/overlay/wireguard"
	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/client"
)

// tunnelled starts cells of mode wireguard.
func (p *plane) tunnelled(names ...string) []*cell {
	p.Helper()
	var cells []*cell
	for i, name := range names {
		cells = append(cells, p.cell(name, netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i)}).String(), func(c *Config) { c.Mode = api.ModeWireGuard }))
	}
	return cells
}

// rotate follows a rotation to its end, and returns its steps.
func (c *cell) rotate() (steps []control.RotationStep, last control.Rotation) {
	c.Helper()
	conn := c.client()
	defer conn.Close()
	ctx, cancel := context.WithTimeout(c.Context(), 2*patience)
	defer cancel()
	for {
		s, err := conn.RotateKey(ctx, control.RotateKey{Follow: last.Serial})
		if err != nil {
			c.Fatalf("rotate the key of %s, after %v: %v", c.name, steps, err)
		}
		if len(steps) == 0 || steps[len(steps)-1] != s.Step {
			steps = append(steps, s.Step)
		}
		if last = s; s.Step.Ended() {
			return steps, last
		}
	}
}

// keys are what stands on the disk.
func (c *cell) keys() wireguard.Keys {
	c.Helper()
	k, err := wireguard.LoadKeys(c.cfg.StateDir)
	if err != nil {
		c.Fatal(err)
	}
	return k
}

// stream is a download over TCP and datagrams over UDP from db to web, numbered,
// until it is ended.
type stream struct {
	t        *testing.T
	stop     chan struct{}
	stopOnce func()
	wg       sync.WaitGroup
	bytes    int // received in order
	sent     uint32
	received map[uint32]bool
}

func (a *app) streams(b *app) *stream {
	a.Helper()
	s := &stream{t: a.T, stop: make(chan struct{}), received: map[uint32]bool{}}
	s.stopOnce = sync.OnceFunc(func() { close(s.stop) })
	var l net.Listener
	var out, in *net.UDPConn
	err := b.ns.Do(func() (err error) {
		if l, err = net.Listen("tcp4", netip.AddrPortFrom(b.addr(), 5432).String()); err != nil {
			return err
		}
		out, err = net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.addr(), 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(a.addr(), 5353)))
		return err
	})
	if err == nil {
		err = a.ns.Do(func() (err error) {
			in, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a.addr(), 5353)))
			return err
		})
	}
	if err != nil {
		a.Fatal(err)
	}
	// What the test's own socket has no room for is not the tunnel's loss.
	raw, err := in.SyscallConn()
	if err != nil {
		a.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20) })

	var c net.Conn
	eventually(a.T, "the download begins", func() bool {
		c, err = a.dial(b, 5432, patience)
		return err == nil
	})
	far, err := l.Accept()
	if err != nil {
		a.Fatal(err)
	}
	_ = l.Close()
	a.Cleanup(func() { // of a test that failed before the end
		s.stopOnce()
		s.wg.Wait()
	})
	s.wg.Go(func() { s.upload(far) })
	s.wg.Go(func() { s.download(c) })
	s.wg.Go(func() { s.send(out) })
	s.wg.Go(func() { s.receive(in) })
	return s
}

// number is the stream's byte at a place: a download that lost or doubled a part
// goes wrong at once.
func number(at int) byte { return byte(at ^ at>>8 ^ at>>16 ^ at>>24) }

func (s *stream) upload(c net.Conn) {
	defer c.Close()
	b := make([]byte, 32<<10)
	tick := time.NewTicker(time.Millisecond) // others want the processor, too
	defer tick.Stop()
	for at := 0; ; at += len(b) {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		for i := range b {
			b[i] = number(at + i)
		}
		if _, err := c.Write(b); err != nil {
			s.t.Errorf("upload after %d bytes: %v", at, err)
			return
		}
	}
}

func (s *stream) download(c net.Conn) {
	defer c.Close()
	b := make([]byte, 64<<10)
	for {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		n, err := c.Read(b)
		for i, got := range b[:n] {
			if got != number(s.bytes+i) {
				s.t.Errorf("byte %d of the download is %d, want %d", s.bytes+i, got, number(s.bytes+i))
				return
			}
		}
		s.bytes += n
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			s.t.Errorf("download after %d bytes: %v", s.bytes, err)
			return
		}
	}
}

// last is a datagram's number that ends the stream.
const last = ^uint32(0)

func (s *stream) send(c *net.UDPConn) {
	defer c.Close()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	b := make([]byte, 200)
	for stopped := false; ; s.sent++ {
		select {
		case <-s.stop:
			stopped = true
		case <-tick.C:
		}
		binary.BigEndian.PutUint32(b, s.sent)
		if stopped {
			binary.BigEndian.PutUint32(b, last)
		}
		if _, err := c.Write(b); err != nil {
			s.t.Errorf("datagram %d: %v", s.sent, err)
			return
		}
		if stopped {
			return
		}
	}
}

func (s *stream) receive(c *net.UDPConn) {
	defer c.Close()
	b := make([]byte, 1500)
	for {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		n, err := c.Read(b)
		if err != nil || n != 200 {
			s.t.Errorf("after %d datagrams: %d bytes, %v", len(s.received), n, err)
			return
		}
		k := binary.BigEndian.Uint32(b)
		if k == last {
			return
		}
		if s.received[k] {
			s.t.Errorf("datagram %d came twice", k)
		}
		s.received[k] = true
	}
}

// end ends the stream; nothing of it may be missing.
func (s *stream) end() {
	s.t.Helper()
	s.stopOnce()
	s.wg.Wait()
	var lost []uint32
	for k := range s.sent {
		if !s.received[k] {
			lost = append(lost, k)
		}
	}
	if len(lost) > 0 {
		s.t.Errorf("%d of %d datagrams lost: %v", len(lost), s.sent, lost)
	}
	if s.bytes == 0 || s.sent < 100 {
		s.t.Errorf("%d bytes and %d datagrams: too few to mean anything", s.bytes, s.sent)
	}
	s.t.Logf("%d bytes and %d datagrams, none lost", s.bytes, len(s.received))
}

// Amid a download and a stream of datagrams both cells get another key, one after
// the other and then at the same time, and nothing is lost. The old key's handshake
// is refused from then on.
func TestKeyRotationLosesNothing(t *testing.T) {
	p := newPlane(t)
	cells := p.tunnelled("one", "two")
	one, two := cells[0], cells[1]
	p.allow(tcp("web", "db", 5432), udpPolicy("db", "web", 5353))
	web, db := one.attach("web-1", "web", control.LifelineNone), two.attach("db-1", "db", control.LifelineNone)
	s := web.streams(db)
	before := one.status().Key
	steps, done := one.rotate()
	want := []control.RotationStep{control.RotationBegins, control.RotationTells, control.RotationMoves, control.RotationPublishes, control.RotationDone}
	for _, step := range steps {
		i := slices.Index(want, step)
		if i < 0 {
			t.Fatalf("steps %v, want them in the order of %v", steps, want)
		}
		want = want[i+1:]
	}
	if done.Step != control.RotationDone || done.Old != before || done.New == before || one.status().Key != done.New {
		t.Errorf("%+v; the key is %s, it was %s", done, one.status().Key, before)
	}
	if _, second := two.rotate(); second.Step != control.RotationDone {
		t.Errorf("the other cell: %+v", second)
	}
	var wg sync.WaitGroup
	for _, c := range cells {
		wg.Go(func() {
			if _, r := c.rotate(); r.Step != control.RotationDone {
				t.Errorf("both at once, %s: %+v", c.name, r)
			}
		})
	}
	wg.Wait()
	s.end()

	// Each knows the other by its new key alone, and the disk has that alone.
	for i, c := range cells {
		k := c.keys()
		if !k.Other().IsZero() || api.TunnelKey(k.Current.Public()) != c.status().Key {
			t.Errorf("%s: the disk has another key than the tunnel, or two", c.name)
		}
		other := cells[1-i]
		other.untilStatus("knows the new key alone", func(s control.Status) bool {
			return len(s.Peers) == 1 && s.Peers[0].Key == c.status().Key && s.Peers[0].NextKey.IsZero()
		})
	}

	// Whoever holds on to the old key gets no answer.
	current := one.status().Key
	tunnel := two.daemon.life.Load().tunnel
	session := func() (wireguard.Session, bool) { return tunnel.Session("one") }
	stale := wireguard.Peer{Key: wireguard.PublicKey(before), Address: one.status().Tunnel, Endpoint: one.status().WireGuard}
	if err := tunnel.Set("one", stale); err != nil {
		t.Fatal(err)
	}
	tunnel.Begin("one")
	if c, err := web.dial(db, 5432, time.Second); err == nil {
		_ = c.Close()
		t.Error("a connection through a tunnel to the old key")
	}
	if s, there := session(); there {
		t.Errorf("a session with the old key: %+v", s)
	}
	stale.Key = wireguard.PublicKey(current)
	if err := tunnel.Set("one", stale); err != nil {
		t.Fatal(err)
	}
	tunnel.Begin("one")
	eventually(t, "a session with the new key", func() bool { s, there := session(); return there && api.TunnelKey(s.Remote) == current })

	// And over a restart.
	one.shut()
	one.run()
	if got := one.status().Key; got != current {
		t.Errorf("after a restart the key is %s, want %s", got, current)
	}
}

// The log does not say that a key is rotated where it was not.
func TestKeyRotationThatFailedIsNotLoggedAsOne(t *testing.T) {
	var log strings.Builder
	r := &rotation{l: &life{d: &Daemon{log: slog.New(slog.NewTextHandler(&log, nil))}}, news: make(chan struct{})}
	r.tell(control.RotationFailed, func(s *control.Rotation) { s.Error = "the disk is full" })
	if log.Len() != 0 {
		t.Errorf("logged %s", log.String())
	}
	r.tell(control.RotationTells, nil)
	if !strings.Contains(log.String(), "tunnel key is rotated") {
		t.Errorf("logged %q", log.String())
	}
}

// Without a server nobody can be told, so nothing begins.
func TestKeyRotationWithoutAServer(t *testing.T) {
	p := newPlane(t)
	one := p.tunnelled("one")[0]
	before := one.keys()
	p.stop()
	one.untilStatus("the server is away", func(s control.Status) bool { return !s.Connected })
	_, r := one.rotate()
	if r.Step != control.RotationFailed || !strings.Contains(r.Error, "policy server is away") {
		t.Errorf("%+v", r)
	}
	if one.keys() != before || one.status().Key != api.TunnelKey(before.Current.Public()) {
		t.Error("the keys are others than before")
	}
	p.start()
	one.untilStatus("the server is back", func(s control.Status) bool { return s.Connected })
	if _, r := one.rotate(); r.Step != control.RotationDone || one.keys() == before {
		t.Errorf("with the server: %+v", r)
	}
}

// silent is a cell that hosts an app and acknowledges nothing.
func (p *plane) silent(name string, of policy.AppID) (speak func()) {
	p.Helper()
	dir := p.credential(name)
	cl, err := client.New(client.Options{Server: "https://" + p.addr, Credentials: dir})
	if err != nil {
		p.Fatal(err)
	}
	key, err := wireguard.GenerateKey()
	if err != nil {
		p.Fatal(err)
	}
	l, err := cl.Lease(p.Context(), api.LeaseRequest{Underlay: netip.MustParseAddr("127.0.0.9"), Port: 4789, Mode: api.ModeWireGuard,
		Key: api.TunnelKey(key.Public()), WireGuardPort: 51820})
	if err != nil {
		p.Fatal(err)
	}
	_, err = cl.SetEndpoints(p.Context(), api.EndpointsRequest{Generation: l.Generation, Sequence: 1, Endpoints: []api.EndpointRegistration{
		{Container: "mute", Address: l.Subnet.Addr().Next(), App: api.AppRef{GUID: of}, Incarnation: 1}}})
	if err != nil {
		p.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	free := make(chan struct{})
	watching := make(chan struct{})
	begun := sync.OnceFunc(func() { close(watching) })
	wg.Go(func() {
		_ = cl.Watch(ctx, func(ctx context.Context, e api.Event) error {
			begun()
			select {
			case <-free:
			case <-ctx.Done():
			}
			return nil
		})
	})
	p.Cleanup(func() {
		cancel()
		wg.Wait()
		cl.Close()
	})
	<-watching
	return sync.OnceFunc(func() { close(free) })
}

// A rotation outlives whatever ends the daemon, in each of its states, and does not
// go on before a cell has acknowledged that may still use the old key.
func TestKeyRotationGoesOn(t *testing.T) {
	p := newPlane(t)
	one := p.tunnelled("one")[0]
	p.allow(tcp("web", "db", 5432))
	one.attach("web-1", "web", control.LifelineNone)
	speak := p.silent("mute", "db")
	before := one.keys()

	conn := one.client()
	r, err := conn.RotateKey(t.Context(), control.RotateKey{})
	for err == nil && r.Step != control.RotationTells {
		r, err = conn.RotateKey(t.Context(), control.RotateKey{Follow: r.Serial})
	}
	if err != nil || r.Step != control.RotationTells {
		t.Fatalf("%+v, %v", r, err)
	}
	if again, err := one.client().RotateKey(t.Context(), control.RotateKey{}); err != nil || !again.Joined || again.New != r.New {
		t.Errorf("a second one: %+v, %v", again, err)
	}
	k := one.keys()
	if k.Current != before.Current || api.TunnelKey(k.Next.Public()) != r.New {
		t.Error("the disk has not both keys")
	}
	state := func() api.Peer {
		s, err := p.store.State(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, peer := range s.Peers {
			if peer.Name == "one" {
				return peer
			}
		}
		t.Fatal("one is no peer any more")
		return api.Peer{}
	}
	if got := state(); got.Key != r.Old || got.NextKey != r.New {
		t.Errorf("published are %s and %s", got.Key, got.NextKey)
	}

	one.shut()
	one.run()
	joined, err := one.client().RotateKey(t.Context(), control.RotateKey{})
	if err != nil || !joined.Joined || joined.Old != r.Old {
		t.Errorf("after a restart: %+v, %v", joined, err)
	}
	if got := one.keys(); got != k {
		t.Error("the restart went on without the silent cell")
	}
	speak()
	if _, r := one.rotate(); r.Step != control.RotationDone || one.status().Key != joined.New {
		t.Errorf("after the cell spoke: %+v", r)
	}

	// A daemon that ended with the new key in use, published alone or not.
	for _, alone := range []bool{false, true} {
		one.shut()
		k := one.keys()
		next, err := wireguard.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		if err := wireguard.SaveKeys(one.cfg.StateDir, wireguard.Keys{Current: next, Old: k.Current, Alone: alone}); err != nil {
			t.Fatal(err)
		}
		one.run()
		eventually(t, "the old key is forgotten", func() bool { return one.keys() == wireguard.Keys{Current: next} })
		if got := state(); got.Key != api.TunnelKey(next.Public()) || !got.NextKey.IsZero() {
			t.Errorf("published are %s and %s", got.Key, got.NextKey)
		}
	}
}

// A cell that says nothing at all is not waited for longer than the bound.
func TestKeyRotationIsBounded(t *testing.T) {
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", func(c *Config) { c.Mode, c.Rotate = api.ModeWireGuard, 500*time.Millisecond })
	p.allow(tcp("web", "db", 5432))
	one.attach("web-1", "web", control.LifelineNone)
	p.silent("mute", "db")
	before := one.keys()
	if _, r := one.rotate(); r.Step != control.RotationDone || one.keys() == before {
		t.Errorf("%+v", r)
	}
}

// A cell of mode vxlan has no key.
func TestKeyRotationInPlain(t *testing.T) {
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", func(c *Config) { c.Mode = api.ModeVXLAN })
	if _, err := one.client().RotateKey(t.Context(), control.RotateKey{}); codeOf(err) != control.CodeUnavailable {
		t.Errorf("%v", err)
	}
}

// A peer that was entered by hand hears nothing from the server. It is named, and
// waited for until its own configuration has the new key.
func TestKeyRotationWaitsForPeersByHand(t *testing.T) {
	p := newPlane(t)
	one := p.tunnelled("one")[0]
	key, err := wireguard.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	socket, err := udp.Listen(netip.MustParseAddrPort("127.0.0.5:0"), udp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	hand := api.Peer{Name: "hand", Mode: api.ModeWireGuard, Underlay: socket.Local().Addr(), WireGuardPort: socket.Local().Port(),
		Subnet: netip.MustParsePrefix("10.250.200.7/32"), Key: api.TunnelKey(key.Public()), Tunnel: netip.MustParseAddr("100.100.0.7")}
	tunnel, err := wireguard.New(wireguard.Options{Keys: []wireguard.PrivateKey{key}, Address: hand.Tunnel, Conns: []udp.Conn{socket},
		Receive: func([]udp.Message) {}, Log: testLog(t, "hand")})
	if err != nil {
		t.Fatal(err)
	}
	defer tunnel.Close()
	if err := p.store.AddPeer(t.Context(), hand); err != nil {
		t.Fatal(err)
	}
	one.untilStatus("knows the peer", func(s control.Status) bool { return len(s.Peers) == 1 })
	status := one.status()
	configure := func(k api.TunnelKey) {
		t.Helper()
		if err := tunnel.Set("one", wireguard.Peer{Key: wireguard.PublicKey(k), Address: status.Tunnel, Endpoint: status.WireGuard}); err != nil {
			t.Fatal(err)
		}
		tunnel.Begin("one")
	}
	configure(status.Key)
	eventually(t, "a session", func() bool { _, there := one.daemon.life.Load().tunnel.Session("hand"); return there })

	conn := one.client()
	r, err := conn.RotateKey(t.Context(), control.RotateKey{})
	for err == nil && !r.Step.Ended() && len(r.Waiting) == 0 {
		r, err = conn.RotateKey(t.Context(), control.RotateKey{Follow: r.Serial})
	}
	if err != nil || r.Step != control.RotationMoves || !slices.Equal(r.Waiting, []string{"hand"}) || !slices.Equal(r.Static, r.Waiting) {
		t.Fatalf("%+v, %v: want it to wait for the peer", r, err)
	}
	if s, there := tunnel.Session("one"); !there || api.TunnelKey(s.Remote) != r.Old {
		t.Error("the session with the old key is over")
	}
	configure(r.New)
	for err == nil && !r.Step.Ended() {
		r, err = conn.RotateKey(t.Context(), control.RotateKey{Follow: r.Serial})
	}
	if s, there := tunnel.Session("one"); err != nil || r.Step != control.RotationDone || !there || api.TunnelKey(s.Remote) != r.New {
		t.Errorf("%+v, %v; a session there: %t", r, err, there)
	}
}
