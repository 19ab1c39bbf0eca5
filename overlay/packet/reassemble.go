package packet

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// Bounds of what a Reassembler holds, and for how long.
const (
	maxHeldDatagrams = 64
	maxHeldBytes     = 1 << 20
	maxHeldTime      = 30 * time.Second
)

// fragmentLen is the length of IPv6's fragment header.
const fragmentLen = 8

// Reassembler puts datagrams together that came in fragments (RFC 791 section 3.2,
// RFC 8200 section 4.5), in any order. Two parts that overlap end the datagram (RFC
// 5722 section 4); an exact repetition is only dropped. What it holds is bounded:
// beyond, the oldest datagram is given up. Its zero value is ready; it is one
// goroutine's.
type Reassembler struct {
	held  map[reassemblyKey]*partial
	order []reassemblyKey // by age
	bytes int
}

type reassemblyKey struct {
	src, dst netip.Addr
	id       uint32
	proto    uint8
}

// partial is a datagram of which parts have come.
type partial struct {
	since time.Time
	first *Header // of the first part
	next  uint8   // what the datagram begins with
	parts []part  // by place
	bytes int
	total int  // -1: the last part has not come
	bad   bool // nothing of it is to be believed
}

type part struct {
	at int
	b  []byte
}

// Add takes the fragment p, which was parsed into h; its bytes are copied. Once the
// last part is there the whole packet comes back, without options and extension
// headers of the fragments, to be parsed anew; else nil.
func (r *Reassembler) Add(p []byte, h *Header, now time.Time) []byte {
	r.expire(now)
	key := reassemblyKey{h.Src, h.Dst, h.ID, h.Proto}
	if h.IPv6 {
		key.proto = 0 // later parts do not tell it
	}
	d := r.held[key]
	if d == nil {
		if r.held == nil {
			r.held = map[reassemblyKey]*partial{}
		}
		d = &partial{since: now, total: -1}
		r.held[key] = d
		r.order = append(r.order, key)
	}
	was := d.bytes
	d.add(p, h)
	r.bytes += d.bytes - was
	whole := d.whole()
	if whole != nil {
		r.forget(key)
	}
	for len(r.order) > maxHeldDatagrams || r.bytes > maxHeldBytes {
		r.forget(r.order[0])
	}
	return whole
}

func (r *Reassembler) expire(now time.Time) {
	for len(r.order) > 0 && now.Sub(r.held[r.order[0]].since) > maxHeldTime {
		r.forget(r.order[0])
	}
}

func (r *Reassembler) forget(key reassemblyKey) {
	r.bytes -= r.held[key].bytes
	delete(r.held, key)
	i := slices.Index(r.order, key)
	r.order = slices.Delete(r.order, i, i+1)
}

// spoil ends the datagram: the parts that are still to come are part of it, and
// dropped with it.
func (d *partial) spoil() { d.bad, d.parts, d.bytes = true, nil, 0 }

func (d *partial) add(p []byte, h *Header) {
	if d.bad {
		return
	}
	at, begin := h.FragmentOffset, h.TotalLen-h.PartLen
	b := p[begin:h.TotalLen]
	end := at + len(b)
	switch {
	case end > mostOf(h), h.MoreFragments && (len(b) == 0 || len(b)%8 != 0), d.total >= 0 && end > d.total:
		d.spoil()
		return
	case !h.MoreFragments && (d.total >= 0 && d.total != end || len(d.parts) > 0 && d.last() > end):
		d.spoil() // it ends in two places
		return
	}
	if !h.MoreFragments {
		d.total = end
	}
	i, there := slices.BinarySearchFunc(d.parts, at, func(q part, at int) int { return cmp.Compare(q.at, at) })
	if there && bytes.Equal(d.parts[i].b, b) {
		return
	}
	if there || i > 0 && d.parts[i-1].at+len(d.parts[i-1].b) > at || i < len(d.parts) && end > d.parts[i].at {
		d.spoil()
		return
	}
	if at == 0 {
		first := *h
		d.first, d.next = &first, h.Proto
		if h.IPv6 {
			d.next = p[begin-fragmentLen]
		}
	}
	d.parts = slices.Insert(d.parts, i, part{at, bytes.Clone(b)})
	d.bytes += len(b)
}

// mostOf is how long a datagram may be.
func mostOf(h *Header) int {
	if h.IPv6 {
		return MaxLen - IPv6HeaderLen
	}
	return MaxLen - IPv4HeaderLen
}

// last is where the furthest part ends.
func (d *partial) last() int { q := d.parts[len(d.parts)-1]; return q.at + len(q.b) }

// whole is the packet, if all of it is there: the parts do not overlap and end at
// total, so enough bytes are all.
func (d *partial) whole() []byte {
	if d.bad || d.first == nil || d.total != d.bytes {
		return nil
	}
	h := d.first
	b, p, l4 := appendIP(nil, h.Src, h.Dst, d.next, h.TOS, d.total)
	for _, q := range d.parts {
		copy(l4[q.at:], q.b)
	}
	if h.IPv6 {
		p[7] = h.TTL
		return b
	}
	p[8] = h.TTL
	setIPv4Checksum(p, IPv4HeaderLen)
	return b
}

// AppendPlain appends the packet p, which is whole, without its options or extension
// headers.
func AppendPlain(dst, p []byte, h *Header) []byte {
	dst, q, l4 := appendIP(dst, h.Src, h.Dst, h.Proto, h.TOS, h.TotalLen-h.HeaderLen)
	copy(l4, p[h.HeaderLen:h.TotalLen])
	if h.IPv6 {
		q[7] = h.TTL
		binary.BigEndian.PutUint16(q[2:4], binary.BigEndian.Uint16(p[2:4])) // the flow label
		q[1] = p[1]
		return dst
	}
	q[8] = h.TTL
	setIPv4Checksum(q, IPv4HeaderLen)
	return dst
}

// Held is how many bytes are held.
func (r *Reassembler) Held() int { return r.bytes }
