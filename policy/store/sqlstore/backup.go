package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

func (d *db) Export(ctx context.Context) (*store.Backup, error) {
	var b *store.Backup
	err := d.view(ctx, "export", func(q querier) (err error) {
		now, err := d.now(ctx, q)
		if err != nil {
			return err
		}
		b = &store.Backup{Kind: store.BackupKind, Version: store.BackupVersion, At: micros(now.UnixMicro())}
		var updated, groupsUpdated int64
		if err = q.QueryRowContext(ctx, `SELECT epoch, revision, policies_updated, groups_updated FROM meta`).
			Scan(&b.Epoch, &b.Revision, &updated, &groupsUpdated); err != nil {
			return err
		}
		b.PoliciesUpdated = micros(updated)
		if groupsUpdated != 0 {
			b.GroupsUpdated = micros(groupsUpdated)
		}
		if b.SecurityGroups, err = list(ctx, q, func(r *sql.Rows, g *api.SecurityGroup) error {
			return scanGroup(r, (*policy.SecurityGroup)(g))
		}, `SELECT `+groupColumns+` FROM security_groups ORDER BY id`); err != nil {
			return err
		}
		ps, err := d.listPolicies(ctx, q, store.Filter{})
		if err != nil {
			return err
		}
		b.Policies = make([]api.Policy, len(ps))
		for i, p := range ps {
			b.Policies[i] = api.FromDomain(p)
		}
		if b.Tags, err = list(ctx, q, func(r *sql.Rows, t *store.BackupTag) error {
			var free int64
			err := r.Scan(&t.Tag, &t.App, &t.Type, &free)
			if t.App == "" {
				t.FreeAt = micros(free)
			}
			if t.App == "" || t.Type == api.TypeApp {
				t.Type = ""
			}
			return err
		}, `SELECT tag, coalesce(app, ''), type, free_at FROM tags ORDER BY tag`); err != nil {
			return err
		}
		if b.Orgs, err = list(ctx, q, func(r *sql.Rows, o *store.BackupOrg) error { return r.Scan(&o.GUID, &o.Name) },
			`SELECT guid, name FROM orgs ORDER BY guid`); err != nil {
			return err
		}
		if b.Spaces, err = list(ctx, q, func(r *sql.Rows, s *store.BackupSpace) error { return r.Scan(&s.GUID, &s.Org, &s.Name) },
			`SELECT guid, org, name FROM spaces ORDER BY guid`); err != nil {
			return err
		}
		if b.Apps, err = list(ctx, q, func(r *sql.Rows, a *store.BackupApp) error { return r.Scan(&a.GUID, &a.Space, &a.Name) },
			`SELECT guid, coalesce(space, ''), name FROM apps ORDER BY guid`); err != nil {
			return err
		}
		cells, err := list(ctx, q, func(r *sql.Rows, c *cell) error { return scanCell(r, c) },
			`SELECT `+cellColumns+` FROM cells ORDER BY name`)
		if err != nil {
			return err
		}
		b.Cells = make([]store.BackupCell, len(cells))
		for i, c := range cells {
			b.Cells[i] = store.BackupCell{Peer: c.Peer, Live: c.live, Renewed: micros(c.renewed), Sequence: c.sequence}
			if c.expires != 0 {
				b.Cells[i].Expires = micros(c.expires)
			}
		}
		if b.Domains, err = listDomains(ctx, q); err != nil {
			return err
		}
		if b.Routes, err = listRoutes(ctx, q, store.RouteFilter{}); err != nil {
			return err
		}
		if b.Endpoints, err = listEndpoints(ctx, q, ""); err != nil {
			return err
		}
		if b.Revoked, err = listRevocations(ctx, q); err != nil {
			return err
		}
		b.Audit, err = listAudit(ctx, q, math.MaxInt64, d.options.Audit)
		slices.Reverse(b.Audit)
		return err
	})
	return b, err
}

func micros(n int64) time.Time { return time.UnixMicro(n).UTC() }

func (d *db) Import(ctx context.Context, b *store.Backup) error {
	epoch := api.Epoch(uuid.NewString())
	_, err := d.write(ctx, "import", func(t *tx) error {
		var revision api.Revision
		if err := t.row(&revision, `SELECT revision FROM meta`); err != nil {
			return err
		}
		if revision != 0 {
			return fmt.Errorf("%w: the store is not empty: it is at revision %d", store.ErrConflict, revision)
		}
		for what, table := range map[string]string{"security groups": "security_groups", "apps": "apps", "revocations": "revocations"} {
			var some bool // groups and apps raise no revision
			if err := t.row(&some, `SELECT EXISTS (SELECT 1 FROM `+table+`)`); err != nil {
				return err
			}
			if some {
				return fmt.Errorf("%w: the store is not empty: it has %s", store.ErrConflict, what)
			}
		}
		ps, err := b.Check(d.options.MaxTag)
		if err != nil {
			return err
		}
		if err := d.checkCells(b); err != nil {
			return err
		}
		t.replaced = true
		for _, put := range []func() error{
			func() error { return t.putPolicies(ps, b.Tags, b.Revision) },
			func() error { return t.putRegistry(b) },
			func() error { return t.putCells(b) },
			func() error { return t.putAudit(b.Audit) },
			func() error { return t.putGroups(b) },
			func() error { return t.putNames(b) },
		} {
			if err := put(); err != nil {
				return err
			}
		}
		t.audit(api.StoreImport, b.Kind, nil, struct {
			Epoch    api.Epoch    `json:"epoch"`
			Revision api.Revision `json:"revision"`
			At       time.Time    `json:"at"`
		}{b.Epoch, b.Revision, b.At})
		// Pollers that know what came after the backup ask again only where the
		// number is greater than theirs.
		later := func(than time.Time) int64 { return max(t.now.UnixMicro(), than.UnixMicro()+1) }
		return t.exec(`UPDATE meta SET epoch = ?, revision = ?, policies_updated = ?, groups_updated = ?`,
			string(epoch), int64(b.Revision), later(b.PoliciesUpdated), later(b.GroupsUpdated))
	})
	if err == nil {
		d.epoch.Store(&epoch)
		d.Pulse.Beat() // again: who heard the first one may have met the old epoch
	}
	return err
}

