package datapath

import (
	"encoding/binary"
	"slices"
	"testing"

	"tulle/overlay/fib"
	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
)

// fuzzWorld has two cells, a client (web) and a server (db) on each, and the
// policies web → db tcp 80 and udp 53. Nothing else may pass.
func fuzzWorld(t testing.TB) (w *world, client, server, far *container) {
	w = newWorld(t)
	a, b := w.cell(1), w.cell(2)
	client, server, far = a.container("web", 2), a.container("db", 3), b.container("db", 3)
	w.allow("web db tcp 80")
	w.allow("web db udp 53")
	return w, client, server, far
}

// forget brings the cells back to where they were before any packet.
func (w *world) forget() {
	for _, c := range w.cells {
		c.path.flows.Each(func(f *flowFlow) { c.path.flows.Delete(f.Ref(), nil) })
		c.path.Tick(c.path.flows.Now() + 10)
		c.path.in.frags.datagrams, c.path.in.frags.waiting = nil, 0
		for _, ep := range c.path.attached {
			ep.w.frags.datagrams, ep.w.frags.waiting = nil, 0
		}
	}
}

// mayReach is the obvious evaluator for a packet that begins a conversation
// between the client and a server: what arrives must be one of these, or carry
// nothing on.
func mayReach(r received, client, server *container) bool {
	h := &r.h
	switch {
	case h.FragmentOffset != 0:
		return fib.Name(h.Src) == client.addr && (h.IPv6 || h.Proto == packet.ProtoUDP || h.Proto == packet.ProtoTCP)
	case fib.Name(h.Src) != client.addr || fib.Name(h.Dst) != server.addr:
		return false
	case h.Proto == packet.ProtoTCP:
		return h.DstPort == 80
	case h.Proto == packet.ProtoUDP:
		return h.DstPort == 53
	case h.Proto == packet.ProtoICMP, h.Proto == packet.ProtoICMPv6:
		return h.IsICMPError() // about a flow that an earlier packet of the input began
	}
	return false
}

// packets cuts fuzz input into packets, each behind its length. The IPv4 header
// at offset at, if there is one, gets its checksum, so that a change in it goes
// further than that.
func packets(in []byte, at int) [][]byte {
	var all [][]byte
	for len(in) >= 2 && len(all) < 32 {
		n := min(int(binary.BigEndian.Uint16(in)), len(in)-2)
		p := slices.Clone(in[2 : 2+n])
		if n >= at+20 && int(p[at]&15)*4 >= 20 && int(p[at]&15)*4 <= n-at {
			packettest.Fix(p[at:])
		}
		all = append(all, p)
		in = in[2+n:]
	}
	return all
}

func join(all ...[]byte) []byte {
	var out []byte
	for _, p := range all {
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(p))), p...)
	}
	return out
}

