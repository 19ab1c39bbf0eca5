package packet

import (
	"encoding/binary"
	"net/netip"
)

// Extension headers of IPv6, RFC 8200 section 4.
const (
	nextHopByHop    = 0
	nextRouting     = 43
	nextFragment    = 44
	nextDestination = 60
)

// Bounds of a chain of extension headers. Senders that mean well use one or two.
const (
	maxExtensions   = 8
	maxExtensionLen = 512
)

// parseIPv6 assigns what the IPv6 header and its extension headers say and zeroes the
// rest of h. The length is unchecked against len(b), which a quoted packet falls
// short of; the chain of headers must be there, as far as b goes, or it is an error.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|Version| Traffic Class |           Flow Label                  |  0
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|         Payload Length        |  Next Header  |   Hop Limit   |  4
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                Source Address (16), Destination Address (16)  |  8
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//
// (RFC 8200 section 3.)
func parseIPv6(b []byte, h *Header) error {
	if len(b) < IPv6HeaderLen {
		return ErrShort
	}
	total := IPv6HeaderLen + int(binary.BigEndian.Uint16(b[4:6]))
	if total > MaxLen {
		return ErrLength // jumbograms, and what no buffer here holds
	}
	*h = Header{
		IPv6: true,
		Src:  netip.AddrFrom16([16]byte(b[8:24])), Dst: netip.AddrFrom16([16]byte(b[24:40])),
		Proto: b[6], TTL: b[7], TOS: b[0]<<4 | b[1]>>4,
		HeaderLen: IPv6HeaderLen, TotalLen: total, PartLen: total - IPv6HeaderLen,
		DontFragment: true,
	}
	if h.Src.Is4In6() || h.Dst.Is4In6() {
		return ErrLength // never on a wire (RFC 4038 section 4.2): would be another's address here
	}
	return h.extensions(b[:min(len(b), total)])
}

// extensions walks to the transport's header, or, in a later fragment, to what is
// behind the fragment header.
func (h *Header) extensions(b []byte) error {
	fragment := false
	for n := 0; ; n++ {
		at := h.HeaderLen
		switch h.Proto {
		case nextHopByHop, nextRouting, nextDestination, nextFragment:
		default:
			return nil
		}
		if n == maxExtensions || at > IPv6HeaderLen+maxExtensionLen || h.Proto == nextHopByHop && n > 0 {
			return ErrOptions
		}
		if len(b) < at+8 {
			return h.cutOff(ErrOptions)
		}
		length := 8
		if h.Proto != nextFragment {
			length += int(b[at+1]) * 8
		}
		if len(b) < at+length {
			return h.cutOff(ErrOptions)
		}
		h.HasOptions = true
		switch h.Proto {
		case nextRouting:
			// Type 0 is a way that others are made to go (RFC 5095); any other that
			// still has somewhere to go is, too.
			if b[at+2] == 0 || b[at+3] != 0 {
				h.SourceRoute = true
			}
		case nextFragment:
			if fragment {
				return ErrOptions // a second one
			}
			fragment = true
			field := binary.BigEndian.Uint16(b[at+2 : at+4])
			h.FragmentOffset = int(field &^ 7)
			h.MoreFragments = field&1 != 0
			h.ID = binary.BigEndian.Uint32(b[at+4 : at+8])
			h.PartLen = h.TotalLen - at - length
		}
		h.Proto = b[at]
		h.HeaderLen += length
		if h.FragmentOffset != 0 {
			return nil // what follows is of the middle of the datagram
		}
	}
}

// cutOff is the error for headers that end too early: in a first fragment they hide
// what a verdict is made of (RFC 7112).
func (h *Header) cutOff(err error) error {
	if h.MoreFragments {
		return ErrFragment
	}
	return err
}
