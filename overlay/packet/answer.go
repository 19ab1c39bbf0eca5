package packet

import (
	"encoding/binary"
	"net/netip"
)

// ICMP types, RFC 792.
const (
	icmpUnreachable      = 3
	icmpSourceQuench     = 4
	icmpRedirect         = 5
	icmpTimeExceeded     = 11
	icmpParameterProblem = 12
)

// Codes of destination unreachable, RFC 792 and RFC 1812 section 5.2.7.1.
const (
	CodeNetUnreachable  = 0
	CodeHostUnreachable = 1
	CodePortUnreachable = 3
	codeFragmentNeeded  = 4
	CodeProhibited      = 13 // communication administratively prohibited
)

// ICMPv6 types, RFC 4443. Errors are those below 128.
const (
	icmp6Unreachable      = 1
	icmp6TooBig           = 2
	icmp6TimeExceeded     = 3
	icmp6ParameterProblem = 4
	icmp6Info             = 128
)

// codes6 are the codes of destination unreachable in ICMPv6's words (RFC 7915 section
// 4.2): no route, address unreachable, administratively prohibited, port unreachable.
var codes6 = map[uint8]uint8{CodeNetUnreachable: 0, CodeHostUnreachable: 3, CodeProhibited: 1, CodePortUnreachable: 4}

// maxICMPError is the longest ICMP error, of IPv4 and IPv6: as much of the original
// packet as fits is quoted (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4).
const (
	maxICMPError  = 576
	maxICMP6Error = 1280
)

// answerTTL is the time to live of packets made here.
const answerTTL = 64

// MaxAnswer is the most any Append function but AppendUDP appends, in bytes.
const MaxAnswer = maxICMP6Error

// AppendReset appends the RST that answers the TCP segment p, as from a closed
// port (RFC 9293 section 3.10.7.1): with the sequence number that the sender
// acknowledged, or, where it acknowledged nothing, acknowledging all of the
// segment. A RST, a later fragment, another protocol and a packet from or to no
// single host are never answered: dst comes back as it was.
func AppendReset(dst, p []byte, h *Header) []byte {
	if h.Proto != ProtoTCP || h.FragmentOffset != 0 || h.TCPFlags&FlagRST != 0 || !answerable(h) {
		return dst
	}
	if h.TCPFlags&FlagACK != 0 {
		return appendTCP(dst, h.Dst, h.Src, h.DstPort, h.SrcPort, h.Ack, 0, FlagRST)
	}
	return appendTCP(dst, h.Dst, h.Src, h.DstPort, h.SrcPort, 0, h.Seq+h.SegmentLen(), FlagRST|FlagACK)
}

// AppendResetTo appends a RST with ACK from src:sport to to:dport that ends a
// connection whose state is known: seq is exactly the next sequence number that
// the receiver expects (others are challenged, RFC 5961 section 3), ack the next
// that its peer expects of it. Both addresses are of one family.
func AppendResetTo(dst []byte, src, to netip.Addr, sport, dport uint16, seq, ack uint32) []byte {
	return appendTCP(dst, src, to, sport, dport, seq, ack, FlagRST|FlagACK)
}

// AppendUnreachable appends the ICMP destination unreachable with code, sent by
// from, that answers p and quotes it. ICMP errors, later fragments and packets
// from or to no single host are never answered (RFC 1812 section 4.3.2.7): dst
// comes back as it was.
func AppendUnreachable(dst []byte, from netip.Addr, code uint8, p []byte, h *Header) []byte {
	if h.IPv6 {
		return appendICMPError(dst, from, icmp6Unreachable, codes6[code], 0, p, h)
	}
	return appendICMPError(dst, from, icmpUnreachable, code, 0, p, h)
}

// AppendTooBig appends the ICMP "fragmentation needed and DF set", or ICMPv6's
// "packet too big", that answers p and names mtu, the largest whole packet that fits
// (RFC 1191 section 4, RFC 4443 section 3.2).
func AppendTooBig(dst []byte, from netip.Addr, mtu uint16, p []byte, h *Header) []byte {
	if h.IPv6 {
		return appendICMPError(dst, from, icmp6TooBig, 0, uint32(mtu), p, h)
	}
	return appendICMPError(dst, from, icmpUnreachable, codeFragmentNeeded, uint32(mtu), p, h)
}

// AppendTimeExceeded appends the ICMP "time to live exceeded in transit" that
// answers p.
func AppendTimeExceeded(dst []byte, from netip.Addr, p []byte, h *Header) []byte {
	if h.IPv6 {
		return appendICMPError(dst, from, icmp6TimeExceeded, 0, 0, p, h)
	}
	return appendICMPError(dst, from, icmpTimeExceeded, 0, 0, p, h)
}

// AppendUDP appends a UDP packet of its own, not an answer to another's bytes.
// Both addresses are of one family; payload is at most 65,487 bytes.
func AppendUDP(dst []byte, from, to netip.AddrPort, payload []byte) []byte {
	dst, p, l4 := appendIP(dst, from.Addr(), to.Addr(), ProtoUDP, 0, UDPHeaderLen+len(payload))
	binary.BigEndian.PutUint16(l4[0:2], from.Port())
	binary.BigEndian.PutUint16(l4[2:4], to.Port())
	binary.BigEndian.PutUint16(l4[4:6], uint16(len(l4)))
	copy(l4[UDPHeaderLen:], payload)
	setTransportChecksum(p, len(p)-len(l4), ProtoUDP)
	return dst
}

