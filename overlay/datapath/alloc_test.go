package datapath

import (
	"net/netip"
	"testing"

	"tulle/overlay/fib"
	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
	"tulle/overlay/tun"
	"tulle/overlay/udp"
)

// sink is a device that takes everything; what a Read gives is the test's.
type sink struct{ packets, bytes int }

func (s *sink) Read([]byte) (int, error) { return 0, tun.ErrClosed }
func (s *sink) Write(pieces ...[]byte) error {
	s.packets++
	for _, p := range pieces {
		s.bytes += len(p)
	}
	return nil
}
func (s *sink) Close() error { return nil }

// drain takes what a socket sends.
type drain struct {
	bytes int
	last  []byte // a copy of the last Send, while keep is set
	keep  bool
}

func (d *drain) send(b []byte) {
	d.bytes += len(b)
	if d.keep {
		d.last = append(d.last[:0], b...)
	}
}

// stage is one cell with a client and a server, and a peer with another server,
// all of whose output is thrown away.
type stage struct {
	client, server, remote *container
	conn                   *drain
	dev                    *sink
	virtio                 packet.Virtio
}

// newStage has flows from the client to both servers, and from the remote to the server.
func newStage(t testing.TB) *stage {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	s := &stage{client: a.container("web", 2), server: a.container("db", 3), remote: b.container("db", 4)}
	w.allow("web db tcp 80")
	w.allow("db db tcp 80")
	connect(s.client, 4000, s.server, 80)
	connect(s.client, 4000, s.remote, 80)
	connect(s.remote, 4000, s.server, 80)
	s.conn, s.dev = &drain{}, &sink{}
	a.path.conn.(*worldConn).drain = s.conn
	s.server.ep.dev = s.dev
	s.virtio = packet.Virtio{Flags: packet.VirtioNeedsChecksum, GSOType: packet.GSOTCPv4, GSOSize: 1410, CsumStart: 20, CsumOffset: 16}
	return s
}

// egress makes the client's reader see a packet to dst.
func (s *stage) egress(dst *container, payload int, v packet.Virtio) func() {
	p := packettest.TCP(s.client.at(4000), dst.at(80), fACK|fPSH, 101, 501, make([]byte, payload))
	w := s.client.ep.w
	return func() {
		v.Encode(w.buf[virtioAt:])
		w.read(packet.VirtioLen + copy(w.buf[headroom:], p))
	}
}

