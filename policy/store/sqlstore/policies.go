package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"strings"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

func (d *db) AddPolicies(ctx context.Context, ps []policy.Policy) (api.Revision, error) {
	return d.write(ctx, "add policies", func(t *tx) error {
		for _, p := range ps {
			added, err := t.touch(`INSERT INTO policies (source, destination, protocol, start_port, end_port)
				VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`, p.Source, p.Destination, p.Protocol, p.Ports.Start, p.Ports.End)
			if err != nil {
				return err
			}
			if !added { // then both apps have their tag
				continue
			}
			t.delta.PoliciesAdded = append(t.delta.PoliciesAdded, api.FromDomain(p))
			t.audit(api.PolicyCreate, p.String(), nil, api.FromDomain(p))
			for _, app := range []policy.AppID{p.Source, p.Destination} {
				if _, err := t.assignTag(api.AppTag{App: app}, len(ps)); err != nil {
					return err
				}
			}
		}
		return t.touchPolicies(len(ps))
	})
}

func (d *db) RemovePolicies(ctx context.Context, ps []policy.Policy) (api.Revision, error) {
	return d.write(ctx, "remove policies", func(t *tx) error {
		touched := map[policy.AppID]bool{}
		var apps []policy.AppID // touched, in order
		for _, p := range ps {
			removed, err := t.touch(`DELETE FROM policies WHERE source = ? AND destination = ? AND protocol = ?
				AND start_port = ? AND end_port = ?`, p.Source, p.Destination, p.Protocol, p.Ports.Start, p.Ports.End)
			if err != nil {
				return err
			}
			if !removed {
				continue
			}
			t.delta.PoliciesRemoved = append(t.delta.PoliciesRemoved, api.FromDomain(p))
			t.audit(api.PolicyDelete, p.String(), api.FromDomain(p), nil)
			for _, app := range []policy.AppID{p.Source, p.Destination} {
				if !touched[app] {
					touched[app] = true
					apps = append(apps, app)
				}
			}
		}
		for _, app := range apps {
			if err := t.releaseTag(app); err != nil {
				return err
			}
		}
		return t.touchPolicies(len(ps))
	})
}

// touchPolicies moves the time of the last create or delete, as the original
// does even when nothing changed. Pollers compare it with what they saw last, so
// it always grows, whatever the clock does.
func (t *tx) touchPolicies(n int) error {
	if n == 0 {
		return nil
	}
	return t.exec(`UPDATE meta SET policies_updated = CASE WHEN policies_updated < ?1 THEN ?1 ELSE policies_updated + 1 END`, t.now.UnixMicro())
}

// assignTag gives the app, or what else a names, the lowest free tag unless it
// has one. need is how many policies the request has, which bounds how many tags
// it can take.
func (t *tx) assignTag(a api.AppTag, need int) (policy.Tag, error) {
	tag, err := t.tagOf(a)
	if tag != policy.NoTag || err != nil {
		return tag, err
	}
	if t.next == 0 {
		t.free, err = list(t.ctx, t, func(r *sql.Rows, tag *policy.Tag) error { return r.Scan(tag) },
			`SELECT tag FROM tags WHERE app IS NULL AND free_at <= ? AND released <= ? ORDER BY tag LIMIT ?`,
			t.now.UnixMicro(), t.db.rested(), 2*need)
		if err != nil {
			return 0, err
		}
		if err := t.row(&t.next, `SELECT coalesce(max(tag), 0) + 1 FROM tags`); err != nil {
			return 0, err
		}
	}
	switch {
	case len(t.free) > 0:
		tag, t.free = t.free[0], t.free[1:]
	case t.next <= t.db.options.MaxTag:
		tag = t.next
		t.next++
	default:
		return 0, t.exhausted()
	}
	a.Tag = tag
	t.delta.TagsSet = append(t.delta.TagsSet, a)
	return tag, t.exec(`INSERT INTO tags (tag, app, type) VALUES (?, ?, ?)
		ON CONFLICT (tag) DO UPDATE SET app = excluded.app, type = excluded.type`, tag, a.App, tagType(a.Type))
}

// releaseTag takes the app's tag when no policy names the app any more. The tag
// rests before another app can have it: until the revision of this change is in
// force everywhere, and at least for TagRest.
func (t *tx) releaseTag(app policy.AppID) error {
	var used bool
	if err := t.row(&used, `SELECT EXISTS (SELECT 1 FROM policies WHERE source = ?1)
		OR EXISTS (SELECT 1 FROM policies WHERE destination = ?1)`, app); err != nil || used {
		return err
	}
	t.delta.TagsRemoved = append(t.delta.TagsRemoved, app)
	return t.exec(`UPDATE tags SET app = NULL, free_at = ?, released = (SELECT revision + 1 FROM meta) WHERE app = ?`,
		t.now.Add(t.db.options.TagRest).UnixMicro(), app)
}

