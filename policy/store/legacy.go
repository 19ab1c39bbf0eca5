package store

import (
	"context"
	"errors"
	"net/netip"
)

// Why a silk lease is not renewed.
var (
	// ErrLeaseMismatch: the address holds another lease.
	ErrLeaseMismatch = errors.New("lease mismatch")
	// ErrNotInPool: the subnet is none that the overlay network is cut into.
	ErrNotInPool = errors.New("overlay subnet not in pool")
	// ErrSubnetTaken: the subnet is another's.
	ErrSubnetTaken = errors.New("overlay subnet is taken")
)

// SilkLease is a lease as silk-controller has it: an underlay address and its
// part of the overlay, a block or a single address (/32).
type SilkLease struct {
	Underlay netip.Addr
	Subnet   netip.Prefix
}

// SilkStore keeps the leases of silk cells, which are those of their underlay
// address. To Tulle cells each is a peer of kind silk in vxlan mode, in the same
// revisions as everything else; it comes from the pool that the cells lease
// from. A silk peer that was entered by AddPeer counts as the lease of its
// address, but never runs out and is not given up by ReleaseSilk.
type SilkStore interface {
	// SilkLeases lists what a silk cell can reach: live leases and peers of IPv4
	// underlay in vxlan mode at its port, Tulle's cells among them.
	SilkLeases(ctx context.Context) ([]SilkLease, error)
	// AcquireSilk is the lease of the address, held (whatever its kind, and not
	// renewed) or new. ErrNoLease, ErrConflict.
	AcquireSilk(ctx context.Context, underlay netip.Addr, single bool) (SilkLease, error)
	// RenewSilk renews a lease. One that the store does not know is entered,
	// when it is one of the pool's and free. ErrLeaseMismatch, ErrNotInPool,
	// ErrSubnetTaken, ErrConflict.
	RenewSilk(ctx context.Context, l SilkLease) error
	// ReleaseSilk ends the lease of the address; no lease is no error.
	ReleaseSilk(ctx context.Context, underlay netip.Addr) error
}
