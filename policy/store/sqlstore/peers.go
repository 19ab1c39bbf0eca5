package sqlstore

import (
	"context"
	"fmt"

	"tulle/policy/api"
	"tulle/policy/store"
)

const vxlanPort = store.SilkPort

func (d *db) AddPeer(ctx context.Context, p api.Peer) error {
	if p.Port == 0 {
		p.Port = vxlanPort
	}
	if p.Mode == "" {
		p.Mode = api.ModeVXLAN
	}
	if p.Mode == api.ModeWireGuard {
		if p.WireGuardPort == 0 {
			p.WireGuardPort = api.DefaultWireGuardPort
		}
		if !p.Tunnel.IsValid() && d.pool.Contains(p.Subnet) {
			p.Tunnel = api.LeasedTunnel(d.pool.Network(), p.Subnet)
		}
	}
	if p.Kind == "" {
		p.Kind = api.KindSilk
	}
	_, err := d.write(ctx, "add peer "+p.Name, func(t *tx) error {
		if err := d.checkPeer(p); err != nil {
			return err
		}
		if _, err := t.expire(""); err != nil {
			return err
		}
		old, known, err := t.cell(p.Name)
		if err != nil {
			return err
		}
		if known && old.live {
			p.Generation = old.Generation
			if p == old.Peer {
				return nil
			}
			return fmt.Errorf("%w: there is a %s peer %s with %s at %s already; remove it first",
				store.ErrConflict, old.Kind, old.Name, old.Subnet, old.Underlay)
		}
		if err := t.underlayFree(p); err != nil {
			return err
		}
		if err := t.tunnelFree(p); err != nil {
			return err
		}
		held, err := listCells(ctx, t)
		if err != nil {
			return err
		}
		for _, c := range held {
			if c.Subnet.Overlaps(p.Subnet) {
				return fmt.Errorf("%w: subnet %s overlaps with %s's %s", store.ErrConflict, p.Subnet, c.Name, c.Subnet)
			}
		}
		if err := t.forget(p.Name, p.Subnet); err != nil {
			return err
		}
		p.Generation = old.Generation + 1
		t.delta.PeersSet = append(t.delta.PeersSet, p)
		t.audit(api.PeerAdd, p.Name, nil, p)
		return t.putCell(cell{Peer: p, live: true, renewed: t.leaseNow().UnixMicro()})
	})
	return err
}

func (d *db) checkPeer(p api.Peer) error {
	switch {
	case p.Name == "":
		return fmt.Errorf("%w: a peer needs a name", store.ErrConflict)
	case p.Kind != api.KindSilk:
		return fmt.Errorf("%w: kind %q: cells lease by themselves, only %s peers are entered", store.ErrConflict, p.Kind, api.KindSilk)
	case p.Mode != api.ModeVXLAN && p.Mode != api.ModeWireGuard:
		return fmt.Errorf("%w: mode %q is neither %s nor %s", store.ErrConflict, p.Mode, api.ModeVXLAN, api.ModeWireGuard)
	case p.Mode == api.ModeVXLAN && (!p.Key.IsZero() || !p.NextKey.IsZero() || p.Tunnel.IsValid() || p.WireGuardPort != 0):
		return fmt.Errorf("%w: a key, a tunnel address and a WireGuard port are for mode %s only", store.ErrConflict, api.ModeWireGuard)
	case p.EncapsulationKey != "":
		return fmt.Errorf("%w: an encapsulation key is for cells, which publish it themselves", store.ErrConflict)
	case !p.NextKey.IsZero():
		return fmt.Errorf("%w: a next key is for cells, which publish it themselves", store.ErrConflict)
	case p.Mode == api.ModeWireGuard && p.Key.IsZero():
		return fmt.Errorf("%w: a peer of mode %s needs its public key", store.ErrConflict, p.Mode)
	case !p.Underlay.Is4() || p.Underlay.IsUnspecified() || p.Underlay.IsMulticast():
		return fmt.Errorf("%w: underlay %q is no IPv4 address of a host", store.ErrConflict, p.Underlay)
	case !p.Subnet.IsValid() || p.Subnet != p.Subnet.Masked():
		return fmt.Errorf("%w: subnet %q is no network", store.ErrConflict, p.Subnet)
	case !d.pool.Network().Contains(p.Subnet.Addr()) || p.Subnet.Bits() <= d.pool.Network().Bits():
		return fmt.Errorf("%w: subnet %s is not a part of the overlay network %s", store.ErrConflict, p.Subnet, d.pool.Network())
	case d.pool.Network().Contains(p.Underlay):
		return fmt.Errorf("%w: underlay %s lies in the overlay network %s", store.ErrConflict, p.Underlay, d.pool.Network())
	}
	return d.checkTunnel(p)
}

// checkTunnel refuses a tunnel address that is none, is in the way of another
// network, or may become a cell's with its lease.
func (d *db) checkTunnel(p api.Peer) error {
	if p.Mode != api.ModeWireGuard {
		return nil
	}
	first := api.LeasedTunnel(d.pool.Network(), d.pool.Subnet(0))
	last := api.LeasedTunnel(d.pool.Network(), d.pool.Subnet(d.pool.Size()-1))
	switch own := api.LeasedTunnel(d.pool.Network(), p.Subnet); {
	case !p.Tunnel.Is4() || !api.TunnelNetwork.Contains(p.Tunnel):
		return fmt.Errorf("%w: tunnel address %q does not lie in %s", store.ErrConflict, p.Tunnel, api.TunnelNetwork)
	case d.pool.Contains(p.Subnet) && p.Tunnel == own:
		return nil
	case p.Tunnel.Compare(first) >= 0 && p.Tunnel.Compare(last) <= 0:
		return fmt.Errorf("%w: tunnel addresses from %s to %s belong to the leases of cells", store.ErrConflict, first, last)
	}
	return nil
}

func (d *db) RemovePeer(ctx context.Context, name string) error {
	_, err := d.write(ctx, "remove peer "+name, func(t *tx) error {
		c, known, err := t.cell(name)
		switch {
		case err != nil:
			return err
		case !known || !c.live:
			return fmt.Errorf("%w: no peer %q", store.ErrNotFound, name)
		case c.Kind != api.KindSilk:
			return fmt.Errorf("%w: %s is a cell, which releases its lease itself", store.ErrConflict, name)
		}
		return t.end(c, api.PeerRemove)
	})
	return err
}
