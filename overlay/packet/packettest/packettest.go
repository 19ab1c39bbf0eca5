// Package packettest builds whole, right packets for tests in the fewest words.
// It knows the formats by itself, so that package packet's own tests do not
// check its code against itself.
package packettest

import (
	"encoding/binary"
	"net/netip"
)

// TCPSegment says what differs from a bare ACK without options.
type TCPSegment struct {
	Src, Dst netip.AddrPort
	Flags    uint8
	Seq, Ack uint32
	Window   uint16
	Options  []byte // whole words
	Payload  []byte
	ID       uint16
	TOS, TTL uint8 // TTL 0: 64
	NoDF     bool
}

// Bytes is the packet, checksums and all.
func (s TCPSegment) Bytes() []byte {
	l4 := make([]byte, 20, 20+len(s.Options)+len(s.Payload))
	binary.BigEndian.PutUint16(l4[0:], s.Src.Port())
	binary.BigEndian.PutUint16(l4[2:], s.Dst.Port())
	binary.BigEndian.PutUint32(l4[4:], s.Seq)
	binary.BigEndian.PutUint32(l4[8:], s.Ack)
	l4[12] = byte(5+len(s.Options)/4) << 4
	l4[13] = s.Flags
	binary.BigEndian.PutUint16(l4[14:], s.Window)
	l4 = append(append(l4, s.Options...), s.Payload...)
	binary.BigEndian.PutUint16(l4[16:], ^onesSum(pseudo(s.Src.Addr(), s.Dst.Addr(), 6, len(l4)), l4))
	if s.Src.Addr().Is6() {
		return IPv6{Src: s.Src.Addr(), Dst: s.Dst.Addr(), Proto: 6, Class: s.TOS, HopLimit: s.TTL, Payload: l4}.Bytes()
	}
	return IPv4{Src: s.Src.Addr(), Dst: s.Dst.Addr(), Proto: 6, ID: s.ID, TOS: s.TOS, TTL: s.TTL, NoDF: s.NoDF, Payload: l4}.Bytes()
}

// TCP is a segment with the flags, numbers and payload given.
func TCP(src, dst netip.AddrPort, flags uint8, seq, ack uint32, payload []byte) []byte {
	return TCPSegment{Src: src, Dst: dst, Flags: flags, Seq: seq, Ack: ack, Window: 502, Payload: payload}.Bytes()
}

// UDP is a datagram.
func UDP(src, dst netip.AddrPort, payload []byte) []byte {
	l4 := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(l4[0:], src.Port())
	binary.BigEndian.PutUint16(l4[2:], dst.Port())
	binary.BigEndian.PutUint16(l4[4:], uint16(8+len(payload)))
	l4 = append(l4, payload...)
	sum := ^onesSum(pseudo(src.Addr(), dst.Addr(), 17, len(l4)), l4)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(l4[6:], sum)
	if src.Addr().Is6() {
		return IPv6{Src: src.Addr(), Dst: dst.Addr(), Proto: 17, Payload: l4}.Bytes()
	}
	return IPv4{Src: src.Addr(), Dst: dst.Addr(), Proto: 17, Payload: l4}.Bytes()
}

