package datapath

import (
	"bytes"
	"fmt"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"tulle/overlay/fib"
	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
	"tulle/overlay/udp"
	"tulle/overlay/udp/udptest"
	"tulle/overlay/vxlan"
	"tulle/overlay/wireguard"
	"tulle/policy"
)

// tunnelled is two live cells with real tunnels between them.
type tunnelled struct {
	*live
	tunnels [2]*wireguard.Tunnel
	keys    [2]wireguard.PrivateKey
	outer   [2]*udptest.Conn
}

func tunnelOf(i int) netip.Addr { return netip.AddrFrom4([4]byte{100, 64, 0, byte(i + 1)}) }

// peerName is what a cell calls the other.
func peerName(i int) string { return fmt.Sprint("cell-", i) }

func newTunnelled(t *testing.T, change ...func(*live, int, *Options)) *tunnelled {
	w := &tunnelled{}
	w.live = newLive(t, func(l *live, i int, o *Options) {
		c := l.cells[i]
		var err error
		if w.keys[i], err = wireguard.GenerateKey(); err != nil {
			t.Fatal(err)
		}
		if w.outer[i], err = l.net.Listen(netip.AddrPortFrom(c.conn.Local().Addr(), 51820)); err != nil {
			t.Fatal(err)
		}
		w.tunnels[i], err = wireguard.New(wireguard.Options{
			Keys: w.keys[i : i+1], Address: tunnelOf(i), Conns: []udp.Conn{w.outer[i]}, MTU: 1440, Log: o.Log,
			Receive: func(batch []udp.Message) { c.path.FromTunnel(batch) },
		})
		if err != nil {
			t.Fatal(err)
		}
		// No probes between what these tests count.
		o.Tunnel, o.MTU, o.Ticks = w.tunnels[i], 1390, make(chan time.Time)
		for _, f := range change {
			f(l, i, o)
		}
	})
	for i, tunnel := range w.tunnels {
		// Before the Path, whose clean-up was registered earlier.
		t.Cleanup(func() {
			if err := tunnel.Close(); err != nil {
				t.Error(err)
			}
		})
		w.mode(i, fib.WireGuard)
		w.session(i)
	}
	return w
}

// eventually waits for a counter, which tells nobody that it moves.
func (l *tunnelled) eventually(what string, ok func() bool) {
	l.t.Helper()
	for !ok() {
		if l.ctx.Err() != nil {
			l.t.Fatal(what)
		}
		runtime.Gosched()
	}
}

// mode is what the control plane tells cell i about the other.
func (l *tunnelled) mode(i int, m fib.Mode) {
	other := l.cells[1-i]
	l.cells[i].fib.Update(func(b *fib.Builder) {
		p := fib.Peer{Name: peerName(1 - i), Mode: m, Underlay: other.conn.Local(), Subnet: other.subnet, Generation: 1}
		if m == fib.WireGuard {
			p.Tunnel = tunnelOf(1 - i)
		}
		b.PutPeer(p)
	})
}

