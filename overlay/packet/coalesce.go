package packet

import "encoding/binary"

// Sizes of a Coalescer.
const (
	// MaxGroups is how many packets, joined or not, one Coalescer holds.
	MaxGroups = 256
	// maxAdds is how many packets Add takes before Reset.
	maxAdds = 1024
	// openFlows is how many flows can be joined at the same time. More may share
	// a receive batch: the later one then takes the place of the earlier.
	openFlows = 64
)

// Full is the group Add returns when the Coalescer holds no more.
const Full = -1

// none ends a chain of pieces and marks an unused flow.
const none = -1

// Coalescer joins consecutive TCP segments of one flow back into a super-packet,
// as the kernel's GRO does, so that a container's stack sees one packet where
// the wire carried forty. UDP datagrams of one flow and equal length are joined
// too where UDP is set. Whatever cannot be joined is a group of its own, with
// the bytes it came with.
//
//	for each packet of a receive batch {
//		g, joined := c.Add(p, &h)          // Full: write all groups, Reset, Add again
//		if !joined { device[g] = … }       // groups are numbered from 0
//	}
//	for g := range c.Len() { device[g].Write(c.Pieces(g)...) }
//	c.Reset()
//
// Groups written in their order keep the order of every flow's packets. A flow
// has one open group at most; a packet of it that does not fit closes it.
//
// Two segments are joined only when splitting the result gives both of them
// back: same addresses, ports, TOS, TTL, DF, acknowledgement, window and option
// bytes, no IPv4 options or fragments, no TCP flags but ACK and PSH (PSH ends a
// group), sequence numbers in a row, identifications in a row unless DF makes
// them meaningless (RFC 6864), all payloads but the last as long as the first,
// together at most 65,535 bytes and MaxFrames segments. Checksums are verified
// before joining, because the joined packet counts as verified; a wrong one
// passes alone, for the container's stack to refuse and count.
//
// Packets are borrowed from Add to Reset, and Pieces writes to the headers of
// the first of a group. One goroutine owns a Coalescer. It allocates nothing
// after its making; it is about 100 KiB large and must not be copied.
type Coalescer struct {
	// UDP says whether the devices take UDP super-packets (Linux 6.2 and later).
	UDP bool

	groups  [MaxGroups]group
	nGroups int
	adds    [maxAdds]add
	nAdds   int
	flows   [openFlows]int16 // newest group of the flow in this place, or none
	pieces  [MaxFrames + 1][]byte
	virtio  [MaxGroups][VirtioLen]byte
}

// group is one packet on its way out.
type group struct {
	first      []byte // whole packet
	head, tail int16  // chain of further payloads in adds
	count      int16  // segments
	verified   bool   // first's checksum is known to be right
	open       bool   // more may be joined
	headers    uint16 // length of all headers
	l4         uint16 // length of the IP header
	size       uint16 // payload of first
	id         uint16 // identification expected next
	total      int    // bytes, headers once
	seq        uint32 // sequence number expected next
	push       bool   // a joined segment had PSH
}

// add is a payload behind the first of its group.
type add struct {
	payload []byte
	next    int16
}

// NewCoalescer makes an empty one.
func NewCoalescer() *Coalescer {
	c := new(Coalescer)
	c.Reset()
	return c
}

// Reset forgets all groups and gives the packets back to their owner.
func (c *Coalescer) Reset() {
	clear(c.groups[:c.nGroups])
	clear(c.adds[:c.nAdds])
	c.nGroups, c.nAdds = 0, 0
	for i := range c.flows {
		c.flows[i] = none
	}
}

// Len is the number of groups.
func (c *Coalescer) Len() int { return c.nGroups }

