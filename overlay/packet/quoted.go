package packet

import "encoding/binary"

// quotedTransport is how much of the transport's header an ICMP error quotes at
// least (RFC 792): ports, and for TCP the sequence number.
const quotedTransport = 8

// ParseQuoted reads into q the packet that the ICMP error p (parsed into h)
// quotes, and assigns every field. The quote may end after 8 bytes of the
// transport's header: q.TotalLen is what the quoted header says, not what is
// there; Ack, TCPFlags and Window are set only where the TCP header is whole.
// Its checksums are not verified, because routers on the way change TTL and TOS.
//
// A sender of ICMP errors can write anything into a quote, so it proves nothing
// by itself: compare it with a flow.
func ParseQuoted(p []byte, h, q *Header) error {
	if !h.IsICMPError() || h.IsFragment() {
		return ErrNotQuoting
	}
	b := p[h.HeaderLen+h.L4Len : h.TotalLen]
	parse := parseIPv4
	if h.IPv6 {
		parse = parseIPv6
	}
	if err := parse(b, q); err != nil {
		return err
	}
	q.PayloadLen = q.TotalLen - q.HeaderLen
	if q.FragmentOffset != 0 {
		return nil
	}
	l4 := b[q.HeaderLen:]
	if len(l4) > q.PayloadLen {
		l4 = l4[:q.PayloadLen]
	}
	switch q.Proto {
	case ProtoTCP, ProtoUDP, ProtoICMP, ProtoICMPv6:
		if len(l4) < quotedTransport {
			return ErrTransport
		}
	}
	switch q.Proto {
	case ProtoTCP:
		parsePorts(l4, q)
		q.Seq = binary.BigEndian.Uint32(l4[4:8])
		if len(l4) < TCPHeaderLen {
			q.PayloadLen = max(q.PayloadLen-TCPHeaderLen, 0)
			return nil
		}
		q.L4Len = int(l4[12]>>4) * 4
		if q.L4Len < TCPHeaderLen || q.L4Len > q.PayloadLen {
			return ErrTransport
		}
		q.PayloadLen -= q.L4Len
		q.Ack = binary.BigEndian.Uint32(l4[8:12])
		q.TCPFlags = l4[13]
		q.Window = binary.BigEndian.Uint16(l4[14:16])
	case ProtoUDP:
		parsePorts(l4, q)
		q.L4Len = UDPHeaderLen
		q.PayloadLen -= UDPHeaderLen
	case ProtoICMP, ProtoICMPv6:
		q.ICMPType, q.ICMPCode = l4[0], l4[1]
		q.L4Len = ICMPHeaderLen
		q.PayloadLen -= ICMPHeaderLen
	}
	return nil
}
