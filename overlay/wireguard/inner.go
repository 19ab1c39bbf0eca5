package wireguard

import (
	"encoding/binary"
	"net/netip"
)

// What lies inside a transport message, besides a frame:
//
//	0                   20            28
//	+-------------------+-------------+----------- - - +---------+
//	| IPv4, no options  | UDP, no sum | VXLAN frame    | padding |
//	+-------------------+-------------+----------- - - +---------+
//
// The tunnel authenticates all of it, so the UDP checksum is left out, as RFC 7348
// section 5 wants it for VXLAN. Padding is zeros up to a multiple of 16.
const (
	ipLen    = 20
	port     = 4789
	protoUDP = 17
	ttl      = 64
	padding  = 16
)

// header writes the headers before a frame of n bytes.
func header(b []byte, src, dst uint32, n int, id uint16) {
	_ = b[HeaderLen-1]
	const first = 0x4500
	length := uint16(HeaderLen + n)
	binary.BigEndian.PutUint32(b, first<<16|uint32(length))
	binary.BigEndian.PutUint32(b[4:], uint32(id)<<16)
	sum := uint32(first) + uint32(length) + uint32(id) + (ttl<<8 | protoUDP) + src>>16 + src&0xffff + dst>>16 + dst&0xffff
	sum = sum&0xffff + sum>>16
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint32(b[8:], (ttl<<8|protoUDP)<<16|uint32(^uint16(sum)))
	binary.BigEndian.PutUint32(b[12:], src)
	binary.BigEndian.PutUint32(b[16:], dst)
	binary.BigEndian.PutUint32(b[20:], port<<16|port)
	binary.BigEndian.PutUint32(b[24:], uint32(8+n)<<16)
}

// unwrap is the frame in a packet that came out of a peer's session, and the peer's
// address and port; nil if it is none for own. The packet is not from the peer if
// from is not valid: a peer has one address.
func unwrap(p []byte, own, peer uint32) (frame []byte, from netip.AddrPort) {
	if len(p) < ipLen || p[0]>>4 != 4 || binary.BigEndian.Uint32(p[12:]) != peer {
		return nil, from
	}
	total := int(binary.BigEndian.Uint16(p[2:]))
	if total > len(p) || total < ipLen {
		return nil, from
	}
	p = p[:total]
	from = netip.AddrPortFrom(address(peer), 0)
	if len(p) < HeaderLen || p[0] != 0x45 || p[9] != protoUDP ||
		binary.BigEndian.Uint16(p[6:])&0x3fff != 0 || // a fragment
		binary.BigEndian.Uint32(p[16:]) != own || binary.BigEndian.Uint16(p[22:]) != port {
		return nil, from
	}
	n := int(binary.BigEndian.Uint16(p[24:]))
	if n <= 8 || n > len(p)-ipLen {
		return nil, from
	}
	return p[HeaderLen : ipLen+n], netip.AddrPortFrom(from.Addr(), binary.BigEndian.Uint16(p[20:]))
}

// number is an IPv4 address as tables have it.
func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func address(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}
