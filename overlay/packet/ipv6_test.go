package packet_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
)

var (
	web6  = netip.MustParseAddrPort("[fd00::aff:102]:40000")
	db6   = netip.MustParseAddrPort("[fd00::aff:203]:5432")
	cell6 = netip.MustParseAddr("fd00::aff:100")
)

// partial6 is partial of an IPv6 packet without extension headers.
func partial6(p []byte) ([]byte, packet.Virtio) {
	v := packet.Virtio{Flags: packet.VirtioNeedsChecksum, CsumStart: 40, CsumOffset: 16}
	if p[6] == packet.ProtoUDP {
		v.CsumOffset = 6
	}
	length := len(p) - 40
	s := packettest.Sum(p[8:40], []byte{0, p[6], byte(length >> 8), byte(length)})
	p[40+int(v.CsumOffset)], p[41+int(v.CsumOffset)] = byte(s>>8), byte(s)
	return p, v
}

// extensions6 is a chain of headers before next, and which is the first of them.
func extensions6(next uint8, kinds ...uint8) (first uint8, b []byte) {
	for _, k := range slices.Backward(kinds) {
		// Eight bytes, padded (PadN), or a routing header of type 2 that has arrived.
		h := []byte{next, 0, 1, 4, 0, 0, 0, 0}
		if k == 43 {
			h = []byte{next, 0, 2, 0, 0, 0, 0, 0}
		}
		b = append(h, b...)
		next = k
	}
	return next, b
}

func TestParseIPv6(t *testing.T) {
	p := packettest.TCPSegment{Src: web6, Dst: db6, Flags: packet.FlagSYN, Seq: 7, Window: 9, TOS: 0xb9, TTL: 63, Options: timestamps, Payload: []byte("abc")}.Bytes()
	want := packet.Header{
		Src: web6.Addr(), Dst: db6.Addr(), Proto: packet.ProtoTCP, IPv6: true, TTL: 63, TOS: 0xb9, DontFragment: true,
		HeaderLen: 40, TotalLen: 75, PartLen: 35, SrcPort: 40000, DstPort: 5432, TCPFlags: packet.FlagSYN, Seq: 7, Window: 9, L4Len: 32, PayloadLen: 3,
	}
	if d := cmp.Diff(want, parse(t, append(p, 0xff)), compareAddrs); d != "" {
		t.Errorf("header differs (-want +got):\n%s", d)
	}
	var h packet.Header
	for n := range p {
		if packet.Parse(p[:n], &h) == nil {
			t.Errorf("the first %d of %d bytes were accepted", n, len(p))
		}
	}
	if h := parse(t, packettest.ICMP(web6.Addr(), db6.Addr(), 128, 0, 1, []byte("x"))); h.Proto != packet.ProtoICMPv6 || h.ICMPType != 128 || h.IsICMPError() {
		t.Errorf("echo: %+v", h)
	}
}