// session makes the other cell known to the tunnel of cell i.
func (l *tunnelled) session(i int) {
	l.t.Helper()
	err := l.tunnels[i].Set(peerName(1-i), wireguard.Peer{
		Key: l.keys[1-i].Public(), Address: tunnelOf(1 - i), Endpoint: l.outer[1-i].Local(),
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

// pair is a container on each cell, allowed to talk by UDP, and started.
func (l *tunnelled) pair() (web, db *liveContainer) {
	web, db = l.container(0, "web", 2), l.container(1, "db", 3)
	for _, c := range l.cells {
		c.policies.Add(rule("web db udp 53"))
		c.policies.Add(rule("web db tcp 80"))
	}
	l.start()
	return web, db
}

func (l *tunnelled) drops(cell int, r Reason) uint64 {
	return l.cells[cell].path.Stats().Ingress.Drops[r]
}

// ask sends a datagram across and wants it, and an answer, to arrive.
func (l *tunnelled) ask(web, db *liveContainer, what string) {
	l.t.Helper()
	web.end.Send(packettest.UDP(web.at(1000), db.at(53), []byte(what)))
	db.until(l.live, what)
	db.end.Send(packettest.UDP(db.at(53), web.at(1000), []byte("re: "+what)))
	web.until(l.live, "re: "+what)
}

// With a tunnel between the cells nothing of what containers say is on the
// underlay, and nothing at all is at the port of plain frames.
func TestTunnelHidesWhatItCarries(t *testing.T) {
	l := newTunnelled(t)
	web, db := l.pair()
	var plain, shown atomic.Int32
	l.net.SetHook(func(d *udptest.Datagram) udptest.Fate {
		if d.To.Port() != 51820 || d.From.Port() != 51820 {
			plain.Add(1)
		}
		if bytes.Contains(d.Payload, []byte("password")) {
			shown.Add(1)
		}
		return udptest.Deliver
	})
	l.ask(web, db, "the password")
	if plain.Load() != 0 || shown.Load() != 0 {
		t.Errorf("%d datagrams outside the tunnel, %d show what they carry", plain.Load(), shown.Load())
	}
}

// A super-packet is split for the tunnel and joined again behind it.
func TestTunnelCarriesSuperPackets(t *testing.T) {
	l := newTunnelled(t)
	web, db := l.pair()
	l.ask(web, db, "hello") // the session is there
	body := make([]byte, 60000)
	for i := range body {
		body[i] = byte(i * 7)
	}
	var longest atomic.Int32
	l.net.SetHook(func(d *udptest.Datagram) udptest.Fate {
		longest.Store(max(longest.Load(), int32(len(d.Payload))))
		return udptest.Deliver
	})
	web.end.Send(packettest.TCP(web.at(2000), db.at(80), fSYN, 999, 0, nil))
	if _, _, err := db.end.Receive(l.ctx); err != nil {
		t.Fatal(err)
	}
	p := packettest.TCP(web.at(2000), db.at(80), fACK, 1000, 1, body)
	web.end.SendVirtio(packet.Virtio{Flags: 1, GSOType: packet.GSOTCPv4, GSOSize: 1410, HdrLen: 40, CsumStart: 20, CsumOffset: 16}, p)
	var got []byte
	writes := 0
	for len(got) < len(body) {
		_, q, err := db.end.Receive(l.ctx)
		if err != nil {
			t.Fatalf("after %d of %d bytes: %v", len(got), len(body), err)
		}
		var h packet.Header
		if err := packet.Parse(q, &h); err != nil {
			t.Fatal(err)
		}
		got = append(got, q[h.HeaderLen+h.L4Len:h.TotalLen]...)
		writes++
	}
	if !bytes.Equal(got, body) {
		t.Error("the bytes that arrived are others")
	}
	// 45 segments of 1,350 bytes; those that come up together are written together.
	if writes > 20 {
		t.Errorf("%d writes for 45 segments: nothing was joined", writes)
	}
	// 1,390 bytes, VXLAN and Ethernet, IPv4 and UDP, and the tunnel's own 32; with
	// the underlay's headers 1,500.
	if n := longest.Load(); n != 1500-28 {
		t.Errorf("the longest datagram has %d bytes, want %d", n, 1500-28)
	}
}

// A frame is taken in the mode that the control plane gave its peer and in no
// other, however good it looks.
func TestDowngradeIsRefused(t *testing.T) {
	l := newTunnelled(t)
	web, db := l.pair()
	l.ask(web, db, "inside")

	frame := func(body string) []byte {
		p := packettest.UDP(web.at(1000), db.at(53), []byte(body))
		b := make([]byte, vxlan.Overhead, vxlan.Overhead+len(p))
		f := vxlan.Frame{GroupID: uint16(tags["web"]), VNI: 1, DstMAC: l.cells[1].path.mac, SrcMAC: l.cells[0].path.mac}
		f.Encode(b)
		return append(b, p...)
	}
	// The same in plain, from the cell's own VXLAN socket: a host that can write
	// its address, or the cell itself before it had a tunnel.
	if err := l.cells[0].conn.Send(l.cells[1].conn.Local(), frame("in plain"), 0); err != nil {
		t.Fatal(err)
	}
	l.eventually("the plain frame is counted", func() bool { return l.drops(1, WrongMode) == 1 })
	web.end.Send(packettest.UDP(web.at(1000), db.at(53), []byte("marker")))
	if others := db.until(l.live, "marker"); len(others) != 0 {
		t.Errorf("the plain frame arrived: %v", others)
	}

	// The other way: a peer of mode vxlan whose session still stands.
	l.mode(1, fib.VXLAN)
	l.cells[1].fib.Update(func(b *fib.Builder) {
		p := *l.cells[1].fib.Load().Peer(peerName(0))
		p.Tunnel = tunnelOf(0)
		b.PutPeer(p)
	})
	web.end.Send(packettest.UDP(web.at(1000), db.at(53), []byte("in the tunnel")))
	l.eventually("the frame in the tunnel is counted", func() bool { return l.drops(1, WrongMode) == 2 })
	if err := l.cells[0].conn.Send(l.cells[1].conn.Local(), frame("in plain, as told"), 0); err != nil {
		t.Fatal(err)
	}
	if others := db.until(l.live, "in plain, as told"); len(others) != 0 {
		t.Errorf("the frame in the tunnel arrived: %v", others)
	}
}

// Without a tunnel of its own a cell sends nothing to a peer of mode wireguard,
// least of all in plain.
func TestNoTunnelNoPlainText(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	web, db := a.container("web", 2), b.container("db", 3)
	w.allow("web db udp 53")
	a.fib.Update(func(bu *fib.Builder) {
		p := *a.fib.Load().Peer(b.name)
		p.Mode, p.Tunnel = fib.WireGuard, tunnelOf(1)
		bu.PutPeer(p)
	})
	before := a.path.Stats()
	web.send(packettest.UDP(web.at(1), db.at(53), []byte("secret")))
	db.expect()
	a.dropped(before, WrongMode)
	if w.sent != 0 {
		t.Errorf("%d datagrams sent", w.sent)
	}
}

// A peer that the control plane took away is nobody from then on, though its
// session would still open what it sends; and with the session it is gone for
// good.
func TestPeerRemovedInsideTheTunnel(t *testing.T) {
	l := newTunnelled(t)
	web, db := l.pair()
	l.ask(web, db, "known")
	l.cells[1].fib.Update(func(b *fib.Builder) { b.DeletePeer(peerName(0)) })
	web.end.Send(packettest.UDP(web.at(1000), db.at(53), []byte("unknown")))
	l.eventually("the frame of nobody is counted", func() bool { return l.drops(1, UnknownPeer) == 1 })
	l.tunnels[1].Remove(peerName(0))
	l.mode(1, fib.WireGuard)
	l.cells[1].fib.Update(func(b *fib.Builder) {
		b.PutRemote(fib.Remote{Addr: web.addr, App: "web", Tag: tags["web"], Incarnation: 1<<32 | 2})
	})
	var sealed atomic.Int32
	l.net.SetHook(func(d *udptest.Datagram) udptest.Fate {
		if d.From == l.outer[0].Local() && d.Payload[0] == device.MessageTransportType {
			sealed.Add(1)
		}
		return udptest.Deliver
	})
	web.end.Send(packettest.UDP(web.at(1000), db.at(53), []byte("without a session")))
	l.eventually("the datagram is on its way", func() bool { return sealed.Load() > 0 })
	l.session(1)
	// What was sealed for the old session is lost; the other cell makes a new one.
	l.tunnels[0].Remove(peerName(1))
	l.session(0)
	web.end.Send(packettest.UDP(web.at(1000), db.at(53), []byte("and forth")))
	for _, r := range db.until(l.live, "and forth") {
		if r.h.Proto == packet.ProtoUDP {
			t.Errorf("arrived without a session: %s", r.payload())
		}
	}
}

// What a peer sends through its session and is no frame is counted as its fault.
func TestTunnelWithoutAFrame(t *testing.T) {
	l := newTunnelled(t)
	web, db := l.pair()
	l.ask(web, db, "hello")
	if err := l.tunnels[0].Send(tunnelOf(1), 0, []byte("no frame"), 0); err != nil {
		t.Fatal(err)
	}
	l.eventually("the datagram is counted", func() bool { return l.drops(1, BadFrame) == 1 })
	l.cells[1].path.FromTunnel([]udp.Message{{From: netip.AddrPortFrom(tunnelOf(0), 0)}})
	if n := l.drops(1, BadFrame); n != 2 {
		t.Errorf("%d, want the empty one counted as well", n)
	}
	l.ask(web, db, "and the session lives")
}

// A cut connection reads a reset at both ends, through the tunnel too.
func TestCutThroughTheTunnel(t *testing.T) {
	l := newTunnelled(t)
	web, db := l.pair()
	c, s := web.at(2000), db.at(80)
	step := func(from, to *liveContainer, p []byte, want string) {
		t.Helper()
		from.end.Send(p)
		_, q, err := to.end.Receive(l.ctx)
		if err != nil {
			t.Fatal(err)
		}
		r := received{p: q}
		if err := packet.Parse(q, &r.h); err != nil || r.String() != want {
			t.Fatalf("%s, %v; want %s", r, err, want)
		}
	}
	step(web, db, packettest.TCP(c, s, fSYN, 100, 0, nil), fmt.Sprintf("tcp %s>%s S", c, s))
	step(db, web, packettest.TCP(s, c, fSYN|fACK, 500, 101, nil), fmt.Sprintf("tcp %s>%s SA", s, c))
	step(web, db, packettest.TCP(c, s, fACK, 101, 501, nil), fmt.Sprintf("tcp %s>%s A", c, s))
	// One cell alone learns of it; the other hears by the tunnel.
	l.cells[0].policies.Remove(rule("web db tcp 80"))
	if n := l.cells[0].path.Cut([]Pair{{policy.Tag(1), policy.Tag(2)}}); n != 1 {
		t.Fatalf("%d flows cut", n)
	}
	for k, want := range map[*liveContainer]string{
		web: fmt.Sprintf("tcp %s>%s RA", s, c), db: fmt.Sprintf("tcp %s>%s RA", c, s),
	} {
		_, q, err := k.end.Receive(l.ctx)
		if err != nil {
			t.Fatal(err)
		}
		r := received{p: q}
		if err := packet.Parse(q, &r.h); err != nil || r.String() != want {
			t.Errorf("%s, %v; want %s", r, err, want)
		}
	}
}