func appendTCP(dst []byte, src, to netip.Addr, sport, dport uint16, seq, ack uint32, flags uint8) []byte {
	dst, p, l4 := appendIP(dst, src, to, ProtoTCP, 0, TCPHeaderLen)
	binary.BigEndian.PutUint16(l4[0:2], sport)
	binary.BigEndian.PutUint16(l4[2:4], dport)
	binary.BigEndian.PutUint32(l4[4:8], seq)
	binary.BigEndian.PutUint32(l4[8:12], ack)
	l4[12] = TCPHeaderLen / 4 << 4
	l4[13] = flags
	setTransportChecksum(p, len(p)-len(l4), ProtoTCP)
	return dst
}

// appendICMPError builds the answer; rest is the second word of its header.
func appendICMPError(dst []byte, from netip.Addr, typ, code uint8, rest uint32, p []byte, h *Header) []byte {
	if h.FragmentOffset != 0 || !answerable(h) || h.Proto == ProtoICMP && !isICMPQuery(h.ICMPType) ||
		h.Proto == ProtoICMPv6 && h.ICMPType < icmp6Info || from.Is4() == h.IPv6 {
		return dst
	}
	// IPv4 routers' errors have the precedence of internetwork control (RFC 1812
	// section 4.3.2.5).
	quote, proto, tos := min(h.TotalLen, maxICMPError-IPv4HeaderLen-ICMPHeaderLen), uint8(ProtoICMP), uint8(0xc0)
	if h.IPv6 {
		quote, proto, tos = min(h.TotalLen, maxICMP6Error-IPv6HeaderLen-ICMPHeaderLen), ProtoICMPv6, 0
	}
	dst, b, l4 := appendIP(dst, from, h.Src, proto, tos, ICMPHeaderLen+quote)
	l4[0], l4[1] = typ, code
	binary.BigEndian.PutUint32(l4[4:8], rest)
	copy(l4[ICMPHeaderLen:], p[:quote])
	if h.IPv6 {
		setTransportChecksum(b, IPv6HeaderLen, ProtoICMPv6)
	} else {
		binary.BigEndian.PutUint16(l4[icmpChecksumAt:], ^fold(sum(l4, 0)))
	}
	return dst
}

// AppendICMPv6 appends an ICMPv6 message, whose checksum is made, with a hop limit.
func AppendICMPv6(dst []byte, from, to netip.Addr, hops uint8, message []byte) []byte {
	dst, p, l4 := appendIP(dst, from, to, ProtoICMPv6, 0, len(message))
	p[7] = hops
	copy(l4, message)
	setTransportChecksum(p, IPv6HeaderLen, ProtoICMPv6)
	return dst
}

// appendIP grows dst by a packet of the addresses' family with length zero bytes
// behind its header, and returns dst, the packet in it, and those bytes.
func appendIP(dst []byte, src, to netip.Addr, proto, tos uint8, length int) (grown, p, l4 []byte) {
	if src.Is4() {
		grown, p = appendIPv4(dst, src, to, proto, tos, length)
		return grown, p, p[IPv4HeaderLen:]
	}
	at := len(dst)
	grown = appendZeroes(dst, IPv6HeaderLen+length)
	p = grown[at:]
	p[0], p[1] = 6<<4|tos>>4, tos<<4
	binary.BigEndian.PutUint16(p[4:6], uint16(length))
	p[6], p[7] = proto, answerTTL
	s, d := src.As16(), to.As16()
	copy(p[8:24], s[:])
	copy(p[24:40], d[:])
	return grown, p, p[IPv6HeaderLen:]
}

func appendZeroes(dst []byte, n int) []byte {
	at := len(dst)
	if cap(dst)-at < n {
		return append(dst, make([]byte, n)...)
	}
	dst = dst[:at+n]
	clear(dst[at:])
	return dst
}

// appendIPv4 grows dst by a packet with length zero bytes behind its header and
// returns dst and the packet in it. The identification is 0 and DF set: an
// atomic datagram (RFC 6864 section 4.1).
func appendIPv4(dst []byte, src, to netip.Addr, proto, tos uint8, length int) (grown, p []byte) {
	at := len(dst)
	n := IPv4HeaderLen + length
	dst = appendZeroes(dst, n)
	p = dst[at:]
	p[0] = 4<<4 | IPv4HeaderLen/4
	p[1] = tos
	binary.BigEndian.PutUint16(p[2:4], uint16(n))
	p[6] = 0x40
	p[8] = answerTTL
	p[9] = proto
	s, d := src.As4(), to.As4()
	copy(p[12:16], s[:])
	copy(p[16:20], d[:])
	setIPv4Checksum(p, IPv4HeaderLen)
	return dst, p
}

// answerable says whether h goes from one host to one host (RFC 1812 section
// 4.3.2.7, RFC 9293 section 3.9.2.3). A subnet's broadcast address looks like
// any other; the caller knows its subnets.
func answerable(h *Header) bool { return singleHost(h.Src) && singleHost(h.Dst) }

func singleHost(a netip.Addr) bool {
	if a.Is6() {
		return !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast()
	}
	b := a.As4()
	return b[0] != 0 && b[0] != 127 && b[0] < 224
}

// isICMPQuery says whether an ICMP message of the type asks or answers for
// itself. An unknown type counts as an error, which must not be answered
// (RFC 1122 section 3.2.2).
func isICMPQuery(typ uint8) bool {
	switch typ {
	case 0, 8, 9, 10, 13, 14, 15, 16, 17, 18:
		return true
	}
	return false
}