// checkCells refuses leases of another overlay network, and what the database's
// own rules would refuse in words that nobody understands.
func (d *db) checkCells(b *store.Backup) error {
	names := make(map[string]store.BackupCell)
	for _, c := range b.Cells {
		_, twice := names[c.Name]
		switch {
		case c.Name == "" || twice:
			return fmt.Errorf("%w: cell %q is there twice or has no name", store.ErrConflict, c.Name)
		case !c.Live:
		case !c.Subnet.IsValid() || !d.pool.Network().Contains(c.Subnet.Addr()) || c.Subnet.Bits() <= d.pool.Network().Bits():
			return fmt.Errorf("%w: the lease %s of %s is not a part of the overlay network %s", store.ErrConflict, c.Subnet, c.Name, d.pool.Network())
		}
		names[c.Name] = c
	}
	for _, e := range b.Endpoints {
		if c := names[e.Cell]; !c.Live || !c.Subnet.Contains(e.Address) {
			return fmt.Errorf("%w: container %s at %s is not in a lease of cell %q", store.ErrConflict, e.Container, e.Address, e.Cell)
		}
	}
	return nil
}

// putPolicies stores policies and tags. A cell may know a tag that is free here
// from the history that the backup cut off, so those rest, too.
func (t *tx) putPolicies(ps []policy.Policy, tags []store.BackupTag, at api.Revision) error {
	for _, p := range ps {
		if err := t.exec(`INSERT INTO policies (source, destination, protocol, start_port, end_port)
			VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`, p.Source, p.Destination, p.Protocol, p.Ports.Start, p.Ports.End); err != nil {
			return err
		}
	}
	for _, tag := range tags {
		var free int64
		if !tag.FreeAt.IsZero() {
			free = tag.FreeAt.UnixMicro()
		}
		if err := t.exec(`INSERT INTO tags (tag, app, type, free_at, released) VALUES (?, ?, ?, ?, ?)`,
			tag.Tag, orNull(string(tag.App)), tagType(tag.Type), free, int64(at)); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) putGroups(b *store.Backup) error {
	for _, g := range b.SecurityGroups {
		if _, err := t.putGroup(policy.SecurityGroup(g)); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) putRegistry(b *store.Backup) error {
	for _, o := range b.Orgs {
		if err := t.exec(`INSERT INTO orgs (guid, name) VALUES (?, ?)`, o.GUID, o.Name); err != nil {
			return err
		}
	}
	for _, s := range b.Spaces {
		if err := t.exec(`INSERT INTO spaces (guid, org, name) VALUES (?, ?, ?)`, s.GUID, s.Org, s.Name); err != nil {
			return err
		}
	}
	for _, a := range b.Apps {
		if err := t.exec(`INSERT INTO apps (guid, space, name) VALUES (?, ?, ?)`, a.GUID, orNull(a.Space), a.Name); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) putCells(b *store.Backup) error {
	for _, c := range b.Cells {
		row := cell{Peer: c.Peer, live: c.Live, renewed: c.Renewed.UnixMicro(), sequence: c.Sequence}
		if !c.Expires.IsZero() {
			row.expires = c.Expires.UnixMicro()
		}
		if err := t.putCell(row); err != nil {
			return err
		}
		if !c.Subnet.IsValid() {
			if err := t.exec(`UPDATE cells SET subnet = NULL WHERE name = ?`, c.Name); err != nil {
				return err
			}
		}
	}
	for _, e := range b.Endpoints {
		if err := t.putEndpoint(e); err != nil {
			return err
		}
	}
	for _, r := range b.Revoked {
		if err := t.exec(`INSERT INTO revocations (cell, at) VALUES (?, ?)`, r.Cell, r.At.UnixMicro()); err != nil {
			return err
		}
	}
	return nil
}

// putAudit stores the record of the backup before what this store has recorded
// itself, such as a join token.
func (t *tx) putAudit(entries []api.AuditEntry) error {
	if len(entries) > 0 {
		// By way of numbers that nobody has: they are unique at any moment.
		if err := t.exec(`UPDATE audit SET id = -id`); err != nil {
			return err
		}
		if err := t.exec(`UPDATE audit SET id = ? - id`, int64(entries[len(entries)-1].ID)); err != nil {
			return err
		}
	}
	value := func(text []byte) sql.NullString {
		return sql.NullString{String: string(text), Valid: len(text) > 0 && string(text) != "null"}
	}
	for _, e := range entries {
		if err := t.putNote(int64(e.ID), e.At.UnixMicro(), store.Actor{Who: e.Who, From: e.From}, e.Action, e.Subject,
			e.Revision, value(e.Before), value(e.After)); err != nil {
			return err
		}
	}
	return nil
}

func orNull(s string) sql.NullString { return sql.NullString{String: s, Valid: s != ""} }
