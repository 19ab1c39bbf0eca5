// Package lease is the arithmetic of leases: how the overlay network is cut
// into subnets, which of them is free, which addresses of one a container may
// have, and how long a lease is kept after its time.
//
// Package store calls it within its transactions. The package is pure: chance
// and the list of what is taken are given in, nothing is kept.
package lease

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// MaxSubnets bounds the pool, and so the work of one choice.
const MaxSubnets = 1 << 20

// ErrExhausted: every subnet of the pool is taken.
var ErrExhausted = errors.New("every subnet of the pool is taken")

// Pool is an overlay network cut into subnets of one size. The first subnet is
// never given: its addresses are the single-IP leases of silk
// (reference: silk-controller, pools and addresses). Pool is a value.
type Pool struct {
	network netip.Prefix
	bits    int
}

// NewPool cuts network into subnets with prefixes of length bits, which must be
// longer than the network's and at most 30.
func NewPool(network netip.Prefix, bits int) (Pool, error) {
	switch {
	case !network.IsValid() || !network.Addr().Is4():
		return Pool{}, fmt.Errorf("overlay network %q: not an IPv4 prefix", network)
	case network != network.Masked():
		return Pool{}, fmt.Errorf("overlay network %s: has host bits, use %s", network, network.Masked())
	case network.Bits() > 29:
		return Pool{}, fmt.Errorf("overlay network %s: too small, must be a /29 or larger", network)
	case bits <= network.Bits() || bits > 30:
		return Pool{}, fmt.Errorf("lease prefix length %d: must be %d to 30 in network %s", bits, network.Bits()+1, network)
	case bits-network.Bits() > 20:
		return Pool{}, fmt.Errorf("lease prefix length %d: cuts %s into more than %d subnets", bits, network, MaxSubnets)
	}
	return Pool{network, bits}, nil
}

// Network is the whole overlay network.
func (p Pool) Network() netip.Prefix { return p.network }

// Size is the number of subnets that can be given.
func (p Pool) Size() int { return 1<<(p.bits-p.network.Bits()) - 1 }

// Subnet is the i-th subnet that can be given, i from 0 to Size()-1.
func (p Pool) Subnet(i int) netip.Prefix {
	return netip.PrefixFrom(fromUint(toUint(p.network.Addr())+uint32(i+1)<<(32-p.bits)), p.bits)
}

// Contains reports whether s is one of the pool's subnets: right length, right
// alignment, inside the network, and not the first.
func (p Pool) Contains(s netip.Prefix) bool {
	return s.IsValid() && s.Addr().Is4() && s.Bits() == p.bits && s == s.Masked() &&
		p.network.Contains(s.Addr()) && s.Addr() != p.network.Addr()
}

// Used counts the pool's subnets that overlap with one of taken.
func (p Pool) Used(taken []netip.Prefix) int {
	n := 0
	for _, used := range p.mark(taken) {
		if used {
			n++
		}
	}
	return n
}

// Choose picks a subnet that overlaps with none of taken. It draws among those
// that are not in avoid either, and takes one of avoid only when nothing else is
// left; so a cell that comes back late mostly finds its old subnet free.
// random(n) gives a number from 0 to n-1. ErrExhausted when all are taken.
func (p Pool) Choose(taken, avoid []netip.Prefix, random func(n int) int) (netip.Prefix, error) {
	used := p.mark(taken)
	avoided := p.mark(avoid)
	var free, second []int
	for i := range used {
		switch {
		case used[i]:
		case avoided[i]:
			second = append(second, i)
		default:
			free = append(free, i)
		}
	}
	if len(free) == 0 {
		free = second
	}
	if len(free) == 0 {
		return netip.Prefix{}, ErrExhausted
	}
	return p.Subnet(free[random(len(free))]), nil
}

// mark says for each subnet of the pool whether one of prefixes overlaps with
// it. Prefixes may be shorter or longer than the pool's subnets: a silk peer has
// the subnet its own controller gave it.
func (p Pool) mark(prefixes []netip.Prefix) []bool {
	used := make([]bool, p.Size())
	base, shift := toUint(p.network.Addr()), 32-p.bits
	for _, t := range prefixes {
		if !t.IsValid() || !t.Addr().Is4() || !t.Overlaps(p.network) {
			continue
		}
		if t.Bits() <= p.network.Bits() {
			for i := range used {
				used[i] = true
			}
			return used
		}
		first := toUint(t.Masked().Addr())
		last := first | (1<<(32-t.Bits()) - 1)
		for i := (first - base) >> shift; i <= (last-base)>>shift; i++ {
			if i > 0 {
				used[i-1] = true
			}
		}
	}
	return used
}

// Usable reports whether a container in subnet may have addr: not the base
// address, which is the cell's own tunnel endpoint, and not the last one.
func Usable(subnet netip.Prefix, addr netip.Addr) bool {
	if !addr.Is4() || !subnet.Contains(addr) {
		return false
	}
	host := toUint(addr) & (1<<(32-subnet.Bits()) - 1)
	return host != 0 && host != 1<<(32-subnet.Bits())-1
}

// Grace is how long after its lifetime a lease is still kept for its cell. The
// cell counts its lifetime from the answer on, on its own clock; the grace
// covers the answer's way and the drift of two clocks.
func Grace(lifetime time.Duration) time.Duration {
	return min(lifetime/10, 10*time.Minute)
}

func toUint(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func fromUint(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}