func TestExtensionHeaders(t *testing.T) {
	udp := packettest.UDP(web6, db6, []byte("hello"))[40:]
	for _, c := range []struct {
		name        string
		kinds       []uint8
		err         error
		sourceRoute bool
	}{
		{"none", nil, nil, false},
		{"hop by hop", []uint8{0}, nil, false},
		{"destination options", []uint8{60}, nil, false},
		{"all that are known", []uint8{0, 60, 43, 60}, nil, false},
		{"hop by hop where it must not be", []uint8{60, 0}, packet.ErrOptions, false},
		{"no end of them", []uint8{60, 60, 60, 60, 60, 60, 60, 60, 60}, packet.ErrOptions, false},
	} {
		first, ext := extensions6(packet.ProtoUDP, c.kinds...)
		p := packettest.IPv6{Src: web6.Addr(), Dst: db6.Addr(), Proto: packet.ProtoUDP, First: first, Extensions: ext, Payload: udp}.Bytes()
		var h packet.Header
		if err := packet.Parse(p, &h); err != c.err {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if c.err == nil && (h.DstPort != 5432 || h.HeaderLen != 40+len(ext) || h.SourceRoute != c.sourceRoute || !packet.VerifyChecksum(p, &h)) {
			t.Errorf("%s: %+v", c.name, h)
		}
		for n := range p {
			if packet.Parse(p[:n], &h) == nil {
				t.Errorf("%s: the first %d of %d bytes were accepted", c.name, n, len(p))
			}
		}
	}
	for name, header := range map[string][]byte{"type 0": {17, 0, 0, 0, 0, 0, 0, 0}, "on its way": {17, 0, 2, 1, 0, 0, 0, 0}} {
		p := packettest.IPv6{Src: web6.Addr(), Dst: db6.Addr(), Proto: packet.ProtoUDP, First: 43, Extensions: header, Payload: udp}.Bytes()
		if h := parse(t, p); !h.SourceRoute {
			t.Errorf("a routing header, %s, is no source route", name)
		}
	}
	mapped := packettest.IPv6{Src: netip.MustParseAddr("::ffff:10.255.1.2"), Dst: db6.Addr(), Proto: packet.ProtoUDP, Payload: udp}.Bytes()
	if packet.Parse(mapped, new(packet.Header)) == nil {
		t.Error("an IPv4 address in IPv6's clothes was accepted")
	}
}

func TestFragmentsOfIPv6(t *testing.T) {
	udp := packettest.UDP(web6, db6, make([]byte, 3000))[40:]
	part := func(from, to int, more bool) []byte {
		return packettest.IPv6{Src: web6.Addr(), Dst: db6.Addr(), First: 44,
			Extensions: packettest.Fragment6(packet.ProtoUDP, from, more, 0xdeadbeef), Payload: udp[from:to]}.Bytes()
	}
	h := parse(t, part(0, 1400, true))
	if h.DstPort != 5432 || !h.MoreFragments || h.FragmentOffset != 0 || h.ID != 0xdeadbeef || h.PartLen != 1400 || h.HeaderLen != 48 {
		t.Errorf("the first: %+v", h)
	}
	h = parse(t, part(1400, 2800, true))
	if h.DstPort != 0 || h.FragmentOffset != 1400 || h.PartLen != 1400 || h.PayloadLen != 1400 {
		t.Errorf("the second: %+v", h)
	}
	if h = parse(t, part(2800, len(udp), false)); h.MoreFragments || h.FragmentOffset != 2800 {
		t.Errorf("the last: %+v", h)
	}
	// An atomic fragment is none (RFC 6946).
	if h = parse(t, part(0, len(udp), false)); h.IsFragment() || h.DstPort != 5432 {
		t.Errorf("an atomic one: %+v", h)
	}
	// A first part that hides the transport's header behind others.
	_, ext := extensions6(packet.ProtoTCP, 60)
	hidden := packettest.IPv6{Src: web6.Addr(), Dst: db6.Addr(), First: 44, Extensions: append(packettest.Fragment6(60, 0, true, 1), ext...)}.Bytes()
	if err := packet.Parse(hidden, new(packet.Header)); err != packet.ErrTransport {
		t.Errorf("without a transport header: %v", err)
	}
	hidden = packettest.IPv6{Src: web6.Addr(), Dst: db6.Addr(), First: 44, Extensions: packettest.Fragment6(60, 0, true, 1)}.Bytes()
	if err := packet.Parse(hidden, new(packet.Header)); err != packet.ErrFragment {
		t.Errorf("without its chain: %v", err)
	}
	twice := packettest.IPv6{Src: web6.Addr(), Dst: db6.Addr(), First: 44,
		Extensions: append(packettest.Fragment6(44, 0, false, 0), packettest.Fragment6(17, 0, true, 1)...), Payload: udp}.Bytes()
	if packet.Parse(twice, new(packet.Header)) == nil {
		t.Error("two fragment headers were accepted")
	}
}

func TestSplitAndCoalesceIPv6(t *testing.T) {
	for _, size := range []int{1000, 1398} {
		payload := randomBytes(30000)
		segments := stream(web6, db6, 0xffffff00, payload, size)
		ws := coalesce(t, packet.NewCoalescer(), clones(segments)...)
		if len(ws) != 1 {
			t.Fatalf("%d writes, want 1", len(ws))
		}
		want := packet.Virtio{Flags: packet.VirtioNeedsChecksum, GSOType: packet.GSOTCPv6, HdrLen: 72, GSOSize: uint16(size), CsumStart: 40, CsumOffset: 16}
		if ws[0].v != want {
			t.Errorf("virtio header is %+v, want %+v", ws[0].v, want)
		}
		samePackets(t, segments, back(t, ws))
	}
	// UDP too, and both families beside each other in a batch.
	c := packet.NewCoalescer()
	c.UDP = true
	var batch [][]byte
	for i := range 10 {
		for _, ends := range [][2]netip.AddrPort{{web, db}, {web6, db6}} {
			batch = append(batch, packettest.UDP(ends[0], ends[1], bytes.Repeat([]byte{byte(i)}, 500)))
		}
	}
	ws := coalesce(t, c, clones(batch)...)
	if len(ws) != 2 {
		t.Errorf("%d writes, want 2", len(ws))
	}
	if got := back(t, ws); len(got) != 20 {
		t.Errorf("%d datagrams come back", len(got))
	}
	// Packets with extension headers are left as they are.
	first, ext := extensions6(packet.ProtoTCP, 60)
	var odd [][]byte
	for _, s := range stream(web6, db6, 5, randomBytes(3000), 1000) {
		odd = append(odd, packettest.IPv6{Src: web6.Addr(), Dst: db6.Addr(), Proto: 6, First: first, Extensions: ext, Payload: s[40:]}.Bytes())
	}
	if ws := coalesce(t, packet.NewCoalescer(), clones(odd)...); len(ws) != 3 {
		t.Errorf("%d writes of three packets with extension headers", len(ws))
	}
}

// A virtio header of the one family does not fit the other's packet.
func TestVirtioOfTheOtherFamily(t *testing.T) {
	p, v := super(packettest.TCP(web6, db6, packet.FlagACK, 1, 1, randomBytes(3000)), packet.GSOTCPv4, 1000)
	h := parse(t, p)
	if v.Check(&h, len(p)) == nil {
		t.Error("GSO of IPv4 over IPv6 was accepted")
	}
	p, v = super(packettest.TCP(web, db, packet.FlagACK, 1, 1, randomBytes(3000)), packet.GSOTCPv6, 1000)
	h = parse(t, p)
	if v.Check(&h, len(p)) == nil {
		t.Error("GSO of IPv6 over IPv4 was accepted")
	}
}

func TestAnswersInIPv6(t *testing.T) {
	udp := packettest.UDP(web6, db6, make([]byte, 1400))
	for _, c := range []struct {
		name string
		a    []byte
		want string
	}{
		{"port", packet.AppendUnreachable(nil, cell6, packet.CodePortUnreachable, udp, headerOf(t, udp)), "1/4"},
		{"net", packet.AppendUnreachable(nil, cell6, packet.CodeNetUnreachable, udp, headerOf(t, udp)), "1/0"},
		{"prohibited", packet.AppendUnreachable(nil, cell6, packet.CodeProhibited, udp, headerOf(t, udp)), "1/1"},
		{"too big", packet.AppendTooBig(nil, cell6, 1300, udp, headerOf(t, udp)), "2/0"},
		{"hop limit", packet.AppendTimeExceeded(nil, cell6, udp, headerOf(t, udp)), "3/0"},
	} {
		h := parse(t, c.a)
		if got := fmt.Sprintf("%d/%d", h.ICMPType, h.ICMPCode); got != c.want || !packet.VerifyChecksum(c.a, &h) || !h.IsICMPError() || len(c.a) > 1280 || h.Src != cell6 || h.Dst != web6.Addr() {
			t.Errorf("%s: %s, %+v", c.name, got, h)
		}
		var q packet.Header
		if err := packet.ParseQuoted(c.a, &h, &q); err != nil || q.Src != web6.Addr() || q.DstPort != 5432 {
			t.Errorf("%s: quotes %+v, %v", c.name, q, err)
		}
	}
	syn := packettest.TCP(web6, db6, packet.FlagSYN, 9, 0, nil)
	rst := packet.AppendReset(nil, syn, headerOf(t, syn))
	if h := parse(t, rst); h.Ack != 10 || h.TCPFlags != packet.FlagRST|packet.FlagACK || !packet.VerifyChecksum(rst, &h) {
		t.Errorf("reset: %+v", h)
	}
	for name, p := range map[string][]byte{
		"an error":         packettest.ICMP(web6.Addr(), db6.Addr(), 1, 4, 0, udp),
		"to all":           packettest.UDP(web6, netip.MustParseAddrPort("[ff02::1]:5353"), nil),
		"from nobody":      packettest.UDP(netip.MustParseAddrPort("[::]:1"), db6, nil),
		"another's family": packettest.UDP(web, db, nil),
	} {
		if a := packet.AppendUnreachable(nil, cell6, packet.CodePortUnreachable, p, headerOf(t, p)); len(a) != 0 {
			t.Errorf("%s is answered", name)
		}
	}
}

func headerOf(t testing.TB, p []byte) *packet.Header {
	h := parse(t, p)
	return &h
}

func TestHopsAndMarksOfIPv6(t *testing.T) {
	p := packettest.TCPSegment{Src: web6, Dst: db6, Flags: packet.FlagACK, TOS: 0xb8 | uint8(packet.ECT0), TTL: 2}.Bytes()
	if !packet.DecrementTTL(p) || packet.DecrementTTL(p) {
		t.Error("a hop limit of 2 is good for one hop")
	}
	if packet.ECNOf(p) != packet.ECT0 || !packet.CombineECN(p, packet.CE) || packet.ECNOf(p) != packet.CE {
		t.Error("CE does not reach an ECT packet")
	}
	if h := parse(t, p); h.TOS != 0xb8|uint8(packet.CE) || !packet.VerifyChecksum(p, &h) {
		t.Errorf("class %#x", h.TOS)
	}
	p = packettest.TCPSegment{Src: web6, Dst: db6, Flags: packet.FlagSYN, Options: []byte{2, 4, 0x05, 0xb4}}.Bytes()
	if h := headerOf(t, p); !packet.ClampMSS(p, h, 1300, false) || int(p[62])<<8|int(p[63]) != 1240 || !packet.VerifyChecksum(p, h) {
		t.Error("MSS is not clamped")
	}
}

func FuzzParseIPv6(f *testing.F) {
	first, ext := extensions6(packet.ProtoUDP, 0, 60, 43)
	udp := packettest.UDP(web6, db6, []byte("hello"))
	f.Add(udp)
	f.Add(packettest.IPv6{Src: web6.Addr(), Dst: db6.Addr(), Proto: 17, First: first, Extensions: ext, Payload: udp[40:]}.Bytes())
	f.Add(packettest.IPv6{Src: web6.Addr(), Dst: db6.Addr(), First: 44, Extensions: packettest.Fragment6(17, 8, true, 5), Payload: make([]byte, 64)}.Bytes())
	f.Add(packettest.ICMP(web6.Addr(), db6.Addr(), 1, 4, 0, udp))
	f.Fuzz(func(t *testing.T, p []byte) {
		var h, q packet.Header
		if packet.Parse(p, &h) != nil {
			return
		}
		if end := h.HeaderLen + h.L4Len + h.PayloadLen; h.PayloadLen < 0 || end > h.TotalLen || h.TotalLen > len(p) || h.PartLen < 0 || h.FragmentOffset+h.PartLen > packet.MaxLen {
			t.Errorf("ends at %d, total %d, of %d bytes: %+v", end, h.TotalLen, len(p), h)
		}
		packet.VerifyChecksum(p, &h)
		if packet.ParseQuoted(p, &h, &q) == nil && (q.PayloadLen < 0 || q.HeaderLen+q.L4Len+q.PayloadLen > q.TotalLen) {
			t.Errorf("impossible lengths: %+v", q)
		}
		for _, a := range [][]byte{packet.AppendReset(nil, p, &h), packet.AppendUnreachable(nil, cell6, packet.CodePortUnreachable, p, &h)} {
			var ah packet.Header
			if len(a) > 0 && (packet.Parse(a, &ah) != nil || len(a) > packet.MaxAnswer || !packet.VerifyChecksum(a, &ah) || ah.Dst != h.Src) {
				t.Errorf("answer % x", a)
			}
		}
	})
}
