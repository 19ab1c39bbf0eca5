package fib

import (
	"maps"
	"net/netip"
	"slices"

	"tulle/policy"
)

// Builder is the next snapshot while it is made. It is used by the one function
// given to [Table.Update], in its goroutine.
type Builder struct {
	t        *Table
	s        *Snapshot
	ownPeers bool // the peer maps are this edition's
}

// Lookup is [Snapshot.Lookup] on what is being built.
func (b *Builder) Lookup(addr netip.Addr) (*Local, *Remote, *Peer) { return b.s.Lookup(addr) }

// PutLocal enters or replaces a container of this cell. It reports false, and
// does nothing, for an address outside the own lease or the cell's own.
func (b *Builder) PutLocal(l Local) bool {
	if !b.s.self.Contains(l.Addr) || l.Addr == b.s.self.Addr() {
		return false
	}
	b.DeleteLocal(l.Addr)
	p, i := b.page(l.Addr)
	p.localsForWrite()[i] = &l
	b.s.locals++
	b.index(l.App, l.Addr)
	return true
}

// DeleteLocal takes a container of this cell out.
func (b *Builder) DeleteLocal(addr netip.Addr) {
	old, _, _ := b.s.Lookup(addr)
	if old == nil {
		return
	}
	p, i := b.page(addr)
	p.localsForWrite()[i] = nil
	b.s.locals--
	b.unindex(old.App, addr)
}

// PutRemote enters or replaces a container of another cell: of the peer whose
// lease holds the address. It reports false, and does nothing, if there is none,
// or if the address is the peer's own.
func (b *Builder) PutRemote(r Remote) bool {
	_, _, peer := b.s.Lookup(r.Addr)
	if peer == nil || peer.Gateway() == r.Addr {
		return false
	}
	b.DeleteRemote(r.Addr)
	r.Peer = peer
	p, i := b.page(r.Addr)
	p.remotesForWrite()[i] = &r
	b.s.remotes++
	b.index(r.App, r.Addr)
	return true
}

// DeleteRemote takes a container of another cell out.
func (b *Builder) DeleteRemote(addr netip.Addr) {
	_, old, _ := b.s.Lookup(addr)
	if old == nil {
		return
	}
	p, i := b.page(addr)
	p.remotesForWrite()[i] = nil
	b.s.remotes--
	b.unindex(old.App, addr)
}

// SetTag gives every known container of an app, here and elsewhere, its tag.
// Containers entered later carry the tag they are entered with.
func (b *Builder) SetTag(app policy.AppID, tag policy.Tag) {
	for addr := range b.t.apps[app] {
		local, remote, _ := b.s.Lookup(addr)
		if local != nil && local.App == app && local.Tag != tag {
			l := *local
			l.Tag = tag
			p, i := b.page(addr)
			p.localsForWrite()[i] = &l
		}
		if remote != nil && remote.App == app && remote.Tag != tag {
			r := *remote
			r.Tag = tag
			p, i := b.page(addr)
			p.remotesForWrite()[i] = &r
		}
	}
}

// PutPeer enters or replaces a peer, by name, and tells its ID. The ID stays
// while name, kind, lease and generation stay: a new underlay address or mode
// changes how it is reached, not who it is. Under a new ID the endpoints of the
// former are gone. It reports 0, and does nothing, for a lease that is not in the
// overlay network or touches the own one.
func (b *Builder) PutPeer(p Peer) uint32 {
	p.Subnet = p.Subnet.Masked()
	if !p.Subnet.IsValid() || p.Subnet.Bits() < b.s.overlay.Bits() ||
		!b.s.overlay.Contains(p.Subnet.Addr()) || p.Subnet.Overlaps(b.s.self) {
		return 0
	}
	p.Underlay = netip.AddrPortFrom(p.Underlay.Addr().Unmap(), p.Underlay.Port())
	old := b.s.peers[p.Name]
	same := old != nil && old.Kind == p.Kind && old.Subnet == p.Subnet && old.Generation == p.Generation
	if same {
		p.ID = old.ID
	} else {
		b.DeletePeer(p.Name)
		b.t.lastID++
		p.ID = b.t.lastID
	}
	p.Link = new(Link)
	if same && old.Underlay == p.Underlay && old.Mode == p.Mode && old.Tunnel == p.Tunnel {
		p.Link = old.Link
	}
	b.peersForWrite()
	if same {
		b.forgetUnderlay(old)
	}
	b.s.peers[p.Name] = &p
	b.rememberUnderlay(&p)
	if p.Tunnel.IsValid() {
		b.s.tunnels[p.Tunnel] = &p
	}
	b.lease(p.Subnet, old, &p)
	b.adopt(old, &p, same)
	return p.ID
}

// DeletePeer takes a peer out with all its endpoints.
func (b *Builder) DeletePeer(name string) {
	old := b.s.peers[name]
	if old == nil {
		return
	}
	b.peersForWrite()
	delete(b.s.peers, name)
	b.forgetUnderlay(old)
	b.eachRemote(old.Subnet, func(r *Remote) {
		if r.Peer == old {
			b.DeleteRemote(r.Addr)
		}
	})
	b.lease(old.Subnet, old, nil)
}

