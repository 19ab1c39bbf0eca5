package fib

import "net/netip"

// pageSize is the number of addresses of a page, one /24 of IPv4.
const pageSize = 256

// Snapshot is one state of the table. It never changes.
//
// Pages hang in a tree of two levels, indexed by the second and third byte of
// the address: the first byte is the overlay network's, which is a /8 or smaller.
type Snapshot struct {
	overlay netip.Prefix
	self    netip.Prefix
	root    [256]*branch
	// underlays has the peers at each outer address, nearly always one.
	underlays map[netip.Addr][]*Peer
	// tunnels finds a peer by the tunnel address of its frames.
	tunnels map[netip.Addr]*Peer
	peers   map[string]*Peer
	locals  int
	remotes int
}

type branch struct {
	edition uint64 // of the Builder that may write it
	pages   [256]*page
}

// page holds what is known of 256 addresses. The arrays are there only where
// something is in them.
type page struct {
	edition uint64
	whole   *Peer // the lease that covers the page whole
	small   *[pageSize]*Peer
	locals  *[pageSize]*Local
	remotes *[pageSize]*Remote
	// which of the arrays belong to the edition, and may be written
	ownSmall, ownLocals, ownRemotes bool
}

// Overlay is the network of all containers.
func (s *Snapshot) Overlay() netip.Prefix { return s.overlay }

// Self is this cell's own lease.
func (s *Snapshot) Self() netip.Prefix { return s.self }

// Gateway is this cell's own address, the base of its lease.
func (s *Snapshot) Gateway() netip.Addr { return s.self.Addr() }

// Inside says whether an address, or the IPv4 address that it is the twin of, is the
// overlay network's.
func (s *Snapshot) Inside(addr netip.Addr) bool { return s.overlay.Contains(Name(addr)) }

// Own says whether it lies in this cell's own lease.
func (s *Snapshot) Own(addr netip.Addr) bool { return s.self.Contains(Name(addr)) }

// Lookup says what is known of an overlay address, of either family: the container of this cell,
// or the container of another, and the peer whose lease holds the address. What
// is not known is nil; of an address in a peer's lease the peer is always told.
func (s *Snapshot) Lookup(addr netip.Addr) (*Local, *Remote, *Peer) {
	addr = Name(addr)
	if !s.overlay.Contains(addr) {
		return nil, nil, nil
	}
	a := addr.As4()
	b := s.root[a[1]]
	if b == nil {
		return nil, nil, nil
	}
	p := b.pages[a[2]]
	if p == nil {
		return nil, nil, nil
	}
	var local *Local
	if p.locals != nil {
		local = p.locals[a[3]]
	}
	var remote *Remote
	if p.remotes != nil {
		remote = p.remotes[a[3]]
	}
	peer := p.whole
	if p.small != nil && p.small[a[3]] != nil {
		peer = p.small[a[3]]
	}
	return local, remote, peer
}

// Local is the container of this cell at addr, or nil.
func (s *Snapshot) Local(addr netip.Addr) *Local {
	l, _, _ := s.Lookup(addr)
	return l
}

// PeerByUnderlay is the peer that sends from an outer address, or nil. A source port that
// several cells at that address may have is whose it is by the lowest number.
func (s *Snapshot) PeerByUnderlay(from netip.AddrPort) *Peer {
	var found *Peer
	best := uint16(SourcePorts)
	for _, p := range s.underlays[from.Addr()] {
		switch after := from.Port() - p.Underlay.Port(); {
		case after%sourceStride == 0 && after/sourceStride < best:
			found, best = p, after/sourceStride
		case p.Kind == Silk && found == nil:
			found = p
		}
	}
	return found
}

// PeerByTunnel is the peer that has a tunnel address, or nil.
func (s *Snapshot) PeerByTunnel(from netip.Addr) *Peer { return s.tunnels[from] }

// Peer is the peer of that name, or nil.
func (s *Snapshot) Peer(name string) *Peer { return s.peers[name] }

// Peers calls f with each peer, in no order.
func (s *Snapshot) Peers(f func(*Peer)) {
	for _, p := range s.peers {
		f(p)
	}
}

// Locals calls f with each container of this cell, by address.
func (s *Snapshot) Locals(f func(*Local)) {
	s.walk(s.self, func(p *page) {
		if p.locals == nil {
			return
		}
		for _, l := range p.locals {
			if l != nil {
				f(l)
			}
		}
	})
}

// Remotes calls f with each known container of other cells, by address.
func (s *Snapshot) Remotes(f func(*Remote)) {
	s.walk(s.overlay, func(p *page) {
		if p.remotes == nil {
			return
		}
		for _, r := range p.remotes {
			if r != nil {
				f(r)
			}
		}
	})
}

// Len is the number of peers, local and remote containers.
func (s *Snapshot) Len() (peers, locals, remotes int) {
	return len(s.peers), s.locals, s.remotes
}

// walk visits the pages that lie in the prefix, in order.
func (s *Snapshot) walk(in netip.Prefix, f func(*page)) {
	first, last := pageSpan(in)
	for i := first; i <= last; i++ {
		b := s.root[i>>8]
		if b == nil {
			i |= 0xff
			continue
		}
		if p := b.pages[i&0xff]; p != nil {
			f(p)
		}
	}
}

// pageSpan is the first and last page index (second and third byte) of a prefix.
func pageSpan(p netip.Prefix) (first, last int) {
	a := p.Addr().As4()
	first = int(a[1])<<8 | int(a[2])
	last = first
	if p.Bits() < 24 {
		last = first + 1<<(24-p.Bits()) - 1
	}
	return first, last
}
