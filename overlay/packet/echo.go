package packet

import (
	"encoding/binary"
	"net/netip"
)

// Types of echo messages.
const (
	ICMPEchoReply   = 0
	icmpEchoRequest = 8

	icmp6EchoRequest = 128
	ICMPv6EchoReply  = 129
)

// AppendEcho appends an echo request, or the reply to one, of ICMP or ICMPv6, with
// payload behind its header and zeroes up to length bytes in all. DF is set. Both
// addresses are of one family.
func AppendEcho(dst []byte, from, to netip.Addr, reply bool, id, seq uint16, payload []byte, length int) []byte {
	proto, typ, header := uint8(ProtoICMP), uint8(icmpEchoRequest), IPv4HeaderLen
	switch {
	case from.Is6():
		proto, typ, header = ProtoICMPv6, icmp6EchoRequest, IPv6HeaderLen
		if reply {
			typ = ICMPv6EchoReply
		}
	case reply:
		typ = ICMPEchoReply
	}
	dst, p, l4 := appendIP(dst, from, to, proto, 0, max(length-header, ICMPHeaderLen+len(payload)))
	l4[0] = typ
	binary.BigEndian.PutUint16(l4[4:6], id)
	binary.BigEndian.PutUint16(l4[6:8], seq)
	copy(l4[ICMPHeaderLen:], payload)
	if proto == ProtoICMPv6 {
		setTransportChecksum(p, header, proto)
		return dst
	}
	binary.BigEndian.PutUint16(l4[icmpChecksumAt:], ^fold(sum(l4, 0)))
	return dst
}

// Echo is what an ICMP echo message says.
type Echo struct {
	Reply   bool
	ID, Seq uint16
	Payload []byte // of the packet
}

// ParseEcho reads p, parsed into h; it is false if that is no whole echo message.
func ParseEcho(p []byte, h *Header) (e Echo, ok bool) {
	if h.Proto != ProtoICMP || h.IsFragment() || h.ICMPCode != 0 ||
		h.ICMPType != ICMPEchoReply && h.ICMPType != icmpEchoRequest || !VerifyChecksum(p, h) {
		return e, false
	}
	l4 := p[h.HeaderLen:h.TotalLen]
	return Echo{
		Reply: h.ICMPType == ICMPEchoReply,
		ID:    binary.BigEndian.Uint16(l4[4:6]), Seq: binary.BigEndian.Uint16(l4[6:8]), Payload: l4[ICMPHeaderLen:],
	}, true
}
