package flow

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"sync/atomic"

	"tulle/policy"
)

// record is a flow in the table: 160 bytes of plain words.
//
//	version   odd while the record is a flow, raised at each change of that
//	names     addresses (IPv4 as ::ffff:a.b.c.d), ports, protocol, role
//	judged    tags, incarnations, peer, slots, generation
//	progress  counters, sequence numbers, state and last tick, per direction
//
// Only version and progress change while it is a flow. The links belong to the
// shard's lock.
type record struct {
	version            atomic.Uint32
	pairNext, pairPrev uint32 // numbers of the same tag pair, plus one
	_                  uint32
	srcHi, srcLo       atomic.Uint64
	dstHi, dstLo       atomic.Uint64
	ports              atomic.Uint64 // source 16, destination 16, protocol 8, role 8, unused 16
	tags               atomic.Uint64 // source 32, destination 32
	srcInc, dstInc     atomic.Uint64
	owner              atomic.Uint64 // peer 32, source slot 16, destination slot 16
	generation         atomic.Uint64
	packets, bytes     [2]atomic.Uint64
	sequence           [2]atomic.Uint64 // next 32, acked 32
	life               atomic.Uint64    // state 32, last seen 32
	_                  uint64
}

const noSlot16 = 0xffff

func slot16(slot int) uint64 {
	if slot == NoSlot {
		return noSlot16
	}
	return uint64(slot) & 0xffff
}

func slotOf(w uint64) int {
	if w&0xffff == noSlot16 {
		return NoSlot
	}
	return int(w & 0xffff)
}

