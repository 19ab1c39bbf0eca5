package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"

	"tulle/policy/api"
	"tulle/policy/lease"
	"tulle/policy/store"
)

func (d *db) SilkLeases(ctx context.Context) ([]store.SilkLease, error) {
	var cells []cell
	if err := d.read(ctx, "read silk leases", func(q querier) error {
		now, err := d.now(ctx, q)
		if err != nil {
			return err
		}
		now = d.leaseTime(now)
		cells, err = list(ctx, q, func(r *sql.Rows, c *cell) error { return scanCell(r, c) },
			`SELECT `+cellColumns+` FROM cells WHERE live = 1 AND mode = ? AND port = ? AND (expires = 0 OR expires > ?)
			ORDER BY name`, api.ModeVXLAN, vxlanPort, now.UnixMicro())
		return err
	}); err != nil {
		return nil, err
	}
	leases := []store.SilkLease{}
	for _, c := range cells {
		if c.Underlay.Is4() {
			leases = append(leases, store.SilkLease{Underlay: c.Underlay, Subnet: c.Subnet})
		}
	}
	return leases, nil
}

func (d *db) AcquireSilk(ctx context.Context, underlay netip.Addr, single bool) (store.SilkLease, error) {
	answer := store.SilkLease{Underlay: underlay}
	_, err := d.write(ctx, "acquire lease of "+underlay.String(), func(t *tx) error {
		old, err := t.silk(underlay)
		if err != nil {
			return err
		}
		if old.live && (old.expires == 0 || d.leasable(old.Subnet)) {
			answer.Subnet = old.Subnet
			return nil
		}
		held, _, err := subnets(ctx, t, old.Name, t.leaseNow())
		if err != nil {
			return err
		}
		if d.leasable(old.Subnet) && !overlaps(old.Subnet, held) {
			// It ran out, and nobody else has it by now.
			answer.Subnet = old.Subnet
		} else if answer.Subnet, err = t.chooseSilk(old.Name, held, single); err != nil {
			return err
		}
		return t.grantSilk(old, answer)
	})
	if err != nil {
		return store.SilkLease{}, err
	}
	return answer, nil
}

func (d *db) RenewSilk(ctx context.Context, l store.SilkLease) error {
	_, err := d.write(ctx, "renew lease of "+l.Underlay.String(), func(t *tx) error {
		old, err := t.silk(l.Underlay)
		if err != nil {
			return err
		}
		if old.Subnet.IsValid() {
			if old.Subnet != l.Subnet {
				return store.ErrLeaseMismatch
			}
			if old.live && old.expires == 0 {
				return t.exec(`UPDATE cells SET renewed = ? WHERE name = ?`, t.leaseNow().UnixMicro(), old.Name)
			}
		}
		if !d.leasable(l.Subnet) {
			return store.ErrNotInPool
		}
		held, _, err := subnets(ctx, t, old.Name, t.leaseNow())
		if err != nil {
			return err
		}
		if overlaps(l.Subnet, held) {
			return store.ErrSubnetTaken
		}
		return t.grantSilk(old, l)
	})
	return err
}

func (d *db) ReleaseSilk(ctx context.Context, underlay netip.Addr) error {
	_, err := d.write(ctx, "release lease of "+underlay.String(), func(t *tx) error {
		c, known, err := t.cell(store.SilkName(underlay))
		if err != nil || !known {
			return err
		}
		if c.live {
			if err := t.end(c, api.LeaseRelease); err != nil {
				return err
			}
		}
		return t.exec(`UPDATE cells SET subnet = NULL WHERE name = ?`, c.Name)
	})
	return err
}

// leasable reports whether the pool gives s to silk cells.
func (d *db) leasable(s netip.Prefix) bool { return d.pool.Contains(s) || d.pool.ContainsSingle(s) }

// silk is the row of the silk peer at an underlay address: the one that holds
// it, else that of its own past leases, else a new one. What has run out has
// ended before.
func (t *tx) silk(underlay netip.Addr) (cell, error) {
	own := cell{Peer: api.Peer{Name: store.SilkName(underlay), Kind: api.KindSilk, Mode: api.ModeVXLAN, Underlay: underlay, Port: vxlanPort}}
	switch network := t.db.pool.Network(); {
	case !underlay.Is4() || underlay.IsUnspecified() || underlay.IsMulticast():
		return own, fmt.Errorf("%w: underlay %s is no IPv4 address of a host", store.ErrConflict, underlay)
	case network.Contains(underlay):
		return own, fmt.Errorf("%w: underlay %s lies in the overlay network %s", store.ErrConflict, underlay, network)
	}
	if _, err := t.expire(""); err != nil {
		return own, err
	}
	// Of a silk peer's frames only the address counts, so whatever its port, it has
	// the address to itself; a cell of ours at this port comes first.
	var holder string
	held, err := found(t.row(&holder, `SELECT name FROM cells WHERE live = 1 AND underlay = ? AND (port = ? OR kind = ?)
		ORDER BY kind DESC LIMIT 1`, underlay.String(), vxlanPort, api.KindSilk))
	if err != nil {
		return own, err
	}
	if !held {
		holder = own.Name
	}
	c, known, err := t.cell(holder)
	switch {
	case err != nil:
		return own, err
	case !known:
		return own, nil
	case c.Kind != api.KindSilk:
		return own, fmt.Errorf("%w: underlay %s is the cell %s's", store.ErrConflict, underlay, c.Name)
	case !c.live && c.Underlay != underlay: // the name was an operator's peer once
		c.Peer = own.Peer
	}
	return c, nil
}

// chooseSilk draws a free subnet, or takes the one that ran out the longest time
// ago.
func (t *tx) chooseSilk(name string, held []netip.Prefix, single bool) (netip.Prefix, error) {
	past, err := list(t.ctx, t, func(r *sql.Rows, c *cell) error { return scanCell(r, c) },
		`SELECT `+cellColumns+` FROM cells WHERE live = 0 AND subnet IS NOT NULL AND name <> ? ORDER BY expires, name`, name)
	if err != nil {
		return netip.Prefix{}, err
	}
	expired := make([]netip.Prefix, len(past))
	for i, c := range past {
		expired[i] = c.Subnet
	}
	s, err := t.db.pool.ChooseSilk(single, held, expired, t.db.options.Random)
	if errors.Is(err, lease.ErrExhausted) {
		return s, store.ErrNoLease
	}
	return s, err
}

// grantSilk stores a lease, new or renewed. Whoever had the subnet in memory
// loses it.
func (t *tx) grantSilk(old cell, l store.SilkLease) error {
	c := old
	c.Subnet, c.live, c.renewed = l.Subnet, true, t.leaseNow().UnixMicro()
	c.expires = t.leaseNow().Add(t.db.options.Lease.Lifetime).UnixMicro()
	if !old.live || old.Subnet != l.Subnet {
		c.Generation++
		t.delta.PeersSet = append(t.delta.PeersSet, c.Peer)
		if old.live {
			t.audit(api.LeaseChange, c.Name, old.Peer, c.Peer)
		} else {
			t.audit(api.LeaseGrant, c.Name, nil, c.Peer)
		}
		if err := t.forget(c.Name, l.Subnet); err != nil {
			return err
		}
	}
	return t.putCell(c)
}
