package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"tulle/policy/api"
	"tulle/policy/lease"
	"tulle/policy/store"
)

// maxGeneration keeps generations in the upper half of an incarnation.
const maxGeneration = math.MaxUint32

// cell is a row of the table cells.
type cell struct {
	api.Peer
	live             bool
	renewed, expires int64
	sequence         int64
}

const cellColumns = `name, kind, mode, underlay, port, subnet, generation, live, renewed, expires, sequence,
	key, next_key, wireguard_port, tunnel, encapsulation_key`

func scanCell(row interface{ Scan(...any) error }, c *cell) error {
	var underlay, key, next, tunnel, encapsulation string
	var subnet sql.NullString
	err := row.Scan(&c.Name, &c.Kind, &c.Mode, &underlay, &c.Port, &subnet, &c.Generation,
		&c.live, &c.renewed, &c.expires, &c.sequence, &key, &next, &c.WireGuardPort, &tunnel, &encapsulation)
	if err != nil {
		return err
	}
	if err = errors.Join(c.Key.UnmarshalText([]byte(key)), c.NextKey.UnmarshalText([]byte(next)), c.EncapsulationKey.UnmarshalText([]byte(encapsulation))); err != nil {
		return err
	}
	if tunnel != "" {
		if c.Tunnel, err = netip.ParseAddr(tunnel); err != nil {
			return err
		}
	}
	if c.Underlay, err = netip.ParseAddr(underlay); err != nil {
		return err
	}
	if subnet.Valid {
		c.Subnet, err = netip.ParsePrefix(subnet.String)
	}
	return err
}

// cell reads one row; ok is false when there is none.
func (t *tx) cell(name string) (c cell, ok bool, err error) {
	ok, err = found(scanCell(t.QueryRowContext(t.ctx, `SELECT `+cellColumns+` FROM cells WHERE name = ?`, name), &c))
	return c, ok, err
}