// A malicious container writes whatever it likes into its device, virtio headers
// too. Nothing panics, and what arrives anywhere else is what policy allows, from
// its own address.
func FuzzEgress(f *testing.F) {
	world, client, server, far := fuzzWorld(f)
	plain := make([]byte, packet.VirtioLen)
	with := func(p []byte) []byte { return append(append([]byte(nil), plain...), p...) }
	for _, to := range []*container{server, far} {
		f.Add(join(with(packettest.TCP(client.at(1), to.at(80), fSYN, 1, 0, nil)), with(packettest.TCP(client.at(1), to.at(80), fACK, 2, 0, make([]byte, 100)))))
		f.Add(join(with(packettest.UDP(client.at(1), to.at(53), []byte("x"))), with(packettest.UDP(client.at(1), to.at(54), nil))))
		var parts [][]byte
		for _, p := range cutUp(packettest.UDP(client.at(1), to.at(53), make([]byte, 300)), 1, 120) {
			parts = append(parts, with(p))
		}
		f.Add(join(parts...))
		f.Add(join(parts[2], parts[1], parts[0]))
		sup := make([]byte, packet.VirtioLen)
		packet.Virtio{Flags: packet.VirtioNeedsChecksum, GSOType: packet.GSOTCPv4, GSOSize: 100, CsumStart: 20, CsumOffset: 16}.Encode(sup)
		f.Add(join(append(sup, packettest.TCP(client.at(1), to.at(80), fACK, 1, 1, make([]byte, 1000))...)))
		f.Add(join(with(packettest.ICMP(client.addr, to.addr, 3, 3, 0, packettest.UDP(to.at(53), client.at(1), nil)))))
	}
	for _, to := range []*container{server, far} {
		c, s := twin(client.at(1)), twin(to.at(53))
		f.Add(join(with(packettest.UDP(c, s, []byte("x"))), with(packettest.TCP(c, twin(to.at(80)), fSYN, 1, 0, nil))))
		var parts [][]byte
		for _, p := range cutUp(packettest.UDP(c, s, make([]byte, 300)), 1, 120) {
			parts = append(parts, with(p))
		}
		f.Add(join(parts[1], parts[0], parts[2]))
		f.Add(join(with(packettest.IPv6{Src: c.Addr(), Dst: s.Addr(), Proto: 17, First: 60, Extensions: []byte{17, 0, 1, 4, 0, 0, 0, 0}, Payload: packettest.UDP(c, s, nil)[40:]}.Bytes())))
		sup := make([]byte, packet.VirtioLen)
		packet.Virtio{Flags: packet.VirtioNeedsChecksum, GSOType: packet.GSOTCPv6, GSOSize: 100, CsumStart: 40, CsumOffset: 16}.Encode(sup)
		f.Add(join(append(sup, packettest.TCP(c, twin(to.at(80)), fACK, 1, 1, make([]byte, 1000))...)))
	}
	f.Add(join(with(packettest.UDP(client.at(1), addrPort("169.254.0.2:53"), []byte("query")))))
	f.Fuzz(func(t *testing.T, in []byte) {
		world.t = t
		world.forget()
		for _, b := range packets(in, packet.VirtioLen) {
			w := client.ep.w
			w.read(copy(w.buf[virtioAt:], b))
			client.cell.w.pump()
		}
		for _, k := range []*container{server, far} {
			for _, r := range k.take() {
				if !mayReach(r, client, k) {
					t.Errorf("%s arrived at %s", r, k.addr)
				}
			}
		}
		client.got() // answers parse and have right checksums
	})
}

// A malicious host of the underlay that has a peer's address sends whatever it
// likes. Nothing panics, and what arrives is what policy allows.
func FuzzIngress(f *testing.F) {
	world, client, _, far := fuzzWorld(f)
	b := far.cell
	b.path.in.crowd = 0
	f.Add(join(sealed(b, 1, packettest.TCP(client.at(1), far.at(80), fSYN, 1, 0, nil)), sealed(b, 1, packettest.TCP(client.at(1), far.at(80), fACK, 2, 0, make([]byte, 100)))))
	f.Add(join(sealed(b, 1, packettest.UDP(client.at(1), far.at(53), nil)), sealed(b, 0, packettest.UDP(client.at(1), far.at(53), nil)), sealed(b, 2, packettest.UDP(client.at(1), far.at(53), nil))))
	var parts [][]byte
	for _, p := range cutUp(packettest.UDP(client.at(1), far.at(53), make([]byte, 300)), 1, 120) {
		parts = append(parts, sealed(b, 1, p))
	}
	f.Add(join(parts...))
	f.Add(join(parts[1], parts[2], parts[0]))
	f.Add(join(sealed(b, 1, packettest.UDP(twin(client.at(1)), twin(far.at(53)), nil)), sealed(b, 1, packettest.TCP(twin(client.at(1)), twin(far.at(80)), fSYN, 1, 0, nil))))
	f.Add(join(sealed(b, 0, packettest.ICMP(client.cell.subnet.Addr(), far.addr, 3, 3, 0, packettest.UDP(far.at(53), client.at(1), nil)))))
	f.Fuzz(func(t *testing.T, in []byte) {
		world.t = t
		world.forget()
		for _, p := range packets(in, headroom) {
			far.cell.frame(client.cell.underlay, p)
		}
		for _, r := range far.take() {
			if !mayReach(r, client, far) {
				t.Errorf("%s arrived", r)
			}
		}
	})
}
