package packet

import (
	"encoding/binary"
	"net/netip"
)

const (
	icmpEchoReply   = 0
	icmpEchoRequest = 8
)

// AppendEcho appends an ICMP echo request, or the reply to one, with payload behind
// its header and zeroes up to length bytes in all. DF is set.
func AppendEcho(dst []byte, from, to netip.Addr, reply bool, id, seq uint16, payload []byte, length int) []byte {
	dst, p := appendIPv4(dst, from, to, ProtoICMP, 0, max(length-IPv4HeaderLen, ICMPHeaderLen+len(payload)))
	l4 := p[IPv4HeaderLen:]
	if !reply {
		l4[0] = icmpEchoRequest
	}
	binary.BigEndian.PutUint16(l4[4:6], id)
	binary.BigEndian.PutUint16(l4[6:8], seq)
	copy(l4[ICMPHeaderLen:], payload)
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
		h.ICMPType != icmpEchoReply && h.ICMPType != icmpEchoRequest || !VerifyChecksum(p, h) {
		return e, false
	}
	l4 := p[h.HeaderLen:h.TotalLen]
	return Echo{
		Reply: h.ICMPType == icmpEchoReply,
		ID:    binary.BigEndian.Uint16(l4[4:6]), Seq: binary.BigEndian.Uint16(l4[6:8]), Payload: l4[ICMPHeaderLen:],
	}, true
}
