package datapath

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tulle/overlay/fib"
	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
	"tulle/overlay/tun/tuntest"
	"tulle/overlay/udp"
	"tulle/policy"
	"tulle/policy/table"
)

// world is cells, their containers and the network between them, with nobody's
// goroutine but the test's: what a container sends is carried to its end before
// send returns.
type world struct {
	t     testing.TB
	cells []*testCell
	queue []wire
	// tap sees every datagram between cells; false: it is lost.
	tap  func(*wire) bool
	sent int  // calls of Send
	v6   bool // containers are called by their IPv6 addresses
}

// wire is one datagram on its way.
type wire struct {
	from, to netip.AddrPort
	b        []byte
	ecn      uint8
}

type testCell struct {
	w        *world
	name     string
	path     *Path
	fib      *fib.Table
	policies *table.Table
	reach    *table.Table
	underlay netip.AddrPort
	subnet   netip.Prefix
	queries  []string
}

type container struct {
	cell        *testCell
	app         policy.AppID
	addr        netip.Addr
	incarnation uint64
	ep          *endpoint
	end         *tuntest.Container
}

// worldConn is a cell's socket: Send queues, Receive is never answered, because
// the world itself calls the ingress.
type worldConn struct {
	w      *world
	local  netip.AddrPort
	closed chan struct{}
	drain  *drain // instead of the world, if set
}

func (c *worldConn) Send(to netip.AddrPort, b []byte, segment int) error {
	return c.SendECN(to, b, segment, 0)
}

func (c *worldConn) SendECN(to netip.AddrPort, b []byte, segment int, ecn uint8) error {
	if c.drain != nil {
		c.drain.send(b)
		return nil
	}
	c.w.sent++
	if segment <= 0 {
		segment = len(b)
	}
	if n := (len(b) + segment - 1) / segment; n > udp.MaxSegments || len(b) > udp.MaxSend {
		return udp.ErrTooMany
	}
	for len(b) > 0 {
		n := min(segment, len(b))
		c.w.queue = append(c.w.queue, wire{c.local, to, append([]byte(nil), b[:n]...), ecn})
		b = b[n:]
	}
	return nil
}

func (c *worldConn) Receive([]udp.Message) (int, error) {
	<-c.closed
	return 0, udp.ErrClosed
}
func (c *worldConn) Local() netip.AddrPort { return c.local }
func (c *worldConn) Close() error          { close(c.closed); return nil }

var overlayNet = netip.MustParsePrefix("10.255.0.0/16")

func newWorld(t testing.TB) *world { return &world{t: t} }

// cell adds a Tulle cell: number n has 10.255.n.0/24 and is 192.0.2.n, and all
// cells know each other. It is started.
func (w *world) cell(n int, change ...func(*Options)) *testCell {
	w.t.Helper()
	c := &testCell{
		w: w, name: fmt.Sprintf("cell-%d", n), policies: table.New(), reach: table.New(),
		underlay: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 4789),
		subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 255, byte(n), 0}), 24),
	}
	var err error
	if c.fib, err = fib.New(overlayNet, c.subnet); err != nil {
		w.t.Fatal(err)
	}
	o := Options{
		Conn: &worldConn{w: w, local: c.underlay, closed: make(chan struct{})}, FIB: c.fib, Policies: c.policies, Reach: c.reach,
		ResolverAddr: netip.MustParseAddr("169.254.0.2"),
		Resolver: func(ep *fib.Local, src netip.AddrPort, q []byte) {
			c.queries = append(c.queries, fmt.Sprintf("%s %s %s", ep.App, src, q))
		},
		Ticks: make(chan time.Time), Log: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&o)
	}
	if c.path, err = New(o); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := c.path.Close(); err != nil {
			w.t.Error(err)
		}
	})
	c.path.started.Store(true)
	for _, other := range w.cells {
		other.knowsPeer(c)
		c.knowsPeer(other)
	}
	w.cells = append(w.cells, c)
	return c
}

func (c *testCell) knowsPeer(other *testCell) {
	c.fib.Update(func(b *fib.Builder) {
		b.PutPeer(fib.Peer{Name: other.name, Underlay: other.underlay, Subnet: other.subnet, Generation: 1})
	})
}

// silk makes a silk peer of number n known to c.
func (c *testCell) silk(n int) *fib.Peer {
	name := fmt.Sprintf("silk-%d", n)
	c.fib.Update(func(b *fib.Builder) {
		b.PutPeer(fib.Peer{
			Name: name, Kind: fib.Silk, Underlay: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 4789),
			Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 255, byte(n), 0}), 24), Generation: 1,
		})
	})
	return c.fib.Load().Peer(name)
}