func (d *db) Policies(ctx context.Context, f store.Filter) ([]policy.Policy, error) {
	var ps []policy.Policy
	err := d.read(ctx, "read policies", func(q querier) (err error) {
		ps, err = d.listPolicies(ctx, q, f)
		return err
	})
	return ps, err
}

// listPolicies is ordered, so that two answers can be compared.
func (d *db) listPolicies(ctx context.Context, q querier, f store.Filter) ([]policy.Policy, error) {
	var where []string
	var args []any
	in := func(condition string, apps []policy.AppID) error {
		// One parameter whatever the length: databases have a limit of parameters.
		text, err := json.Marshal(d.Texts(apps))
		where = append(where, strings.ReplaceAll(condition, "LIST", d.List))
		for range strings.Count(condition, "LIST") {
			args = append(args, string(text))
		}
		return err
	}
	var err error
	switch {
	case f.IDs != nil:
		err = in(`(source IN LIST OR destination IN LIST)`, f.IDs)
	case f.Sources != nil && f.Destinations != nil:
		if err = in(`source IN LIST`, f.Sources); err == nil {
			err = in(`destination IN LIST`, f.Destinations)
		}
	case f.Sources != nil:
		err = in(`source IN LIST`, f.Sources)
	case f.Destinations != nil:
		err = in(`destination IN LIST`, f.Destinations)
	}
	if err != nil {
		return nil, err
	}
	query := `SELECT source, destination, protocol, start_port, end_port FROM policies`
	if len(where) > 0 {
		query += ` WHERE ` + strings.Join(where, ` AND `)
	}
	return list(ctx, q, func(r *sql.Rows, p *policy.Policy) error {
		return r.Scan(&p.Source, &p.Destination, &p.Protocol, &p.Ports.Start, &p.Ports.End)
	}, query+` ORDER BY source, destination, protocol, start_port, end_port`, args...)
}

func (d *db) Tags(ctx context.Context) ([]api.AppTag, error) {
	var tags []api.AppTag
	err := d.read(ctx, "read tags", func(q querier) (err error) {
		tags, err = listTags(ctx, q)
		return err
	})
	return tags, err
}

func listTags(ctx context.Context, q querier) ([]api.AppTag, error) {
	return list(ctx, q, func(r *sql.Rows, t *api.AppTag) error {
		err := r.Scan(&t.App, &t.Tag, &t.Type)
		if t.Type == api.TypeApp {
			t.Type = ""
		}
		return err
	}, `SELECT app, tag, type FROM tags WHERE app IS NOT NULL ORDER BY tag`)
}

func (d *db) LastUpdated(ctx context.Context) (time.Time, error) {
	var micros int64
	if err := d.read(ctx, "read time of last update", func(q querier) error {
		return q.QueryRowContext(ctx, `SELECT policies_updated FROM meta`).Scan(&micros)
	}); err != nil {
		return time.Time{}, err
	}
	return time.UnixMicro(micros), nil
}

func (d *db) Stats(ctx context.Context) (store.Stats, error) {
	s := store.Stats{TagLimit: int(d.options.MaxTag), LeasePool: d.pool.Size()}
	err := d.view(ctx, "read statistics", func(t querier) error {
		if err := t.QueryRowContext(ctx, `SELECT revision,
			(SELECT count(*) FROM policies), (SELECT count(*) FROM tags WHERE app IS NOT NULL),
			(SELECT count(*) FROM endpoints), (SELECT count(*) FROM apps), (SELECT count(*) FROM routes) FROM meta`).
			Scan(&s.Revision, &s.Policies, &s.Tags, &s.Endpoints, &s.Apps, &s.Routes); err != nil {
			return err
		}
		now, err := d.now(ctx, t)
		if err != nil {
			return err
		}
		if err := t.QueryRowContext(ctx, `SELECT count(*) FROM tags WHERE app IS NULL AND (free_at > ? OR released > ?)`,
			now.UnixMicro(), d.rested()).Scan(&s.Resting); err != nil {
			return err
		}
		taken, _, err := subnets(ctx, t, "", d.leaseTime(now))
		s.Leases = d.pool.Used(taken)
		return err
	})
	return s, err
}
