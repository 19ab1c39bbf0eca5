package lease

import (
	"fmt"
	"net/netip"
)

// Singles is the number of single-IP leases: the addresses of the first subnet
// but for its base, the last one included (reference: silk-controller, 1.3).
func (p Pool) Singles() int { return 1<<(32-p.bits) - 1 }

// Single is the i-th single-IP lease, i from 0 to Singles()-1.
func (p Pool) Single(i int) netip.Prefix {
	return netip.PrefixFrom(fromUint(toUint(p.network.Addr())+uint32(i+1)), 32)
}

// ContainsSingle reports whether s is one of the single-IP leases.
func (p Pool) ContainsSingle(s netip.Prefix) bool {
	if !s.IsValid() || !s.Addr().Is4() || s.Bits() != 32 || !p.network.Contains(s.Addr()) {
		return false
	}
	i := toUint(s.Addr()) - toUint(p.network.Addr())
	return i > 0 && i < 1<<(32-p.bits)
}

// Of reports whether s can be leased to a silk cell, as a block or, where single
// is true, as a single address.
func (p Pool) Of(s netip.Prefix, single bool) bool {
	if single {
		return p.ContainsSingle(s)
	}
	return p.Contains(s)
}

// ChooseSilk picks a block or a single address as silk-controller does: by
// chance among those that overlap with nothing held and nothing expired; when
// there is none, the first of expired that is of the kind and that nothing held
// overlaps. random(n) gives a number from 0 to n-1. ErrExhausted.
func (p Pool) ChooseSilk(single bool, held, expired []netip.Prefix, random func(n int) int) (netip.Prefix, error) {
	size, at, mark := p.Size(), p.Subnet, p.mark
	if single {
		size, at, mark = p.Singles(), p.Single, p.markSingles
	}
	used, avoided := mark(held), mark(expired)
	var free []int
	for i := range size {
		if !used[i] && !avoided[i] {
			free = append(free, i)
		}
	}
	if len(free) > 0 {
		return at(free[random(len(free))]), nil
	}
	for _, s := range expired {
		if p.Of(s, single) && !overlapsAny(s, held) {
			return s, nil
		}
	}
	return netip.Prefix{}, ErrExhausted
}

// markSingles is mark for the single addresses.
func (p Pool) markSingles(prefixes []netip.Prefix) []bool {
	used := make([]bool, p.Singles())
	for _, t := range prefixes {
		if p.ContainsSingle(t) { // nearly all of them
			used[toUint(t.Addr())-toUint(p.network.Addr())-1] = true
			continue
		}
		for i := range used {
			used[i] = used[i] || t.IsValid() && t.Overlaps(p.Single(i))
		}
	}
	return used
}

func overlapsAny(s netip.Prefix, list []netip.Prefix) bool {
	for _, o := range list {
		if s.Overlaps(o) {
			return true
		}
	}
	return false
}

// Hardware is the Ethernet address of the tunnel endpoint of a lease: ee:ee and
// the four bytes of the subnet's address (reference: silk-controller, 1.3).
func Hardware(subnet netip.Prefix) string {
	a := subnet.Addr().As4()
	return fmt.Sprintf("ee:ee:%02x:%02x:%02x:%02x", a[0], a[1], a[2], a[3])
}
