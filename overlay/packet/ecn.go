package packet

import "encoding/binary"

// ECN is the congestion field of an IP header, RFC 3168 section 5.
type ECN uint8

// The codepoints.
const (
	NotECT ECN = iota
	ECT1
	ECT0
	CE
)

// ECNOf is the field of the packet p.
func ECNOf(p []byte) ECN {
	if p[0]>>4 == 6 {
		return ECN(p[1] >> 4 & 3)
	}
	return ECN(p[1] & 3)
}

// CombineECN gives the packet p, parsed, what the outer header of the tunnel
// says of congestion (RFC 6040 section 4.2). It is false where p is to be dropped:
// the network says congestion, and p's sender would not understand it.
func CombineECN(p []byte, outer ECN) bool {
	inner := ECNOf(p)
	switch {
	case outer == CE && inner == NotECT:
		return false
	case outer == CE && inner != CE:
		setECN(p, CE)
	case outer == ECT1 && inner == ECT0:
		setECN(p, ECT1)
	}
	return true
}

// setECN changes the field and mends IPv4's header checksum (RFC 1624).
func setECN(p []byte, e ECN) {
	if p[0]>>4 == 6 {
		p[1] = p[1]&^0x30 | byte(e)<<4
		return
	}
	old := binary.BigEndian.Uint16(p[0:2])
	p[1] = p[1]&^3 | byte(e)
	s := uint32(^binary.BigEndian.Uint16(p[10:12])) + uint32(^old) + uint32(binary.BigEndian.Uint16(p[0:2]))
	s = s&0xffff + s>>16
	s = s&0xffff + s>>16
	binary.BigEndian.PutUint16(p[10:12], ^uint16(s))
}
