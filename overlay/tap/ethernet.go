package tap

import (
	"encoding/binary"
	"net/netip"

	"tulle/overlay/packet"
)

const (
	ethernetLen = 14
	frameLen    = ethernetLen + packet.MaxLen
	arpLen      = 28

	typeIPv4 = 0x0800
	typeARP  = 0x0806
	typeIPv6 = 0x86dd

	arpRequest = 1
	arpReply   = 2

	icmp6Solicitation  = 135
	icmp6Advertisement = 136
	solicitationLen    = 24 // without options
	advertisementLen   = 32 // with the target's link-layer address
)

func etherType(frame []byte) uint16 { return binary.BigEndian.Uint16(frame[12:14]) }

// ethernet writes the header of a frame to the guest.
func (d *Device) ethernet(b []byte, ipv6 bool) {
	copy(b[0:6], d.guest[:])
	copy(b[6:12], mac[:])
	t := uint16(typeIPv4)
	if ipv6 {
		t = typeIPv6
	}
	binary.BigEndian.PutUint16(b[12:14], t)
}

// take learns the guest's address from a frame and gives the answer to a question that
// the daemon has to answer.
func (d *Device) take(frame []byte) []byte {
	d.mu.Lock()
	d.guest, d.seen = [6]byte(frame[6:12]), true
	d.mu.Unlock()
	switch etherType(frame) {
	case typeARP:
		return d.arp(frame)
	case typeIPv6:
		return d.neighbour(frame)
	}
	return nil
}

// asks says whether a frame is a question between stations: no packet for the data path.
func asks(frame []byte) bool {
	return etherType(frame) == typeARP || etherType(frame) == typeIPv6 && solicits(frame[ethernetLen:])
}

// arp answers who has any address (RFC 826), but the guest's own, and what a guest
// asks to find out whether another has its own (RFC 5227).
func (d *Device) arp(frame []byte) []byte {
	if len(frame) < ethernetLen+arpLen {
		return nil
	}
	a := frame[ethernetLen:]
	if [6]byte(a[0:6]) != [6]byte{0, 1, 8, 0, 6, 4} || binary.BigEndian.Uint16(a[6:8]) != arpRequest {
		return nil
	}
	target := netip.AddrFrom4([4]byte(a[24:28]))
	if target == d.own || target == netip.AddrFrom4([4]byte(a[14:18])) {
		return nil
	}
	out := make([]byte, ethernetLen+arpLen)
	copy(out[0:6], frame[6:12])
	copy(out[6:12], mac[:])
	binary.BigEndian.PutUint16(out[12:14], typeARP)
	b := out[ethernetLen:]
	copy(b, a[:6])
	binary.BigEndian.PutUint16(b[6:8], arpReply)
	copy(b[8:14], mac[:])
	copy(b[14:18], a[24:28])
	copy(b[18:28], a[8:18])
	return out
}

// who asks the guest for its Ethernet address.
func who(b []byte, own netip.Addr) []byte {
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	b = append(append(b, mac[:]...), typeARP>>8, typeARP&0xff)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, arpRequest)
	b = append(append(b, mac[:]...), Router.AsSlice()...)
	return append(append(b, 0, 0, 0, 0, 0, 0), own.AsSlice()...)
}

// solicits says whether an IPv6 packet is a neighbour solicitation, good or bad.
func solicits(p []byte) bool {
	return len(p) > packet.IPv6HeaderLen && p[6] == packet.ProtoICMPv6 && p[packet.IPv6HeaderLen] == icmp6Solicitation
}

// neighbour answers a solicitation (RFC 4861 section 7.2.4) for any address but the
// guest's own: there are two stations on this wire, so every other is here.
func (d *Device) neighbour(frame []byte) []byte {
	p := frame[ethernetLen:]
	var h packet.Header
	if !solicits(p) || packet.Parse(p, &h) != nil || h.HeaderLen != packet.IPv6HeaderLen || h.TTL != 255 ||
		h.TotalLen < packet.IPv6HeaderLen+solicitationLen || !packet.VerifyChecksum(p[:h.TotalLen], &h) {
		return nil
	}
	target := netip.AddrFrom16([16]byte(p[48:64]))
	// From no address a guest asks whether another has the one that it is about to take.
	if target == d.own6 || target.IsMulticast() || h.Src.IsUnspecified() {
		return nil
	}
	body := make([]byte, advertisementLen)
	body[0] = icmp6Advertisement
	body[4] = 0x80 | 0x40 | 0x20 // a router, asked, instead of what was known
	t := target.As16()
	copy(body[8:24], t[:])
	body[24], body[25] = 2, 1 // target's link-layer address
	copy(body[26:32], mac[:])
	out := make([]byte, ethernetLen, ethernetLen+packet.IPv6HeaderLen+advertisementLen)
	copy(out[0:6], frame[6:12])
	copy(out[6:12], mac[:])
	binary.BigEndian.PutUint16(out[12:14], typeIPv6)
	return packet.AppendICMPv6(out, target, h.Src, 255, body)
}
