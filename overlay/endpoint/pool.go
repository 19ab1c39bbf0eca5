package endpoint

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"tulle/policy/api"
)

// How long a freed address rests.
const (
	// MinRest is the least: segments and answers of the old owner die out.
	MinRest = 60 * time.Second
	// MaxRest is how long an address waits for the cells that knew its old
	// owner to acknowledge the end. A cell silent longer is covered by
	// incarnations and by the verdict at the other end.
	MaxRest = 10 * time.Minute
)

// Why there is no address.
var (
	// ErrPoolEmpty: every address of the lease is in use or rests.
	ErrPoolEmpty = errors.New("no address is free")
	// ErrResting: the one asked for was somebody's a moment ago.
	ErrResting = errors.New("the address is not free yet")
	// ErrNoAddress: the one asked for is in use, or is not the cell's to give.
	ErrNoAddress = errors.New("the address cannot be had")
)

// Pool hands out the addresses of a lease: all but the first, which is the
// cell's own tunnel endpoint, and the last. What comes back goes to the end of
// the queue. A Pool is for one goroutine at a time; time is given in and only
// ever compared with itself.
type Pool struct {
	free  []resting // front first
	inUse map[netip.Addr]bool
	floor api.Revision
}

// resting is an address in the queue. Never used ones have no freed time.
type resting struct {
	addr     netip.Addr
	used     bool
	freed    time.Duration
	revision api.Revision // from which on no cell knows the old owner; 0: not known yet
}

// NewPool is a pool of subnet's addresses, an IPv4 prefix of at least /30.
func NewPool(subnet netip.Prefix) (*Pool, error) {
	subnet = subnet.Masked()
	if !subnet.Addr().Is4() || subnet.Bits() > 30 || subnet.Bits() < 16 {
		return nil, fmt.Errorf("lease %s: an IPv4 network of /16 to /30 is needed", subnet)
	}
	n := 1 << (32 - subnet.Bits())
	p := &Pool{inUse: make(map[netip.Addr]bool), free: make([]resting, 0, n-2)}
	a := subnet.Addr()
	for range n - 2 {
		a = a.Next()
		p.free = append(p.free, resting{addr: a})
	}
	return p, nil
}

// Take gives out the address that has been in the queue longest and has rested.
func (p *Pool) Take(now time.Duration) (netip.Addr, error) {
	for i, r := range p.free {
		if p.rested(r, now) {
			p.free = append(p.free[:i], p.free[i+1:]...)
			p.inUse[r.addr] = true
			return r.addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%w: of %d, %d are in use and %d rest after use", ErrPoolEmpty, len(p.free)+len(p.inUse), len(p.inUse), len(p.free))
}

// Ask gives out a certain address, which must be free and have rested.
func (p *Pool) Ask(a netip.Addr, now time.Duration) error {
	for _, r := range p.free {
		if r.addr == a && !p.rested(r, now) {
			return fmt.Errorf("%w: %s rests after its last use, at most %v", ErrResting, a, MaxRest)
		}
	}
	if err := p.Claim(a); err != nil {
		return fmt.Errorf("%w: %w", ErrNoAddress, err)
	}
	return nil
}

func (p *Pool) rested(r resting, now time.Duration) bool {
	if !r.used {
		return true
	}
	idle := now - r.freed
	return idle >= MinRest && (r.revision != 0 && r.revision <= p.floor || idle >= MaxRest)
}

// Claim takes a certain address, as a journal's record names it.
func (p *Pool) Claim(a netip.Addr) error {
	for i, r := range p.free {
		if r.addr == a {
			p.free = append(p.free[:i], p.free[i+1:]...)
			p.inUse[a] = true
			return nil
		}
	}
	if p.inUse[a] {
		return fmt.Errorf("address %s is in use", a)
	}
	return fmt.Errorf("address %s is not in the lease", a)
}

// Put gives an address back. It rests until MinRest has passed and Floor has
// reached the revision that Gone will name, at most MaxRest.
func (p *Pool) Put(a netip.Addr, now time.Duration) {
	if p.inUse[a] {
		delete(p.inUse, a)
		p.free = append(p.free, resting{addr: a, used: true, freed: now})
	}
}

// Return gives back an address that nobody ever learned of: it need not rest.
func (p *Pool) Return(a netip.Addr) {
	if p.inUse[a] {
		delete(p.inUse, a)
		p.free = append([]resting{{addr: a}}, p.free...)
	}
}

// Gone says at which revision the control plane took the address's end in.
func (p *Pool) Gone(a netip.Addr, at api.Revision) {
	for i := range p.free {
		if r := &p.free[i]; r.addr == a && r.used && r.revision == 0 {
			r.revision = at
		}
	}
}

// Floor is the lowest revision that all concerned cells acknowledged. Another
// epoch starts lower again.
func (p *Pool) Floor(floor api.Revision) { p.floor = floor }

// Counts are the addresses in use, resting, and free to take.
func (p *Pool) Counts(now time.Duration) (inUse, rest, free int) {
	for _, r := range p.free {
		if p.rested(r, now) {
			free++
		} else {
			rest++
		}
	}
	return len(p.inUse), rest, free
}

// queue lists what is free, front first, and which of it was used: the order is
// kept over a restart, and the rest starts anew.
func (p *Pool) queue() (addrs []netip.Addr, used int) {
	for _, r := range p.free {
		if !r.used {
			addrs = append(addrs, r.addr)
		}
	}
	for _, r := range p.free {
		if r.used {
			addrs = append(addrs, r.addr)
			used++
		}
	}
	return addrs, used
}

// restore puts the queue in a kept order. Addresses it does not name stay in front.
func (p *Pool) restore(addrs []netip.Addr, used int, now time.Duration) error {
	for i, a := range addrs {
		if err := p.Claim(a); err != nil {
			return err
		}
		delete(p.inUse, a)
		r := resting{addr: a}
		if i >= len(addrs)-used {
			r.used, r.freed = true, now
		}
		p.free = append(p.free, r)
	}
	return nil
}