// tags of the apps in these tests.
var tags = map[policy.AppID]policy.Tag{"web": 1, "db": 2, "other": 3, "loner": policy.NoTag}

// container attaches a container of an app at the cell's address .host, and lets
// all other cells know.
func (c *testCell) container(app policy.AppID, host byte) *container {
	return c.containerAt(app, host, 1<<32|uint64(host))
}

func (c *testCell) containerAt(app policy.AppID, host byte, incarnation uint64) *container {
	c.w.t.Helper()
	a := c.subnet.Addr().As4()
	a[3] = host
	addr := netip.AddrFrom4(a)
	dev, far := tuntest.New()
	k := &container{cell: c, app: app, addr: addr, incarnation: incarnation, end: far}
	// The Path must not start a reader: the test is it.
	started := c.path.started.Swap(false)
	defer c.path.started.Store(started)
	if err := c.path.Attach(fib.Local{Addr: addr, Container: addr.String(), App: app, Tag: tags[app], Incarnation: incarnation}, dev); err != nil {
		c.w.t.Fatal(err)
	}
	k.ep = c.path.attached[addr]
	if c.w.v6 {
		k.addr = fib.Twin(addr)
	}
	for _, other := range c.w.cells {
		if other != c && tags[app] != policy.NoTag {
			other.fib.Update(func(b *fib.Builder) {
				b.PutRemote(fib.Remote{Addr: addr, App: app, Tag: tags[app], Incarnation: incarnation})
			})
		}
	}
	return k
}

// rule is "web db tcp 80-90" (or one port).
func rule(s string) table.Rule {
	f := strings.Fields(s)
	proto, err := policy.ParseProtocol(f[2])
	if err != nil {
		panic(err)
	}
	var ports policy.PortRange
	if n, _ := fmt.Sscanf(f[3], "%d-%d", &ports.Start, &ports.End); n == 1 {
		ports.End = ports.Start
	}
	tag := func(app string) policy.Tag {
		if app == "*" {
			return table.Any
		}
		return tags[policy.AppID(app)]
	}
	return table.Rule{Src: tag(f[0]), Dst: tag(f[1]), Protocol: proto, Ports: ports}
}

// allow adds a rule to every cell.
func (w *world) allow(s string) {
	for _, c := range w.cells {
		c.policies.Add(rule(s))
	}
}

// forbid removes a rule from every cell and cuts; it says how many flows ended.
func (w *world) forbid(s string) int {
	n := 0
	for _, c := range w.cells {
		n += c.forbid(s)
	}
	return n
}

func (c *testCell) forbid(s string) int {
	r := rule(s)
	c.policies.Remove(r)
	n := c.path.Cut([]Pair{{r.Src, r.Dst}})
	c.w.pump()
	return n
}

// send makes the container send a packet, plain.
func (k *container) send(p []byte) { k.sendVirtio(packet.Virtio{}, p) }

// sendVirtio makes the container send a packet behind a virtio header, and
// carries everything that follows from it.
func (k *container) sendVirtio(v packet.Virtio, p []byte) {
	w := k.ep.w
	v.Encode(w.buf[virtioAt:])
	w.read(packet.VirtioLen + copy(w.buf[headroom:], p))
	k.cell.w.pump()
}

// pump carries the datagrams between cells until there are none.
func (w *world) pump() {
	for len(w.queue) > 0 {
		batch := w.queue
		w.queue = nil
		for len(batch) > 0 {
			// Consecutive datagrams of one pair arrive as one message, as with GRO.
			d := batch[0]
			n := 1
			for n < len(batch) && batch[n].from == d.from && batch[n].to == d.to && batch[n].ecn == d.ecn && len(batch[n-1].b) == len(d.b) && len(batch[n].b) <= len(d.b) && n < 40 {
				n++
			}
			var m udp.Message
			m.From, m.Segment, m.ECN = d.from, len(d.b), d.ecn
			for _, x := range batch[:n] {
				if w.tap == nil || w.tap(&x) {
					m.Buf = append(m.Buf, x.b...)
					m.ECN = x.ecn
				}
			}
			m.N = len(m.Buf)
			for _, c := range w.cells {
				if c.underlay == d.to {
					c.path.in.receive([]udp.Message{m})
				}
			}
			batch = batch[n:]
		}
	}
}

// frame gives the cell a datagram from an underlay address.
func (c *testCell) frame(from netip.AddrPort, b []byte) {
	buf := append([]byte(nil), b...)
	c.path.in.receive([]udp.Message{{Buf: buf, N: len(buf), Segment: len(buf), From: from}})
	c.w.pump()
}