// Add takes the packet p, h.TotalLen long, parsed into h. It returns the group
// that p became or joined; the caller keeps what it knows of a group (its
// device) under that number. Full: p was not taken.
func (c *Coalescer) Add(p []byte, h *Header) (g int, joined bool) {
	if c.nGroups == MaxGroups || c.nAdds == maxAdds {
		return Full, false
	}
	p = p[:h.TotalLen]
	if h.FragmentOffset != 0 || h.Proto != ProtoTCP && (h.Proto != ProtoUDP || !c.UDP) {
		return c.start(p, h, false), false
	}
	place := &c.flows[flowPlace(p, h.HeaderLen)]
	ok := joinable(p, h)
	if newest := *place; newest != none {
		if open := &c.groups[newest]; ok && open.open && sameFlow(open.first, p, int(open.l4), h.HeaderLen) && c.join(open, p, h) {
			return int(newest), true
		}
	}
	// Whether p is the next packet of that flow or the first of another that
	// hashes to its place, the group before is not joined any more.
	g = c.start(p, h, ok)
	*place = int16(g)
	return g, false
}

// start makes p a group.
func (c *Coalescer) start(p []byte, h *Header, open bool) int {
	n := c.nGroups
	c.nGroups++
	c.groups[n] = group{
		first: p, head: none, tail: none, count: 1, open: open,
		headers: uint16(h.HeaderLen + h.L4Len), l4: uint16(h.HeaderLen),
		size: uint16(h.PayloadLen), id: uint16(h.ID) + 1, total: len(p),
		seq: h.Seq + uint32(h.PayloadLen),
	}
	return n
}

// joinable says whether p may be a part of a super-packet, as the first or a
// later one.
func joinable(p []byte, h *Header) bool {
	if h.HasOptions || h.MoreFragments || h.PayloadLen == 0 || !h.IPv6 && p[6]&0x80 != 0 {
		return false
	}
	if h.Proto == ProtoTCP {
		return h.TCPFlags&^FlagPSH == FlagACK
	}
	l4 := p[h.HeaderLen:]
	return h.HeaderLen+UDPHeaderLen+h.PayloadLen == h.TotalLen && // nothing behind UDP's own length
		(l4[udpChecksumAt] != 0 || l4[udpChecksumAt+1] != 0) // a segment of a super-packet has a checksum
}

// join appends p to the open group of its flow, if splitting would give it back.
func (c *Coalescer) join(g *group, p []byte, h *Header) bool {
	f := g.first
	if h.HeaderLen+h.L4Len != int(g.headers) || h.PayloadLen > int(g.size) ||
		g.total+h.PayloadLen > MaxLen || g.count == MaxFrames || !sameHeader(f, p) ||
		!h.DontFragment && uint16(h.ID) != g.id {
		return false
	}
	if h.Proto == ProtoTCP {
		a, b := f[g.l4:g.headers], p[g.l4:g.headers]
		if g.push || h.Seq != g.seq || a[13]&FlagPSH != 0 ||
			binary.NativeEndian.Uint32(a[8:12]) != binary.NativeEndian.Uint32(b[8:12]) || // acknowledgement
			a[12] != b[12] || // reserved bits
			binary.NativeEndian.Uint16(a[14:16]) != binary.NativeEndian.Uint16(b[14:16]) || // window
			binary.NativeEndian.Uint16(a[18:20]) != binary.NativeEndian.Uint16(b[18:20]) || // urgent pointer
			string(a[TCPHeaderLen:]) != string(b[TCPHeaderLen:]) {
			return false
		}
	}
	if !g.verified {
		if !verifyWhole(f, int(g.l4), h.Proto) {
			g.open = false
			return false
		}
		g.verified = true
	}
	if !verifyWhole(p, h.HeaderLen, h.Proto) {
		return false
	}
	n := int16(c.nAdds)
	c.nAdds++
	c.adds[n] = add{payload: p[g.headers:], next: none}
	if g.tail == none {
		g.head = n
	} else {
		c.adds[g.tail].next = n
	}
	g.tail = n
	g.count++
	g.total += h.PayloadLen
	g.seq += uint32(h.PayloadLen)
	g.id++
	if h.Proto == ProtoTCP {
		g.push = h.TCPFlags&FlagPSH != 0
	}
	g.open = h.PayloadLen == int(g.size) && !g.push
	return true
}

