package packet

import "encoding/binary"

// Fragment writes into dst the fragment of p that begins at byte at of its payload
// and is at most mtu long (RFC 791 section 3.2). It returns the fragment's length
// and where the next begins, at least the payload's length behind the last; 0, 0
// if nothing fits, or p must not be fragmented. p may be a fragment itself. Its
// transport checksum is complete; dst has room for mtu bytes and does not overlap p.
func Fragment(dst, p []byte, h *Header, mtu, at int) (n, next int) {
	payload := p[h.HeaderLen:h.TotalLen]
	room := (mtu - h.HeaderLen) &^ 7
	if room <= 0 || h.DontFragment || at >= len(payload) {
		return 0, 0
	}
	more := h.MoreFragments
	next = at + room
	if len(payload)-at > mtu-h.HeaderLen {
		more = true
	} else {
		next = len(payload)
	}
	n = h.HeaderLen + next - at
	copy(dst, p[:h.HeaderLen])
	copy(dst[h.HeaderLen:n], payload[at:next])
	if at > 0 && h.HasOptions {
		blankUncopied(dst[IPv4HeaderLen:h.HeaderLen])
	}
	field := uint16((h.FragmentOffset + at) / 8)
	if more {
		field |= 0x2000
	}
	binary.BigEndian.PutUint16(dst[2:4], uint16(n))
	binary.BigEndian.PutUint16(dst[6:8], field)
	setIPv4Checksum(dst, h.HeaderLen)
	return n, next
}
