package packet

import "encoding/binary"

// FlowHash is the same for all packets of one conversation in one direction, and
// spread evenly over conversations: of addresses, protocol and ports. Ports count
// where every packet has them: not with fragments, nor behind IPv6 extension headers.
// p is an IP packet that Parse took.
func FlowHash(p []byte) uint32 {
	var h uint64
	l4, proto := 0, uint8(0)
	if p[0]>>4 == 6 {
		h = binary.LittleEndian.Uint64(p[8:]) ^ mix(binary.LittleEndian.Uint64(p[16:])) ^
			mix(binary.LittleEndian.Uint64(p[24:])+1) ^ mix(binary.LittleEndian.Uint64(p[32:])+2)
		l4, proto = IPv6HeaderLen, p[6]
	} else {
		h = binary.LittleEndian.Uint64(p[12:])
		if binary.BigEndian.Uint16(p[6:])&0x3fff == 0 {
			l4, proto = int(p[0]&0xf)*4, p[9]
		}
	}
	if (proto == ProtoTCP || proto == ProtoUDP) && len(p) >= l4+4 {
		h ^= mix(uint64(binary.LittleEndian.Uint32(p[l4:])) | uint64(proto)<<32)
	}
	return uint32(mix(h) >> 32)
}

// mix is one round of a multiplicative hash, good enough to choose among a few ways.
func mix(h uint64) uint64 {
	h ^= h >> 32
	h *= 0x9e3779b97f4a7c15
	return h ^ h>>29
}