// Pieces is group g as it is to be written to a device in one call: a virtio
// header, then the packet. A group of one is plain and its bytes are those that
// came; a joined one has its headers rewritten in place (with a partial
// checksum) and its further payloads behind, uncopied. The slice is valid until
// the next Pieces, what it points to until Reset. Call it once a group.
func (c *Coalescer) Pieces(i int) [][]byte {
	g := &c.groups[i]
	v := Virtio{}
	if g.count > 1 {
		v = Virtio{
			Flags:  VirtioNeedsChecksum,
			HdrLen: g.headers, GSOSize: g.size, CsumStart: g.l4,
		}
		c.finish(g, &v)
	}
	v.Encode(c.virtio[i][:])
	c.pieces[0], c.pieces[1] = c.virtio[i][:], g.first
	n := 2
	for a := g.head; a != none; a = c.adds[a].next {
		c.pieces[n] = c.adds[a].payload
		n++
	}
	return c.pieces[:n]
}

// finish writes the super-packet's lengths, flags and checksums into the headers
// of its first segment.
func (c *Coalescer) finish(g *group, v *Virtio) {
	p := g.first
	proto := p[9]
	v.GSOType = GSOTCPv4
	if p[0]>>4 == 6 {
		// Without extension headers: those are not joined.
		proto = p[6]
		v.GSOType = GSOTCPv6
		binary.BigEndian.PutUint16(p[4:6], uint16(g.total-IPv6HeaderLen))
	} else {
		binary.BigEndian.PutUint16(p[2:4], uint16(g.total))
		setIPv4Checksum(p, int(g.l4))
	}
	l4 := p[g.l4:]
	length := g.total - int(g.l4)
	var field []byte
	if proto == ProtoTCP {
		v.CsumOffset = tcpChecksumAt
		field = l4[tcpChecksumAt : tcpChecksumAt+2]
		if g.push {
			l4[13] |= FlagPSH
		}
	} else {
		v.GSOType, v.CsumOffset = GSOUDPL4, udpChecksumAt
		field = l4[udpChecksumAt : udpChecksumAt+2]
		binary.BigEndian.PutUint16(l4[4:6], uint16(length))
	}
	binary.BigEndian.PutUint16(field, fold(pseudo(p, proto, length)))
}

// verifyWhole verifies the TCP or UDP checksum of p, all of it behind the IP header
// of n bytes.
func verifyWhole(p []byte, n int, proto uint8) bool {
	return fold(sum(p[n:], pseudo(p, proto, len(p)-n))) == 0xffff
}

// sameHeader compares what of two IP headers of one flow must agree beside the
// identification: TOS, TTL and DF, or traffic class, flow label and hop limit.
func sameHeader(a, b []byte) bool {
	if a[0]>>4 == 6 {
		return binary.NativeEndian.Uint32(a[0:4]) == binary.NativeEndian.Uint32(b[0:4]) && a[7] == b[7]
	}
	return a[1] == b[1] && a[8] == b[8] && a[6] == b[6]
}

// sameFlow compares versions, protocols, addresses and ports. IPv6's are without
// extension headers on the one side, so the other's are too if all agrees.
func sameFlow(a, b []byte, la, lb int) bool {
	if a[0] != b[0] {
		return false
	}
	if a[0]>>4 == 6 {
		return la == lb && a[6] == b[6] && [32]byte(a[8:40]) == [32]byte(b[8:40]) &&
			binary.NativeEndian.Uint32(a[la:la+4]) == binary.NativeEndian.Uint32(b[lb:lb+4])
	}
	return a[9] == b[9] &&
		binary.NativeEndian.Uint64(a[12:20]) == binary.NativeEndian.Uint64(b[12:20]) &&
		binary.NativeEndian.Uint32(a[la:la+4]) == binary.NativeEndian.Uint32(b[lb:lb+4])
}

// flowPlace hashes addresses and ports into a place of Coalescer.flows.
func flowPlace(p []byte, n int) int {
	addrs := binary.LittleEndian.Uint64(p[12:20])
	if p[0]>>4 == 6 {
		addrs = binary.LittleEndian.Uint64(p[16:24]) ^ binary.LittleEndian.Uint64(p[32:40])<<1
	}
	k := addrs ^ uint64(binary.LittleEndian.Uint32(p[n:n+4]))*0x9e3779b97f4a7c15
	return int(k * 0xbf58476d1ce4e5b9 >> 58)
}
