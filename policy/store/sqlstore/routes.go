package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

func (d *db) Routes(ctx context.Context, f store.RouteFilter) (rs []policy.Route, err error) {
	if !d.storable(string(f.App)) {
		return []policy.Route{}, nil
	}
	err = d.read(ctx, "read routes", func(q querier) error {
		rs, err = listRoutes(ctx, q, f)
		return err
	})
	slices.SortStableFunc(rs, func(a, b policy.Route) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return rs, err
}

// listRoutes lists by age.
func listRoutes(ctx context.Context, q querier, f store.RouteFilter) ([]policy.Route, error) {
	query, args := `SELECT name, app, address FROM routes`, []any{}
	var where []string
	if f.App != "" {
		where, args = append(where, `app = ?`), append(args, f.App)
	}
	if f.Name != "" {
		where, args = append(where, `name = ?`), append(args, f.Name)
	}
	if len(where) > 0 {
		query += ` WHERE ` + strings.Join(where, ` AND `)
	}
	return list(ctx, q, func(r *sql.Rows, route *policy.Route) error {
		var address string
		err := r.Scan(&route.Name, &route.App, &address)
		if err == nil && address != "" {
			route.Address, err = netip.ParseAddr(address)
		}
		return err
	}, query+` ORDER BY id`, args...)
}

func (d *db) AddRoutes(ctx context.Context, rs []policy.Route, beside func(policy.AppID) bool) (api.Revision, error) {
	return d.write(ctx, "add routes", func(t *tx) error {
		for _, r := range rs {
			if r.App != "" {
				if err := t.checkRoute(r, beside); err != nil {
					return err
				}
			}
			added, err := t.putRoute(r)
			if err != nil {
				return err
			}
			if !added {
				continue
			}
			t.delta.RoutesSet = append(t.delta.RoutesSet, r)
			if r.App != "" {
				t.audit(api.RouteMap, r.String(), nil, r)
			}
		}
		return nil
	})
}

func (t *tx) putRoute(r policy.Route) (added bool, err error) {
	return t.touch(`INSERT INTO routes (name, app, address) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`, r.Name, r.App, addressText(r))
}

// checkRoute looks whether the route has a domain, and at whom it is mapped
// beside.
func (t *tx) checkRoute(r policy.Route, beside func(policy.AppID) bool) error {
	_, domain := r.Name.Split()
	var internal bool
	if err := t.row(&internal, `SELECT EXISTS (SELECT 1 FROM domains WHERE name = ?)`, domain); err != nil {
		return err
	}
	if !internal {
		return fmt.Errorf("%w: %s is no internal domain", store.ErrNotFound, domain)
	}
	if beside == nil {
		return nil
	}
	others, err := listRoutes(t.ctx, t, store.RouteFilter{Name: r.Name})
	if err != nil {
		return err
	}
	for _, other := range others {
		if other.App != "" && !beside(other.App) {
			return fmt.Errorf("%w: %s", store.ErrNotYours, r.Name)
		}
	}
	return nil
}

func (d *db) RemoveRoutes(ctx context.Context, rs []policy.Route) (api.Revision, error) {
	return d.write(ctx, "remove routes", func(t *tx) error {
		for _, r := range rs {
			removed, err := t.touch(`DELETE FROM routes WHERE name = ? AND app = ? AND address = ?`, r.Name, r.App, addressText(r))
			if err != nil {
				return err
			}
			if !removed {
				continue
			}
			t.delta.RoutesRemoved = append(t.delta.RoutesRemoved, r)
			if r.App != "" {
				t.audit(api.RouteUnmap, r.String(), r, nil)
			}
		}
		return nil
	})
}

// addressText is ” where the route is an app's.
func addressText(r policy.Route) string {
	if !r.Address.IsValid() {
		return ""
	}
	return r.Address.String()
}

func (d *db) Domains(ctx context.Context) (domains []policy.Hostname, err error) {
	err = d.read(ctx, "read domains", func(q querier) error {
		domains, err = listDomains(ctx, q)
		return err
	})
	return domains, err
}

func listDomains(ctx context.Context, q querier) ([]policy.Hostname, error) {
	return list(ctx, q, func(r *sql.Rows, d *policy.Hostname) error { return r.Scan(d) }, `SELECT name FROM domains ORDER BY name`)
}

func (d *db) AddDomain(ctx context.Context, domain policy.Hostname) (api.Revision, error) {
	return d.write(ctx, "add domain", func(t *tx) error {
		added, err := t.touch(`INSERT INTO domains (name) VALUES (?) ON CONFLICT DO NOTHING`, domain)
		if added {
			t.delta.DomainsSet = append(t.delta.DomainsSet, domain)
			t.audit(api.DomainAdd, string(domain), nil, domain)
		}
		return err
	})
}

func (d *db) RemoveDomain(ctx context.Context, domain policy.Hostname) (api.Revision, error) {
	return d.write(ctx, "remove domain", func(t *tx) error {
		mapped, err := listRoutes(t.ctx, t, store.RouteFilter{})
		if err != nil {
			return err
		}
		for _, r := range mapped {
			if _, in := r.Name.Split(); r.App != "" && in == domain {
				return fmt.Errorf("%w: %s has routes, %s is one", store.ErrConflict, domain, r)
			}
		}
		removed, err := t.touch(`DELETE FROM domains WHERE name = ?`, domain)
		if err == nil && !removed {
			err = fmt.Errorf("%w: %s is no internal domain", store.ErrNotFound, domain)
		}
		if err != nil {
			return err
		}
		t.delta.DomainsRemoved = append(t.delta.DomainsRemoved, domain)
		t.audit(api.DomainRemove, string(domain), domain, nil)
		return nil
	})
}

// putNames restores domains and routes. A backup without domains is from before
// there were any, and leaves what an empty store has.
func (t *tx) putNames(b *store.Backup) error {
	if len(b.Domains) > 0 {
		if err := t.exec(`DELETE FROM domains`); err != nil {
			return err
		}
	}
	for _, domain := range b.Domains {
		if err := t.exec(`INSERT INTO domains (name) VALUES (?)`, domain); err != nil {
			return err
		}
	}
	for _, r := range b.Routes {
		if _, err := t.putRoute(r); err != nil {
			return err
		}
	}
	return nil
}