// ingress makes the socket's reader see n segments from the remote container.
func (s *stage) ingress(n, payload int) (func(), int) {
	in := s.client.cell.path.in
	var all []byte
	for i := range n {
		all = append(all, sealed(s.client.cell, tags["db"],
			packettest.TCP(s.remote.at(4000), s.server.at(80), fACK, uint32(101+i*payload), 501, make([]byte, payload)))...)
	}
	buf := make([]byte, len(all))
	m := []udp.Message{{Buf: buf, N: len(buf), Segment: len(buf) / n, From: s.remote.cell.underlay}}
	return func() {
		copy(buf, all) // joining rewrites headers
		in.receive(m)
	}, len(all)
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	s := newStage(t)
	hit, _ := s.ingress(40, 1410)
	for name, f := range map[string]func(){
		"egress to a peer":                 s.egress(s.remote, 1000, packet.Virtio{}),
		"egress to a peer, super-packet":   s.egress(s.remote, 60000, s.virtio),
		"egress to a neighbour":            s.egress(s.server, 1000, packet.Virtio{}),
		"egress to a neighbour, 60,000 B":  s.egress(s.server, 60000, s.virtio),
		"ingress, 40 segments of one flow": hit,
	} {
		t.Run(name, func(t *testing.T) {
			if n := testing.AllocsPerRun(100, f); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
	t.Run("refused and answered", func(t *testing.T) {
		p := packettest.TCP(s.client.at(4000), s.server.at(81), fSYN, 1, 0, nil)
		w := s.client.ep.w
		s.client.ep.dev = &sink{}
		n := testing.AllocsPerRun(100, func() {
			packet.Virtio{}.Encode(w.buf[virtioAt:])
			w.read(packet.VirtioLen + copy(w.buf[headroom:], p))
		})
		if n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
	if s.dev.bytes == 0 || s.conn.bytes == 0 {
		t.Error("nothing went through")
	}
}

// tunnelDrain is a tunnel that throws away what it is given, once it has seen that
// there is room around it.
type tunnelDrain struct{ frames int }

func (d *tunnelDrain) Room(n int) (before, stride, after int) { return 44, n + 60, 31 }
func (d *tunnelDrain) Send(netip.Addr, uint32, []byte, int) error {
	d.frames++
	return nil
}
func (d *tunnelDrain) SendTrain(_ netip.Addr, _ uint32, b []byte, frame int) error {
	before, stride, after := d.Room(frame)
	if cap(b)-len(b) < after {
		return udp.ErrMessageSize
	}
	for at := before; at < len(b); at += stride {
		if b[at] != 0x88 { // VXLAN's flags
			return udp.ErrMessageSize
		}
		d.frames++
	}
	return nil
}

func TestNothingIsAllocatedIntoATunnel(t *testing.T) {
	s := newStage(t)
	d := &tunnelDrain{}
	s.client.cell.path.tunnel = d
	s.client.cell.fib.Update(func(b *fib.Builder) {
		p := *s.client.cell.fib.Load().PeerByUnderlay(s.remote.cell.underlay)
		p.Mode, p.Tunnel = fib.WireGuard, netip.MustParseAddr("100.64.0.2")
		b.PutPeer(p)
	})
	for name, c := range map[string]struct {
		send   func()
		frames int
	}{
		"one packet":     {s.egress(s.remote, 1000, packet.Virtio{}), 1},
		"a super-packet": {s.egress(s.remote, 60000, s.virtio), (60000 + 1409) / 1410},
	} {
		t.Run(name, func(t *testing.T) {
			d.frames = 0
			c.send()
			if d.frames != c.frames {
				t.Errorf("%d frames, want %d", d.frames, c.frames)
			}
			if n := testing.AllocsPerRun(100, c.send); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

func BenchmarkEgress(b *testing.B) {
	s := newStage(b)
	for _, c := range []struct {
		name    string
		dst     *container
		payload int
		v       packet.Virtio
	}{
		{"peer/1B", s.remote, 1, packet.Virtio{}},
		{"peer/1410B", s.remote, 1410, packet.Virtio{}},
		{"peer/64KB", s.remote, 64000, s.virtio},
		{"local/1B", s.server, 1, packet.Virtio{}},
		{"local/64KB", s.server, 64000, s.virtio},
	} {
		b.Run(c.name, func(b *testing.B) {
			f := s.egress(c.dst, c.payload, c.v)
			b.SetBytes(int64(c.payload))
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "packets/s")
		})
	}
}

func BenchmarkIngress(b *testing.B) {
	s := newStage(b)
	for _, n := range []int{1, 44} {
		b.Run(map[int]string{1: "1 segment", 44: "44 segments"}[n], func(b *testing.B) {
			f, bytes := s.ingress(n, 1410)
			b.SetBytes(int64(bytes))
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "segments/s")
		})
	}
}

// From one container's read to the other's write, with the frames handed over in
// memory.
func BenchmarkEndToEnd(b *testing.B) {
	s := newStage(b)
	far := s.remote.cell.path
	out := &sink{}
	s.remote.ep.dev = out
	s.conn.keep = true
	send := s.egress(s.remote, 62000, s.virtio)
	m := []udp.Message{{From: s.client.cell.underlay, Segment: headroom + 40 + 1410}}
	b.SetBytes(62000)
	b.ReportAllocs()
	for b.Loop() {
		send()
		m[0].Buf, m[0].N = s.conn.last, len(s.conn.last)
		far.in.receive(m)
	}
	if out.bytes == 0 {
		b.Fatal("nothing arrived")
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "packets/s")
}

// A flow's first packet: verdict, record, and the record's end.
func BenchmarkNewFlow(b *testing.B) {
	s := newStage(b)
	p := s.client.cell.path
	frame := packettest.UDP(s.client.at(1), s.server.at(53), nil)
	p.policies.Add(rule("web db udp 53"))
	w := s.client.ep.w
	b.ReportAllocs()
	tick := uint32(0)
	for i := 0; b.Loop(); i++ {
		packet.Virtio{}.Encode(w.buf[virtioAt:])
		n := packet.VirtioLen + copy(w.buf[headroom:], frame)
		w.buf[headroom+20], w.buf[headroom+21] = byte(i>>8), byte(i)
		w.read(n)
		if i%10000 == 9999 {
			tick += 31
			p.Tick(tick)
			b.StopTimer()
			p.flows.Each(func(f *flowFlow) { p.flows.Delete(f.Ref(), nil) })
			b.StartTimer()
		}
	}
}