// words is an address as two words; IPv4 as ::ffff:a.b.c.d.
func words(a netip.Addr) (hi, lo uint64) {
	if a.Is4() {
		b := a.As4()
		return 0, 0xffff<<32 | uint64(binary.BigEndian.Uint32(b[:]))
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

func address(hi, lo uint64) netip.Addr {
	if hi == 0 && lo>>32 == 0xffff {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(lo))
		return netip.AddrFrom4(b)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	return netip.AddrFrom16(b)
}

// name is a key as words, the way the record holds it.
type name struct {
	srcHi, srcLo, dstHi, dstLo uint64
	srcPort, dstPort           uint64
	proto                      uint64
}

func nameOf(k *Key) name {
	n := name{srcPort: uint64(k.SrcPort), dstPort: uint64(k.DstPort), proto: uint64(k.Proto)}
	n.srcHi, n.srcLo = words(k.Src)
	n.dstHi, n.dstLo = words(k.Dst)
	return n
}

// hash is the same for both directions. The seed keeps containers, which choose
// their ports, from choosing collisions.
func (n *name) hash(seed *[3]uint64) uint64 {
	a := mix(n.srcLo^n.srcPort<<48^seed[0], n.srcHi^seed[1])
	b := mix(n.dstLo^n.dstPort<<48^seed[0], n.dstHi^seed[1])
	return mix((a+b)^n.proto, seed[2])
}

// mix is both halves of a 128-bit product, folded. y must not be 0.
func mix(x, y uint64) uint64 {
	hi, lo := bits.Mul64(x, y)
	return hi ^ lo
}

// matches reports whether the record names n, and in which direction.
func (r *record) matches(n *name) (Direction, bool) {
	ports := r.ports.Load() >> 24
	srcHi, srcLo, dstHi, dstLo := r.srcHi.Load(), r.srcLo.Load(), r.dstHi.Load(), r.dstLo.Load()
	if ports == n.srcPort<<24|n.dstPort<<8|n.proto &&
		srcLo == n.srcLo && dstLo == n.dstLo && srcHi == n.srcHi && dstHi == n.dstHi {
		return Forward, true
	}
	if ports == n.dstPort<<24|n.srcPort<<8|n.proto &&
		srcLo == n.dstLo && dstLo == n.srcLo && srcHi == n.dstHi && dstHi == n.srcHi {
		return Backward, true
	}
	return Forward, false
}

// write fills the record. The version is even and the caller holds the lock.
func (r *record) write(f *Flow, n *name, now uint32) {
	r.srcHi.Store(n.srcHi)
	r.srcLo.Store(n.srcLo)
	r.dstHi.Store(n.dstHi)
	r.dstLo.Store(n.dstLo)
	r.ports.Store(n.srcPort<<48 | n.dstPort<<32 | n.proto<<24 | uint64(f.Role)<<16)
	r.tags.Store(uint64(f.SrcTag)<<32 | uint64(f.DstTag))
	r.srcInc.Store(f.SrcIncarnation)
	r.dstInc.Store(f.DstIncarnation)
	r.owner.Store(uint64(f.Peer)<<32 | slot16(f.SrcSlot)<<16 | slot16(f.DstSlot))
	r.generation.Store(f.Generation)
	for d := range 2 {
		r.packets[d].Store(f.Packets[d])
		r.bytes[d].Store(f.Bytes[d])
		r.sequence[d].Store(uint64(f.Next[d])<<32 | uint64(f.Acked[d]))
	}
	r.life.Store(uint64(f.State)<<32 | uint64(now))
}

// read copies what a verdict needs, and all else.
func (r *record) read(f *Flow) {
	ports := r.ports.Load()
	f.Src = address(r.srcHi.Load(), r.srcLo.Load())
	f.Dst = address(r.dstHi.Load(), r.dstLo.Load())
	f.SrcPort, f.DstPort = uint16(ports>>48), uint16(ports>>32)
	f.Proto, f.Role = uint8(ports>>24), Role(ports>>16)
	tags := r.tags.Load()
	f.SrcTag, f.DstTag = policy.Tag(tags>>32), policy.Tag(uint32(tags))
	f.SrcIncarnation, f.DstIncarnation = r.srcInc.Load(), r.dstInc.Load()
	owner := r.owner.Load()
	f.Peer, f.SrcSlot, f.DstSlot = uint32(owner>>32), slotOf(owner>>16), slotOf(owner)
	f.Generation = r.generation.Load()
	for d := range 2 {
		f.Packets[d], f.Bytes[d] = r.packets[d].Load(), r.bytes[d].Load()
		s := r.sequence[d].Load()
		f.Next[d], f.Acked[d] = uint32(s>>32), uint32(s)
	}
	life := r.life.Load()
	f.State, f.LastSeen = State(life>>32), uint32(life)
}

// expired reports whether the flow has outlived its last packet at now. That packet
// may have come after now was read, when the clock had moved on.
func (r *record) expired(now uint32) bool {
	life := r.life.Load()
	return int32(now-uint32(life)) > int32(lifetime(uint8(r.ports.Load()>>24), State(life>>32)))
}

// touch takes a packet in.
func (r *record) touch(d Direction, s *Segment, now uint32) {
	r.packets[d].Add(1)
	r.bytes[d].Add(uint64(s.Bytes))
	proto := uint8(r.ports.Load() >> 24)
	old := r.life.Load()
	if proto == protoTCP {
		r.advance(d, s, State(old>>32))
	}
	for {
		next := uint64(follow(proto, State(old>>32), d, s.Flags))<<32 | uint64(now)
		if next == old || r.life.CompareAndSwap(old, next) {
			return
		}
		old = r.life.Load()
	}
}

// advance keeps the largest sequence number and acknowledgement of a direction.
// A direction is one goroutine's at a time; should two meet, the record is behind
// by one segment.
func (r *record) advance(d Direction, s *Segment, state State) {
	old := r.sequence[d].Load()
	next, acked := uint32(old>>32), uint32(old)
	end := s.Seq + seqLen(s)
	if s.Flags&rst == 0 && (after(end, next) || old == 0 || s.Flags&syn != 0) {
		next = end
	}
	if s.Flags&ack != 0 && (after(s.Ack, acked) || !state.SeenAck(d)) {
		acked = s.Ack
	}
	if now := uint64(next)<<32 | uint64(acked); now != old {
		r.sequence[d].Store(now)
	}
}
