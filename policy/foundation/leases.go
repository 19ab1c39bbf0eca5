package foundation

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"tulle/policy/api"
	"tulle/policy/lease"
)

// Lease renews the lease that the request names, or acquires one. It is the
// journal's subnet that is renewed: a controller that has lost its data takes it
// back from there. Where the controller says that the lease is not, or no longer,
// this address's, it gives the one that is; the daemon then ends the containers of
// the former.
func (c *Client) Lease(ctx context.Context, r api.LeaseRequest) (api.Lease, error) {
	if r.Mode != api.ModeVXLAN || r.Underlay != c.opt.Underlay || r.Port != c.opt.Port {
		return api.Lease{}, fmt.Errorf("lease: asked for %v port %d in mode %s; this cell has %v port %d in mode vxlan",
			r.Underlay, r.Port, r.Mode, c.opt.Underlay, c.opt.Port)
	}
	if r.Subnet.IsValid() && r.Generation != 0 && c.pool.Contains(r.Subnet) {
		err := c.renew(ctx, r.Underlay, r.Subnet)
		if err == nil {
			return c.granted(r.Subnet, r.Generation), nil
		}
		if !lost(err) {
			return api.Lease{}, fmt.Errorf("renew lease %s: %w", r.Subnet, err)
		}
		c.log.Error("the lease is lost", "lease", r.Subnet, "err", err)
	}
	subnet, err := c.acquire(ctx, r.Underlay)
	if err != nil {
		return api.Lease{}, fmt.Errorf("acquire a lease: %w", err)
	}
	// What is acquired may be a lease of before, long expired: only a renewal keeps
	// others from taking it, and the list has it from then on.
	if err := c.renew(ctx, r.Underlay, subnet); err != nil {
		return api.Lease{}, fmt.Errorf("renew lease %s, just acquired: %w", subnet, err)
	}
	return c.granted(subnet, c.generation(r.Generation)), nil
}

// Release gives the lease back, as silk's teardown does.
func (c *Client) Release(ctx context.Context) error {
	if err := c.leases.do(ctx, http.MethodPut, api.PathSilkRelease, api.SilkRelease{UnderlayIP: c.opt.Underlay.String()}, nil); err != nil {
		return fmt.Errorf("release lease: %w", err)
	}
	return nil
}

// lost tells a refusal of the lease itself from one that may pass (reference:
// silk-controller, 1.5: 409 is not to be tried again).
func lost(err error) bool {
	var r *Refusal
	return errors.As(err, &r) && r.Code == http.StatusConflict
}

func (c *Client) granted(subnet netip.Prefix, generation uint64) api.Lease {
	c.mu.Lock()
	c.subnet = subnet
	c.mu.Unlock()
	return api.Lease{Cell: c.opt.Cell, Network: c.opt.Network, Subnet: subnet, Generation: generation, Seconds: int64(c.opt.LeaseLifetime.Seconds())}
}

// generation numbers a lease that is new to this cell: nobody else counts them
// here. Seconds of the wall's clock are greater than any of before, or one more
// than what was held where the clock has been set back.
func (c *Client) generation(held uint64) uint64 {
	return max(uint64(c.opt.Now().Unix()), held+1)
}

func (c *Client) renew(ctx context.Context, underlay netip.Addr, subnet netip.Prefix) error {
	return c.leases.do(ctx, http.MethodPut, api.PathSilkRenew, api.SilkLease{
		UnderlayIP: underlay.String(), OverlaySubnet: subnet.String(), OverlayHardwareAddr: lease.Hardware(subnet),
	}, nil)
}

func (c *Client) acquire(ctx context.Context, underlay netip.Addr) (netip.Prefix, error) {
	var got api.SilkLease
	if err := c.leases.do(ctx, http.MethodPut, api.PathSilkAcquire, api.SilkAcquire{UnderlayIP: underlay.String()}, decode(&got)); err != nil {
		return netip.Prefix{}, err
	}
	subnet, err := netip.ParsePrefix(got.OverlaySubnet)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("silk-controller: %w", err)
	case c.pool.ContainsSingle(subnet):
		return netip.Prefix{}, fmt.Errorf("silk-controller: %s has a single address, %s, of a host without containers: release it first", underlay, subnet)
	case !c.pool.Contains(subnet):
		return netip.Prefix{}, fmt.Errorf("silk-controller: %s is no /%d of %s: network and subnet length must be those of the foundation", subnet, c.opt.SubnetBits, c.opt.Network)
	case got.UnderlayIP != underlay.String() || !strings.EqualFold(got.OverlayHardwareAddr, lease.Hardware(subnet)):
		return netip.Prefix{}, fmt.Errorf("silk-controller: its lease makes no sense: %+v", got)
	}
	return subnet, nil
}

// list is all leases that are alive.
func (c *Client) list(ctx context.Context) ([]api.SilkLease, error) {
	var got api.SilkLeases
	if err := c.leases.do(ctx, http.MethodGet, api.PathSilkLeases, nil, decode(&got)); err != nil {
		return nil, err
	}
	if got.Leases == nil {
		return nil, errors.New("silk-controller: an answer without leases, not even none")
	}
	return got.Leases, nil
}
