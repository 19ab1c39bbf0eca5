package fib

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"tulle/policy"
)

// ErrNetwork is the kind of every error about prefixes that do not fit.
var ErrNetwork = errors.New("network does not fit")

// Table is the current snapshot and the way to the next. Readers call Load from
// any goroutine; updates are taken one at a time.
type Table struct {
	current atomic.Pointer[Snapshot]

	mu      sync.Mutex // guards what follows, which only updates use
	edition uint64
	lastID  uint32
	apps    map[policy.AppID]map[netip.Addr]struct{}
}

// New is an empty table of a cell with the lease self in the network overlay:
// IPv4, the overlay a /8 or smaller, the lease inside it.
func New(overlay, self netip.Prefix) (*Table, error) {
	overlay, self = overlay.Masked(), self.Masked()
	switch {
	case !overlay.IsValid() || !overlay.Addr().Is4() || overlay.Bits() < 8:
		return nil, fmt.Errorf("overlay network %s: %w: need an IPv4 network of at most 2^24 addresses", overlay, ErrNetwork)
	case !self.IsValid() || self.Bits() < overlay.Bits() || !overlay.Contains(self.Addr()):
		return nil, fmt.Errorf("lease %s: %w: not inside the overlay network %s", self, ErrNetwork, overlay)
	}
	t := &Table{apps: make(map[policy.AppID]map[netip.Addr]struct{})}
	t.current.Store(&Snapshot{
		overlay:   overlay,
		self:      self,
		underlays: make(map[netip.Addr][]*Peer),
		tunnels:   make(map[netip.Addr]*Peer),
		peers:     make(map[string]*Peer),
	})
	return t, nil
}

// Load is the current snapshot.
func (t *Table) Load() *Snapshot { return t.current.Load() }

// Update publishes what change did to the builder, all at once. The builder is
// dead when change returns. Concurrent updates wait for each other; change must
// not call Update.
func (t *Table) Update(change func(*Builder)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.edition++
	next := *t.current.Load()
	b := &Builder{t: t, s: &next}
	change(b)
	t.current.Store(&next)
	b.s = nil
}
