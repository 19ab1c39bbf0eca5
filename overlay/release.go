package overlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"tulle/overlay/endpoint"
)

// ErrAttached: a cell that has containers keeps its lease.
var ErrAttached = errors.New("containers are attached: end them first, with the daemon running")

// Release gives back the lease of a cell whose daemon has stopped for good, so that
// its subnet is free at once and not when the lease runs out. It returns the subnet;
// none where there was no lease.
func Release(ctx context.Context, cfg Config) (subnet netip.Prefix, err error) {
	c, err := cfg.controlPlane()
	if err != nil {
		return netip.Prefix{}, err
	}
	defer c.Close()
	// Locked: a daemon that runs is told of here.
	ledger, err := endpoint.Open(endpoint.Options{Dir: cfg.StateDir, Now: bootClock{}.Boot, Log: cfg.Log})
	if err != nil {
		return netip.Prefix{}, err
	}
	defer func() { err = errors.Join(err, ledger.Close()) }()
	if n := len(ledger.List()); n > 0 {
		return netip.Prefix{}, fmt.Errorf("%d %w", n, ErrAttached)
	}
	lease, there := ledger.Lease()
	if !there {
		return netip.Prefix{}, nil
	}
	// First here: whatever comes of the request, no daemon goes on from this lease
	// without asking.
	lease.Expires, lease.Wall = 0, time.Time{}
	if err := ledger.SetLease(lease); err != nil {
		return netip.Prefix{}, err
	}
	return lease.Subnet, c.Release(ctx)
}
