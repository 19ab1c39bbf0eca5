package packet

import (
	"encoding/binary"
	"math/bits"
)

// Offsets of the checksum fields in their headers.
const (
	tcpChecksumAt  = 16
	udpChecksumAt  = 6
	icmpChecksumAt = 2
)

// sum adds b to the ones' complement sum acc, eight bytes at a time with the
// carry brought around once a block (RFC 1071 section 2: the sum may be built
// with words of any width; and in any byte order, so this is the machine's own,
// swapped back once by fold). All parts but the last must be of even length.
//
// No carry is lost at a block's end: an addition that carries leaves at most
// 2^64-2 behind, because a chain starts without a carry in.
func sum(b []byte, acc uint64) uint64 {
	var c uint64
	for len(b) >= 128 {
		p := (*[128]byte)(b)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(p[0:8]), 0)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(p[8:16]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(p[16:24]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(p[24:32]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(p[32:40]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(p[40:48]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(p[48:56]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(p[56:64]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(p[64:72]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(p[72:80]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(p[80:88]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(p[88:96]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(p[96:104]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(p[104:112]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(p[112:120]), c)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(p[120:128]), c)
		acc += c
		b = b[128:]
	}
	for len(b) >= 16 {
		p := (*[16]byte)(b)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(p[0:8]), 0)
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(p[8:16]), c)
		acc += c
		b = b[16:]
	}
	if len(b) >= 8 {
		acc, c = bits.Add64(acc, binary.NativeEndian.Uint64(b), 0)
		acc += c
		b = b[8:]
	}
	if len(b) >= 4 {
		acc, c = bits.Add64(acc, uint64(binary.NativeEndian.Uint32(b)), 0)
		acc += c
		b = b[4:]
	}
	if len(b) >= 2 {
		acc, c = bits.Add64(acc, uint64(binary.NativeEndian.Uint16(b)), 0)
		acc += c
		b = b[2:]
	}
	if len(b) == 1 {
		acc, c = bits.Add64(acc, uint64(binary.NativeEndian.Uint16([]byte{b[0], 0})), 0)
		acc += c
	}
	return acc
}

// fold brings a sum down to 16 bits in network byte order. Its complement is the
// checksum; over bytes that hold their own checksum it is 0xffff.
func fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	var w [2]byte
	binary.NativeEndian.PutUint16(w[:], uint16(acc))
	return binary.BigEndian.Uint16(w[:])
}

// pseudo starts a TCP or UDP sum over the packet p with the pseudo header of
// RFC 9293 section 3.1, or, of IPv6, of RFC 8200 section 8.1: both addresses, the
// protocol, and length, that of the transport's header and payload.
func pseudo(p []byte, proto uint8, length int) uint64 {
	var tail [4]byte
	tail[1] = proto
	binary.BigEndian.PutUint16(tail[2:4], uint16(length))
	if p[0]>>4 == 6 {
		return sum(p[8:40], uint64(binary.NativeEndian.Uint32(tail[:])))
	}
	acc, c := bits.Add64(binary.NativeEndian.Uint64(p[12:20]), uint64(binary.NativeEndian.Uint32(tail[:])), 0)
	return acc + c
}

// checksumAt is where the checksum lies in a transport's header.
func checksumAt(proto uint8) int {
	switch proto {
	case ProtoTCP:
		return tcpChecksumAt
	case ProtoUDP:
		return udpChecksumAt
	}
	return icmpChecksumAt
}

// setIPv4Checksum writes the header checksum of p, whose header is n bytes long.
func setIPv4Checksum(p []byte, n int) {
	p[10], p[11] = 0, 0
	binary.BigEndian.PutUint16(p[10:12], ^fold(sum(p[:n], 0)))
}

// setTransportChecksum writes the full checksum of the TCP, UDP or ICMPv6 message
// p[at:]. UDP's 0 would mean none and is sent as its twin 0xffff (RFC 768).
func setTransportChecksum(p []byte, at int, proto uint8) {
	field := p[at+checksumAt(proto):]
	field = field[:2]
	field[0], field[1] = 0, 0
	s := ^fold(sum(p[at:], pseudo(p, proto, len(p)-at)))
	if s == 0 && proto == ProtoUDP {
		s = 0xffff
	}
	binary.BigEndian.PutUint16(field, s)
}

// CompleteChecksum turns the partial checksum of p (the pseudo header's sum, as
// NEEDS_CSUM leaves it) into a full one, in place, and takes the request out of
// v. It does nothing where none was asked for. p is h.TotalLen long and not a
// super-packet; v passed Check.
func CompleteChecksum(p []byte, h *Header, v *Virtio) {
	if v.Flags&VirtioNeedsChecksum == 0 {
		return
	}
	setTransportChecksum(p[:h.TotalLen], h.HeaderLen, h.Proto)
	v.Flags &^= VirtioNeedsChecksum
	v.CsumStart, v.CsumOffset = 0, 0
}

// CompleteLeftover completes the checksum of a TCP or UDP packet, in place, if its
// sender left only the pseudo header's sum there, and says whether it did. p is
// h.TotalLen long and no super-packet.
//
// A Linux host leaves the rest to its network card. Between hosts on one machine,
// behind a veth or a virtio card, there is none: the receiving kernel knows from
// the buffer what is missing, a socket sees only the bytes. A right checksum that
// happens to look so is completed to itself.
func CompleteLeftover(p []byte, h *Header) bool {
	if h.IsFragment() || h.Proto != ProtoTCP && h.Proto != ProtoUDP {
		return false
	}
	length := h.L4Len + h.PayloadLen
	field := p[h.HeaderLen+checksumAt(h.Proto):]
	if binary.BigEndian.Uint16(field) != fold(pseudo(p, h.Proto, length)) {
		return false
	}
	setTransportChecksum(p[:h.HeaderLen+length], h.HeaderLen, h.Proto)
	return true
}

// VerifyChecksum says whether the TCP, UDP or ICMP checksum of p is right. What
// has none to verify counts as right: UDP without a checksum over IPv4, fragments,
// other protocols. A partial checksum is wrong: only for packets that came by wire.
func VerifyChecksum(p []byte, h *Header) bool {
	if h.IsFragment() {
		return true
	}
	l4 := p[h.HeaderLen:h.TotalLen]
	switch h.Proto {
	case ProtoTCP:
		return fold(sum(l4, pseudo(p, h.Proto, len(l4)))) == 0xffff
	case ProtoUDP:
		if l4[udpChecksumAt] == 0 && l4[udpChecksumAt+1] == 0 {
			return !h.IPv6 // RFC 8200 section 8.1
		}
		l4 = l4[:h.L4Len+h.PayloadLen] // bytes behind UDP's own length are not UDP's
		return fold(sum(l4, pseudo(p, h.Proto, len(l4)))) == 0xffff
	case ProtoICMP:
		return h.IPv6 || fold(sum(l4, 0)) == 0xffff
	case ProtoICMPv6:
		return !h.IPv6 || fold(sum(l4, pseudo(p, h.Proto, len(l4)))) == 0xffff
	}
	return true
}