// got is everything that was written to the container since the last call; all
// of it is whole and has its checksums.
func (k *container) got() []received {
	k.cell.w.t.Helper()
	all := k.take()
	for _, r := range all {
		if r.v.Flags == 0 && !packet.VerifyChecksum(r.p, &r.h) {
			k.cell.w.t.Fatalf("written to %s with a wrong checksum: % x", k.addr, r.p)
		}
	}
	return all
}

// take is got for packets whose transport checksum their sender got wrong.
func (k *container) take() []received {
	k.cell.w.t.Helper()
	var all []received
	for k.end.Pending() > 0 {
		v, p, err := k.end.Receive(context.Background())
		if err != nil {
			k.cell.w.t.Fatal(err)
		}
		r := received{v: v, p: p}
		if err := packet.Parse(p, &r.h); err != nil {
			k.cell.w.t.Fatalf("written to %s: %v: % x", k.addr, err, p)
		}
		all = append(all, r)
	}
	return all
}

type received struct {
	v packet.Virtio
	h packet.Header
	p []byte
}

func (r received) payload() string { return string(r.p[r.h.HeaderLen+r.h.L4Len : r.h.TotalLen]) }

// String is the packet in the words the tests use.
func (r received) String() string {
	h := &r.h
	switch {
	case h.FragmentOffset != 0:
		return fmt.Sprintf("fragment %s>%s @%d", h.Src, h.Dst, h.FragmentOffset)
	case h.Proto == packet.ProtoTCP:
		return fmt.Sprintf("tcp %s>%s %s", netip.AddrPortFrom(h.Src, h.SrcPort), netip.AddrPortFrom(h.Dst, h.DstPort), flagNames(h.TCPFlags))
	case h.Proto == packet.ProtoUDP:
		return fmt.Sprintf("udp %s>%s", netip.AddrPortFrom(h.Src, h.SrcPort), netip.AddrPortFrom(h.Dst, h.DstPort))
	case h.Proto == packet.ProtoICMP, h.Proto == packet.ProtoICMPv6:
		return fmt.Sprintf("icmp %s>%s %d/%d", h.Src, h.Dst, h.ICMPType, h.ICMPCode)
	}
	return fmt.Sprintf("ip %s>%s %d", h.Src, h.Dst, h.Proto)
}

func flagNames(f uint8) string {
	var b strings.Builder
	for i, n := range "FSRPA" {
		if f&(1<<i) != 0 {
			b.WriteRune(n)
		}
	}
	return b.String()
}

// expect holds what was written to a container against the words for it.
func (k *container) expect(want ...string) []received {
	k.cell.w.t.Helper()
	all := k.got()
	var got []string
	for _, r := range all {
		got = append(got, r.String())
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		k.cell.w.t.Fatalf("%s (%s) got\n  %s\nwant\n  %s", k.addr, k.app, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
	return all
}

// dropped checks that since the last call the cell dropped exactly these.
func (c *testCell) dropped(before Stats, want ...Reason) {
	c.w.t.Helper()
	after := c.path.Stats()
	diff := map[Reason]int{}
	for r := range NumReasons {
		diff[r] = int(after.Egress.Drops[r] - before.Egress.Drops[r] + after.Ingress.Drops[r] - before.Ingress.Drops[r])
	}
	for _, r := range want {
		diff[r]--
	}
	for r, n := range diff {
		if n != 0 {
			c.w.t.Errorf("%s: drops for %s differ by %d from what was expected", c.name, r, n)
		}
	}
}

func (k *container) at(port uint16) netip.AddrPort { return netip.AddrPortFrom(k.addr, port) }

const (
	fFIN = packet.FlagFIN
	fSYN = packet.FlagSYN
	fRST = packet.FlagRST
	fACK = packet.FlagACK
	fPSH = packet.FlagPSH
)

// connect makes a connection: three segments, all of which must arrive. The
// client's next number is 101, the server's 501.
func connect(client *container, cport uint16, server *container, sport uint16) {
	t := client.cell.w.t
	t.Helper()
	c, s := client.at(cport), server.at(sport)
	client.send(packettest.TCP(c, s, fSYN, 100, 0, nil))
	server.expect(fmt.Sprintf("tcp %s>%s S", c, s))
	server.send(packettest.TCP(s, c, fSYN|fACK, 500, 101, nil))
	client.expect(fmt.Sprintf("tcp %s>%s SA", s, c))
	client.send(packettest.TCP(c, s, fACK, 101, 501, nil))
	server.expect(fmt.Sprintf("tcp %s>%s A", c, s))
}
