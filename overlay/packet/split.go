package packet

import "encoding/binary"

// Split writes segment i (0 to Segments-1) of the super-packet p into dst and
// returns its length: at most h.HeaderLen+h.L4Len+v.GSOSize, which dst must
// have room for. All segments but the last are equally long. h and v are those
// of p and passed Check; p is read only and may not overlap dst.
//
// Each segment gets the headers of p with its own IPv4 identification (counted
// up), lengths, sequence number, flags and full checksums, as Linux's
// tcp_gso_segment and __udp_gso_segment do: FIN and PSH stay on the last
// segment, CWR on the first (RFC 3168 section 6.1.2).
//
// A packet that is no super-packet is copied and its partial checksum completed.
// For TCP a caller whose path is smaller may lower v.GSOSize between Check and
// the first Split; a UDP payload's borders have a meaning and must stay.
func Split(dst, p []byte, h *Header, v *Virtio, i int) int {
	if v.GSOType == GSONone {
		n := copy(dst[:h.TotalLen], p)
		w := *v
		CompleteChecksum(dst[:n], h, &w)
		return n
	}
	headers := h.HeaderLen + h.L4Len
	size := int(v.GSOSize)
	from := i * size
	to := min(from+size, h.PayloadLen)
	n := headers + to - from
	dst = dst[:n]
	copy(dst, p[:headers])
	copy(dst[headers:], p[headers+from:headers+to])

	if h.IPv6 {
		binary.BigEndian.PutUint16(dst[4:6], uint16(n-IPv6HeaderLen))
	} else {
		binary.BigEndian.PutUint16(dst[2:4], uint16(n))
		binary.BigEndian.PutUint16(dst[4:6], uint16(h.ID)+uint16(i))
		setIPv4Checksum(dst, h.HeaderLen)
	}

	l4 := dst[h.HeaderLen:]
	if h.Proto == ProtoUDP {
		binary.BigEndian.PutUint16(l4[4:6], uint16(len(l4)))
		setTransportChecksum(dst, h.HeaderLen, ProtoUDP)
		return n
	}
	binary.BigEndian.PutUint32(l4[4:8], h.Seq+uint32(from))
	if to < h.PayloadLen {
		l4[13] &^= FlagFIN | FlagPSH
	}
	if i > 0 {
		l4[13] &^= FlagCWR
	}
	setTransportChecksum(dst, h.HeaderLen, ProtoTCP)
	return n
}