func (t *tx) putCell(c cell) error {
	live := 0 // a number in every database
	if c.live {
		live = 1
	}
	encapsulation, err := c.EncapsulationKey.MarshalText()
	if err != nil {
		return err
	}
	tunnel := ""
	if c.Tunnel.IsValid() {
		tunnel = c.Tunnel.String()
	}
	return t.exec(`INSERT INTO cells (`+cellColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET kind = excluded.kind, mode = excluded.mode, underlay = excluded.underlay,
		port = excluded.port, subnet = excluded.subnet, generation = excluded.generation, live = excluded.live,
		renewed = excluded.renewed, expires = excluded.expires, sequence = excluded.sequence,
		key = excluded.key, next_key = excluded.next_key, wireguard_port = excluded.wireguard_port, tunnel = excluded.tunnel,
		encapsulation_key = excluded.encapsulation_key`,
		c.Name, c.Kind, c.Mode, c.Underlay.String(), c.Port, c.Subnet.String(), c.Generation,
		live, c.renewed, c.expires, c.sequence, c.Key.String(), c.NextKey.String(), c.WireGuardPort, tunnel, string(encapsulation))
}

func (d *db) Lease(ctx context.Context, name string, r api.LeaseRequest) (api.Lease, error) {
	answer := api.Lease{Cell: name, Network: d.pool.Network(), Seconds: int64(d.options.Lease.Lifetime / time.Second)}
	revision, err := d.write(ctx, "lease of "+name, func(t *tx) error {
		if err := d.checkLease(name, r); err != nil {
			return err
		}
		if _, err := t.expire(name); err != nil {
			return err
		}
		old, known, err := t.cell(name)
		if err != nil {
			return err
		}
		if known && old.Kind != api.KindTulle {
			return fmt.Errorf("%w: %s is a %s peer", store.ErrConflict, name, old.Kind)
		}
		c := cell{
			Peer: api.Peer{Name: name, Kind: api.KindTulle, Mode: r.Mode, Underlay: r.Underlay, Port: r.Port},
			live: true, renewed: t.leaseNow().UnixMicro(),
			expires: t.leaseNow().Add(d.options.Lease.Lifetime + lease.Grace(d.options.Lease.Lifetime)).UnixMicro(),
		}
		if r.Mode == api.ModeWireGuard {
			c.Key, c.NextKey, c.WireGuardPort, c.EncapsulationKey = r.Key, r.NextKey, r.WireGuardPort, r.EncapsulationKey
		}
		if err := t.underlayFree(c.Peer); err != nil {
			return err
		}
		if c.Subnet, err = t.subnetFor(name, old.Subnet, r.Subnet); err != nil {
			return err
		}
		if r.Mode == api.ModeWireGuard {
			c.Tunnel = api.LeasedTunnel(d.pool.Network(), c.Subnet)
		}
		if err := t.tunnelFree(c.Peer); err != nil {
			return err
		}
		held := old.live && (old.expires > t.leaseNow().UnixMicro()) && c.Subnet == old.Subnet
		if held && r.Generation == old.Generation && (!r.Subnet.IsValid() || r.Subnet == c.Subnet) {
			c.Generation, c.sequence = old.Generation, old.sequence
		} else {
			// Above what the cell ever used, too: this store may have been restored
			// from a time before.
			c.Generation = max(old.Generation, r.Generation) + 1
			if c.Generation > maxGeneration {
				return fmt.Errorf("%w: no generation is left after %d", store.ErrConflict, c.Generation-1)
			}
			if err := t.removeEndpoints(name); err != nil {
				return err
			}
		}
		switch {
		case !old.live:
			t.delta.PeersSet = append(t.delta.PeersSet, c.Peer)
			t.audit(api.LeaseGrant, name, nil, short(c.Peer))
		case c.Peer != old.Peer:
			t.delta.PeersSet = append(t.delta.PeersSet, c.Peer)
			if short(c.Peer) != short(old.Peer) {
				t.audit(api.LeaseChange, name, short(old.Peer), short(c.Peer))
			}
		}
		if c.EncapsulationKey == "" && old.EncapsulationKey != "" {
			if err := t.dropSecrets(name); err != nil {
				return err
			}
		}
		answer.Subnet, answer.Generation = c.Subnet, c.Generation
		return t.putCell(c)
	})
	if err != nil {
		return api.Lease{}, err
	}
	answer.Epoch, answer.Revision = d.Epoch(), revision
	return answer, nil
}

// short is a peer as the record of changes has it: its encapsulation key is long, and
// another every hour.
func short(p api.Peer) api.Peer {
	p.EncapsulationKey = ""
	return p
}

func (d *db) checkLease(name string, r api.LeaseRequest) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: a cell needs a name", store.ErrConflict)
	case !r.Underlay.IsValid() || r.Underlay.IsUnspecified() || r.Underlay.IsMulticast():
		return fmt.Errorf("%w: underlay address %q is no address of a host", store.ErrConflict, r.Underlay)
	case d.pool.Network().Contains(r.Underlay):
		return fmt.Errorf("%w: underlay %s lies in the overlay network %s", store.ErrConflict, r.Underlay, d.pool.Network())
	case r.Port == 0:
		return fmt.Errorf("%w: underlay port 0", store.ErrConflict)
	case r.Mode != api.ModeVXLAN && r.Mode != api.ModeWireGuard:
		return fmt.Errorf("%w: tunnel mode %q is not known", store.ErrConflict, r.Mode)
	case r.Mode == api.ModeWireGuard && (r.Key.IsZero() || r.WireGuardPort == 0):
		return fmt.Errorf("%w: mode %s without a key and a port", store.ErrConflict, r.Mode)
	case !r.NextKey.IsZero() && (r.Mode != api.ModeWireGuard || r.NextKey == r.Key):
		return fmt.Errorf("%w: a next key is a second one, of mode %s", store.ErrConflict, api.ModeWireGuard)
	case r.EncapsulationKey != "" && (r.Mode != api.ModeWireGuard || len(r.EncapsulationKey) != api.EncapsulationKeySize):
		return fmt.Errorf("%w: an encapsulation key has %d bytes, and is of mode %s", store.ErrConflict, api.EncapsulationKeySize, api.ModeWireGuard)
	case r.Mode == api.ModeWireGuard && r.WireGuardPort == r.Port:
		return fmt.Errorf("%w: port %d is both modes'", store.ErrConflict, r.Port)
	case r.Generation > maxGeneration:
		return fmt.Errorf("%w: generation %d is out of range", store.ErrConflict, r.Generation)
	}
	return nil
}

// underlayFree refuses an underlay address and port that another peer has: the
// two could not be told apart on the wire.
func (t *tx) underlayFree(p api.Peer) error {
	var other string
	taken, err := found(t.row(&other, `SELECT name FROM cells WHERE live = 1 AND underlay = ? AND port = ? AND name <> ?`,
		p.Underlay.String(), p.Port, p.Name))
	if err == nil && taken {
		err = fmt.Errorf("%w: underlay %s is %s's", store.ErrConflict, netip.AddrPortFrom(p.Underlay, p.Port), other)
	}
	return err
}

// tunnelFree refuses a key, or an address inside the tunnels, that another peer
// has: a key says who sends, and the address where to.
func (t *tx) tunnelFree(p api.Peer) error {
	if p.Mode != api.ModeWireGuard {
		return nil
	}
	next := p.NextKey
	if next.IsZero() {
		next = p.Key
	}
	keys := []any{p.Key.String(), next.String(), p.Key.String(), next.String()}
	for _, q := range []struct {
		what, condition string
		args            []any
	}{
		{"tunnel key " + p.Key.String(), `(key IN (?, ?) OR next_key IN (?, ?))`, keys},
		{"tunnel address " + p.Tunnel.String(), `tunnel = ?`, []any{p.Tunnel.String()}},
		{fmt.Sprintf("underlay %s, WireGuard port %d,", p.Underlay, p.WireGuardPort), `underlay = ? AND (wireguard_port = ? OR port = ? AND kind = 'tulle')`,
			[]any{p.Underlay.String(), p.WireGuardPort, p.WireGuardPort}},
	} {
		var other string
		taken, err := found(t.row(&other, `SELECT name FROM cells WHERE live = 1 AND name <> ? AND `+q.condition, append([]any{p.Name}, q.args...)...))
		if err != nil {
			return err
		}
		if taken {
			return fmt.Errorf("%w: %s is %s's", store.ErrConflict, q.what, other)
		}
	}
	return nil
}

// subnets lists what peers other than name hold or must be left, and what is
// remembered for cells whose lease has ended.
func subnets(ctx context.Context, q querier, name string, now time.Time) (taken, remembered []netip.Prefix, err error) {
	if taken, err = resting(ctx, q, name, now); err != nil {
		return nil, nil, err
	}
	rows, err := list(ctx, q, func(r *sql.Rows, c *cell) error { return scanCell(r, c) },
		`SELECT `+cellColumns+` FROM cells WHERE name <> ? AND subnet IS NOT NULL`, name)
	for _, c := range rows {
		if c.live {
			taken = append(taken, c.Subnet)
		} else {
			remembered = append(remembered, c.Subnet)
		}
	}
	return taken, remembered, err
}

// subnetFor chooses the cell's subnet: the one it had, else the one it says it
// had (the store may be younger than the cell), else a free one by chance.
func (t *tx) subnetFor(name string, had, wanted netip.Prefix) (netip.Prefix, error) {
	taken, remembered, err := subnets(t.ctx, t, name, t.leaseNow())
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, s := range []netip.Prefix{had, wanted} {
		if t.db.pool.Contains(s) && !overlaps(s, taken) {
			return s, t.forget(name, s)
		}
	}
	s, err := t.db.pool.Choose(taken, remembered, t.db.options.Random)
	if errors.Is(err, lease.ErrExhausted) {
		return s, fmt.Errorf("%w: all %d subnets are held", store.ErrNoLease, t.db.pool.Size())
	}
	if err != nil {
		return s, err
	}
	return s, t.forget(name, s)
}

// forget lets go of subnets that were remembered for others and are given now.
func (t *tx) forget(name string, given netip.Prefix) error {
	rows, err := list(t.ctx, t, func(r *sql.Rows, c *cell) error { return scanCell(r, c) },
		`SELECT `+cellColumns+` FROM cells WHERE live = 0 AND subnet IS NOT NULL AND name <> ?`, name)
	if err != nil {
		return err
	}
	for _, c := range rows {
		if c.Subnet.Overlaps(given) {
			if err := t.exec(`UPDATE cells SET subnet = NULL WHERE name = ?`, c.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

func overlaps(s netip.Prefix, taken []netip.Prefix) bool {
	for _, o := range taken {
		if s.Overlaps(o) {
			return true
		}
	}
	return false
}

func (d *db) ReleaseLease(ctx context.Context, name string) error {
	_, err := d.write(ctx, "release lease of "+name, func(t *tx) error {
		c, known, err := t.cell(name)
		if err != nil || !known || !c.live {
			return err
		}
		if c.Kind != api.KindTulle {
			return fmt.Errorf("%w: %s is a %s peer", store.ErrConflict, name, c.Kind)
		}
		return t.end(c, api.LeaseRelease)
	})
	return err
}

// end ends a lease. The row stays, for its generation and its subnet.
func (t *tx) end(c cell, why api.Action) error {
	if err := t.removeEndpoints(c.Name); err != nil {
		return err
	}
	if err := t.dropSecrets(c.Name); err != nil {
		return err
	}
	t.delta.PeersRemoved = append(t.delta.PeersRemoved, c.Name)
	t.audit(why, c.Name, short(c.Peer), nil)
	return t.exec(`UPDATE cells SET live = 0, sequence = 0, encapsulation_key = '' WHERE name = ?`, c.Name)
}

func (d *db) Expire(ctx context.Context) (next time.Time, err error) {
	if err := d.followWall(ctx); err != nil {
		return time.Time{}, err
	}
	// Most calls find nothing; those do not take the writer.
	var micros sql.NullInt64
	const soonest = `SELECT min(expires) FROM cells WHERE live = 1 AND expires > 0`
	var now time.Time
	if err := d.read(ctx, "expire leases", func(q querier) (err error) {
		if now, err = d.now(ctx, q); err != nil {
			return err
		}
		now = d.leaseTime(now)
		return q.QueryRowContext(ctx, soonest).Scan(&micros)
	}); err != nil {
		return time.Time{}, err
	}
	if micros.Valid && micros.Int64 <= now.UnixMicro() {
		if _, err := d.write(ctx, "expire leases", func(t *tx) error {
			if _, err := t.expire(""); err != nil {
				return err
			}
			return t.row(&micros, soonest)
		}); err != nil {
			return time.Time{}, err
		}
	}
	if !micros.Valid {
		return time.Time{}, nil
	}
	// The caller waits by its own clock.
	return d.options.Now().Add(time.UnixMicro(micros.Int64).Sub(now)), nil
}

// expire ends what has run out, but for the cell named: it is just coming back.
func (t *tx) expire(but string) (int, error) {
	ended, err := list(t.ctx, t, func(r *sql.Rows, c *cell) error { return scanCell(r, c) },
		`SELECT `+cellColumns+` FROM cells WHERE live = 1 AND expires > 0 AND expires <= ? AND name <> ? ORDER BY name`,
		t.leaseNow().UnixMicro(), but)
	if err != nil {
		return 0, err
	}
	for _, c := range ended {
		if err := t.end(c, api.LeaseExpire); err != nil {
			return 0, err
		}
	}
	return len(ended), nil
}

func (d *db) Cells(ctx context.Context) ([]store.Cell, error) {
	var cells []store.Cell
	err := d.read(ctx, "read cells", func(q querier) (err error) {
		cells, err = listCells(ctx, q)
		return err
	})
	return cells, err
}

func listCells(ctx context.Context, q querier) ([]store.Cell, error) {
	rows, err := list(ctx, q, func(r *sql.Rows, c *cell) error { return scanCell(r, c) },
		`SELECT `+cellColumns+` FROM cells WHERE live = 1 ORDER BY name`)
	cells := make([]store.Cell, len(rows))
	for i, c := range rows {
		cells[i] = store.Cell{Peer: c.Peer, Renewed: time.UnixMicro(c.renewed)}
		if c.expires != 0 {
			cells[i].Expires = time.UnixMicro(c.expires)
		}
	}
	return cells, err
}