// adopt points a replaced peer's endpoints to what replaced it. Those of another,
// whose lease this is no more, are gone: whoever has an address is its
// leaseholder's in every snapshot.
func (b *Builder) adopt(old, p *Peer, same bool) {
	b.eachRemote(p.Subnet, func(r *Remote) {
		if !same || r.Peer != old {
			b.DeleteRemote(r.Addr)
			return
		}
		moved := *r
		moved.Peer = p
		pg, i := b.page(r.Addr)
		pg.remotesForWrite()[i] = &moved
	})
}

// eachRemote visits the remote containers of a lease. f may change the entry.
func (b *Builder) eachRemote(in netip.Prefix, f func(*Remote)) {
	b.s.walk(in, func(p *page) {
		if p.remotes == nil {
			return
		}
		for _, r := range p.remotes {
			if r != nil && in.Contains(r.Addr) {
				f(r)
			}
		}
	})
}

// lease writes who holds a prefix. A nil next takes only old's out, so that a
// lease that already went to another stays there.
func (b *Builder) lease(in netip.Prefix, old, next *Peer) {
	first, last := pageSpan(in)
	base := in.Addr().As4()
	for i := first; i <= last; i++ {
		p, _ := b.page(netip.AddrFrom4([4]byte{base[0], byte(i >> 8), byte(i)}))
		if in.Bits() <= 24 {
			if next != nil || p.whole == old {
				p.whole = next
			}
			continue
		}
		small := p.smallForWrite()
		for j := int(base[3]); j < int(base[3])+1<<(32-in.Bits()); j++ {
			if next != nil || small[j] == old {
				small[j] = next
			}
		}
	}
}

// rememberUnderlay enters p at its outer address, in the place of one that has it whole.
func (b *Builder) rememberUnderlay(p *Peer) {
	addr := p.Underlay.Addr()
	others := slices.DeleteFunc(slices.Clone(b.s.underlays[addr]), func(q *Peer) bool {
		return q.Underlay == p.Underlay || q.Kind == Silk && p.Kind == Silk
	})
	b.s.underlays[addr] = append(others, p)
}

// forgetUnderlay drops old's outer and tunnel address, if it is not another's by
// now.
func (b *Builder) forgetUnderlay(old *Peer) {
	addr := old.Underlay.Addr()
	// Never in place: a snapshot may have the slice.
	others := slices.DeleteFunc(slices.Clone(b.s.underlays[addr]), func(p *Peer) bool { return p == old })
	if len(others) == 0 {
		delete(b.s.underlays, addr)
	} else {
		b.s.underlays[addr] = others
	}
	if b.s.tunnels[old.Tunnel] == old {
		delete(b.s.tunnels, old.Tunnel)
	}
}

func (b *Builder) peersForWrite() {
	if b.ownPeers {
		return
	}
	b.ownPeers = true
	b.s.peers = maps.Clone(b.s.peers)
	b.s.underlays = maps.Clone(b.s.underlays)
	b.s.tunnels = maps.Clone(b.s.tunnels)
}

// page is the page of addr, writable: a copy the first time in this update.
func (b *Builder) page(addr netip.Addr) (*page, int) {
	a := addr.As4()
	br := b.s.root[a[1]]
	if br == nil || br.edition != b.t.edition {
		next := &branch{}
		if br != nil {
			*next = *br
		}
		next.edition = b.t.edition
		b.s.root[a[1]], br = next, next
	}
	p := br.pages[a[2]]
	if p == nil || p.edition != b.t.edition {
		next := &page{}
		if p != nil {
			*next = *p
		}
		next.edition = b.t.edition
		next.ownSmall, next.ownLocals, next.ownRemotes = false, false, false
		br.pages[a[2]], p = next, next
	}
	return p, int(a[3])
}

func (p *page) smallForWrite() *[pageSize]*Peer {
	p.small, p.ownSmall = forWrite(p.small, p.ownSmall), true
	return p.small
}

func (p *page) localsForWrite() *[pageSize]*Local {
	p.locals, p.ownLocals = forWrite(p.locals, p.ownLocals), true
	return p.locals
}

func (p *page) remotesForWrite() *[pageSize]*Remote {
	p.remotes, p.ownRemotes = forWrite(p.remotes, p.ownRemotes), true
	return p.remotes
}

func forWrite[T any](a *[pageSize]*T, own bool) *[pageSize]*T {
	if own {
		return a
	}
	next := new([pageSize]*T)
	if a != nil {
		*next = *a
	}
	return next
}

func (b *Builder) index(app policy.AppID, addr netip.Addr) {
	set := b.t.apps[app]
	if set == nil {
		set = make(map[netip.Addr]struct{})
		b.t.apps[app] = set
	}
	set[addr] = struct{}{}
}

func (b *Builder) unindex(app policy.AppID, addr netip.Addr) {
	delete(b.t.apps[app], addr)
	if len(b.t.apps[app]) == 0 {
		delete(b.t.apps, app)
	}
}