// ICMP is a message, of ICMPv6 between IPv6 addresses; rest is the second word of its
// header.
func ICMP(src, dst netip.Addr, typ, code uint8, rest uint32, payload []byte) []byte {
	l4 := []byte{typ, code, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(l4[4:], rest)
	l4 = append(l4, payload...)
	if src.Is6() {
		binary.BigEndian.PutUint16(l4[2:], ^onesSum(pseudo(src, dst, 58, len(l4)), l4))
		return IPv6{Src: src, Dst: dst, Proto: 58, Payload: l4}.Bytes()
	}
	binary.BigEndian.PutUint16(l4[2:], ^onesSum(l4))
	return IPv4{Src: src, Dst: dst, Proto: 1, Payload: l4}.Bytes()
}

// IPv4 is any packet.
type IPv4 struct {
	Src, Dst      netip.Addr
	Proto         uint8
	TOS, TTL      uint8 // TTL 0: 64
	ID            uint16
	NoDF          bool
	MoreFragments bool
	Offset        int    // bytes; other than 0, or with MoreFragments, DF is off
	Options       []byte // whole words
	Payload       []byte
}

// Bytes is the packet with its header checksum.
func (p IPv4) Bytes() []byte {
	b := make([]byte, 20, 20+len(p.Options)+len(p.Payload))
	b[0] = 0x40 | byte(5+len(p.Options)/4)
	b[1] = p.TOS
	binary.BigEndian.PutUint16(b[2:], uint16(cap(b)))
	binary.BigEndian.PutUint16(b[4:], p.ID)
	fragment := uint16(p.Offset / 8)
	switch {
	case p.MoreFragments:
		fragment |= 0x2000
	case p.Offset == 0 && !p.NoDF:
		fragment |= 0x4000
	}
	binary.BigEndian.PutUint16(b[6:], fragment)
	b[8], b[9] = 64, p.Proto
	if p.TTL != 0 {
		b[8] = p.TTL
	}
	src, dst := p.Src.As4(), p.Dst.As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	b = append(b, p.Options...)
	binary.BigEndian.PutUint16(b[10:], ^onesSum(b))
	return append(b, p.Payload...)
}

// IPv6 is any packet. Extensions are whole headers, of which each names the next and
// the last the Proto; First names the first of them.
type IPv6 struct {
	Src, Dst   netip.Addr
	Proto      uint8
	Class      uint8
	HopLimit   uint8 // 0: 64
	First      uint8
	Extensions []byte
	Payload    []byte
}

// Bytes is the packet.
func (p IPv6) Bytes() []byte {
	b := make([]byte, 40, 40+len(p.Extensions)+len(p.Payload))
	b[0], b[1] = 0x60|p.Class>>4, p.Class<<4
	binary.BigEndian.PutUint16(b[4:], uint16(cap(b)-40))
	b[6], b[7] = p.Proto, 64
	if len(p.Extensions) > 0 {
		b[6] = p.First
	}
	if p.HopLimit != 0 {
		b[7] = p.HopLimit
	}
	src, dst := p.Src.As16(), p.Dst.As16()
	copy(b[8:], src[:])
	copy(b[24:], dst[:])
	return append(append(b, p.Extensions...), p.Payload...)
}

// Fragment6 is a fragment header: the next header is next.
func Fragment6(next uint8, offset int, more bool, id uint32) []byte {
	field := uint16(offset)
	if more {
		field |= 1
	}
	b := binary.BigEndian.AppendUint16([]byte{next, 0}, field)
	return binary.BigEndian.AppendUint32(b, id)
}

func pseudo(src, dst netip.Addr, proto uint8, length int) []byte {
	b := append(append(src.AsSlice(), dst.AsSlice()...), 0, proto)
	return binary.BigEndian.AppendUint16(b, uint16(length))
}

// Fix writes the IPv4 header checksum of p, after a test changed its header.
func Fix(p []byte) []byte {
	if p[0]>>4 == 6 {
		return p // has none
	}
	n := int(p[0]&15) * 4
	p[10], p[11] = 0, 0
	binary.BigEndian.PutUint16(p[10:], ^onesSum(p[:n]))
	return p
}

// onesSum is RFC 1071's sum, two bytes at a time. All parts but the last have an
// even length.
func onesSum(parts ...[]byte) uint16 {
	var s uint32
	for _, b := range parts {
		for i, x := range b {
			if i%2 == 0 {
				s += uint32(x) << 8
			} else {
				s += uint32(x)
			}
			s = s>>16 + s&0xffff
		}
	}
	return uint16(s)
}

// Sum is onesSum for tests that check a checksum: 0xffff over bytes that hold
// theirs.
func Sum(parts ...[]byte) uint16 { return onesSum(parts...) }
