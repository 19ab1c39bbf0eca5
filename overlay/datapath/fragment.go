package datapath

import (
	"bytes"
	"net/netip"
	"slices"

	"tulle/overlay/flow"
	"tulle/overlay/packet"
)

// fragments keeps, for one goroutine, what is known of datagrams that came in
// parts. The part with the transport header is judged like any packet; the others
// follow its verdict for as long as its flow lives. Those that come before it
// wait, in bounded memory. Nothing is put together here: that is the receiver's.
//
// Two parts that overlap end the datagram: they are how a verdict about one set
// of bytes is used for another (RFC 5722 section 4 says the same for IPv6). An
// exact repetition is only dropped, for networks repeat.
type fragments struct {
	maxDatagrams, maxBytes int
	datagrams              map[fragmentKey]*datagram
	waiting                int // bytes held
	swept                  uint32
	c                      *counters // of held parts that were let go
}

type fragmentKey struct {
	src, dst netip.Addr
	id       uint32
	proto    uint8
}

// keyOf names a part's datagram. Later parts of IPv6's do not tell the protocol.
func keyOf(h *packet.Header) fragmentKey {
	k := fragmentKey{h.Src, h.Dst, h.ID, h.Proto}
	if h.IPv6 {
		k.proto = 0
	}
	return k
}

type datagram struct {
	state    datagramState
	deadline uint32
	ref      flow.Ref
	spans    []span // by start
	end      int    // length of the whole payload, once the last part is there
	held     [][]byte
}

type span struct{ from, to int }

type datagramState uint8

const (
	unjudged datagramState = iota
	allowedDatagram
	refusedDatagram // by the verdict about its first part
	endedDatagram   // after parts of it passed, or because they overlap
)

const (
	// waitForFirst is how long parts wait for the first, keepVerdict how long its
	// verdict holds, in ticks; Linux reassembles for 30 s.
	waitForFirst = 5
	keepVerdict  = 30
	// maxSpans bounds the parts of one datagram: 65,535 bytes at the smallest MTU.
	maxSpans = 128
)

type fragmentAction uint8

const (
	dropIt fragmentAction = iota
	forwardIt
	holdIt
)

func (f *fragments) init(datagrams, bytes int, c *counters) {
	f.maxDatagrams, f.maxBytes, f.c = max(datagrams, 4), bytes, c
}

// first takes note of the verdict about a datagram by its first part, and gives
// the later parts back that waited for it.
func (f *fragments) first(h *packet.Header, now uint32, ref flow.Ref, allowed bool) ([][]byte, Reason) {
	f.sweep(now)
	d, r := f.get(h, now)
	if r != Passed {
		return nil, r
	}
	if r := d.add(h); r != Passed {
		if r == FragmentOverlap {
			f.end(d, endedDatagram)
		}
		return nil, r
	}
	if d.state != unjudged {
		return nil, FragmentDenied
	}
	d.deadline = now + keepVerdict
	if !allowed {
		f.end(d, refusedDatagram)
		f.finish(h, d)
		return nil, Passed
	}
	held := f.release(d)
	d.state, d.ref = allowedDatagram, ref
	f.finish(h, d)
	return held, Passed
}

// later says what to do with a part other than the first. p is copied if held.
func (f *fragments) later(h *packet.Header, p []byte, flows *flow.Table) (fragmentAction, Reason) {
	now := flows.Now()
	f.sweep(now)
	d, r := f.get(h, now)
	if r != Passed {
		return dropIt, r
	}
	switch {
	case d.state == refusedDatagram:
		// Kept until the last part of it was dropped, and no longer: what is refused
		// takes no room from what is allowed.
		if d.add(h) == Passed {
			f.finish(h, d)
		}
		return dropIt, FragmentDenied
	case d.state == endedDatagram, d.state == allowedDatagram && !flows.Alive(d.ref):
		f.end(d, endedDatagram)
		return dropIt, FragmentDenied
	}
	if d.state == unjudged && f.waiting+len(p) > f.maxBytes {
		return dropIt, FragmentsFull
	}
	if r := d.add(h); r != Passed {
		if r == FragmentOverlap {
			f.end(d, endedDatagram)
		}
		return dropIt, r
	}
	if d.state == unjudged {
		d.held = append(d.held, bytes.Clone(p))
		f.waiting += len(p)
		return holdIt, Passed
	}
	f.finish(h, d)
	return forwardIt, Passed
}

// get finds or begins a datagram. One source may have a quarter of the room.
func (f *fragments) get(h *packet.Header, now uint32) (*datagram, Reason) {
	key := keyOf(h)
	if d := f.datagrams[key]; d != nil {
		return d, Passed
	}
	if len(f.datagrams) >= f.maxDatagrams {
		return nil, FragmentsFull
	}
	if len(f.datagrams) >= f.maxDatagrams/4 {
		n := 0
		for k := range f.datagrams {
			if k.src == h.Src {
				n++
			}
		}
		if n >= f.maxDatagrams/4 {
			return nil, FragmentsFull
		}
	}
	if f.datagrams == nil {
		f.datagrams = make(map[fragmentKey]*datagram)
	}
	d := &datagram{deadline: now + waitForFirst}
	f.datagrams[key] = d
	return d, Passed
}

// add enters a part's place.
func (d *datagram) add(h *packet.Header) Reason {
	s := span{h.FragmentOffset, h.FragmentOffset + h.PartLen}
	// All parts but the last are whole blocks of eight, and nothing is empty.
	if s.from == s.to || h.MoreFragments && (s.to-s.from)%8 != 0 {
		return BadPacket
	}
	i, repeated := slices.BinarySearchFunc(d.spans, s, func(a, b span) int { return a.from - b.from })
	if repeated && d.spans[i] == s {
		return FragmentDenied
	}
	if repeated || i > 0 && d.spans[i-1].to > s.from || i < len(d.spans) && s.to > d.spans[i].from {
		return FragmentOverlap
	}
	if !h.MoreFragments {
		if d.end != 0 || len(d.spans) > 0 && d.spans[len(d.spans)-1].to > s.to {
			return FragmentOverlap
		}
		d.end = s.to
	} else if d.end != 0 && s.to > d.end {
		return FragmentOverlap
	}
	if len(d.spans) == maxSpans {
		return FragmentsFull
	}
	d.spans = slices.Insert(d.spans, i, s)
	return Passed
}

// finish forgets a datagram whose parts have all been forwarded, or all dropped.
func (f *fragments) finish(h *packet.Header, d *datagram) {
	if d.end == 0 {
		return
	}
	at := 0
	for _, s := range d.spans {
		if s.from != at {
			return
		}
		at = s.to
	}
	if at == d.end {
		delete(f.datagrams, keyOf(h))
	}
}

// end makes the rest of a datagram be dropped.
func (f *fragments) end(d *datagram, as datagramState) {
	d.state = as
	f.c.drops[FragmentDenied].Add(uint64(len(f.release(d))))
}

// release takes the parts that wait out.
func (f *fragments) release(d *datagram) [][]byte {
	held := d.held
	d.held = nil
	for _, b := range held {
		f.waiting -= len(b)
	}
	return held
}

// sweep lets go, once a tick, what is too old.
func (f *fragments) sweep(now uint32) {
	if now == f.swept {
		return
	}
	f.swept = now
	for k, d := range f.datagrams {
		if now > d.deadline {
			f.c.drops[FragmentExpired].Add(uint64(len(f.release(d))))
			delete(f.datagrams, k)
		}
	}
}
