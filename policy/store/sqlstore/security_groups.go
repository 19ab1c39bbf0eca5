package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

const groupColumns = `guid, name, rules, staging_default, running_default, staging_spaces, running_spaces`

func scanGroup(row interface{ Scan(...any) error }, g *policy.SecurityGroup) error {
	var rules, staging, running string
	err := row.Scan(&g.GUID, &g.Name, &rules, &g.StagingDefault, &g.RunningDefault, &staging, &running)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		text string
		into any
	}{{rules, &g.Rules}, {staging, &g.StagingSpaces}, {running, &g.RunningSpaces}} {
		if err := json.Unmarshal([]byte(f.text), f.into); err != nil {
			return fmt.Errorf("security group %s: %w", g.GUID, err)
		}
	}
	return nil
}

func (d *db) SecurityGroups(ctx context.Context, f store.GroupFilter) (page []policy.SecurityGroup, next int64, err error) {
	err = d.view(ctx, "read security groups", func(q querier) error {
		page, next = []policy.SecurityGroup{}, 0 // the second try begins anew
		ids, err := d.groupIDs(ctx, q, f)
		if err != nil {
			return err
		}
		if f.Limit > 0 && len(ids) > f.Limit {
			ids, next = ids[:f.Limit], ids[f.Limit]
		}
		for _, id := range ids {
			var g policy.SecurityGroup
			if err := scanGroup(q.QueryRowContext(ctx, `SELECT `+groupColumns+` FROM security_groups WHERE id = ?`, id), &g); err != nil {
				return err
			}
			page = append(page, g)
		}
		return nil
	})
	return page, next, err
}

// groupIDs lists the groups that f selects, in order, from its From on.
func (d *db) groupIDs(ctx context.Context, q querier, f store.GroupFilter) ([]int64, error) {
	scan := func(r *sql.Rows, id *int64) error { return r.Scan(id) }
	if f.All {
		return list(ctx, q, scan, `SELECT id FROM security_groups WHERE id >= ? ORDER BY id`, f.From)
	}
	selected := map[int64]bool{}
	take := func(query string, args ...any) error {
		ids, err := list(ctx, q, scan, query, args...)
		for _, id := range ids {
			selected[id] = true
		}
		return err
	}
	if err := take(`SELECT id FROM security_groups WHERE id >= ? AND (staging_default = 1 OR running_default = 1)`, f.From); err != nil {
		return nil, err
	}
	spaces := map[string]bool{}
	for _, s := range f.Spaces {
		if spaces[s] || !d.storable(s) {
			continue
		}
		spaces[s] = true
		if err := take(`SELECT id FROM security_group_spaces WHERE space = ? AND id >= ?`, s, f.From); err != nil {
			return nil, err
		}
	}
	return slices.Sorted(maps.Keys(selected)), nil
}

func (d *db) SecurityGroup(ctx context.Context, guid string) (g policy.SecurityGroup, err error) {
	if !d.storable(guid) {
		return g, noGroup(guid)
	}
	err = d.read(ctx, "read security group", func(q querier) error {
		known, err := found(scanGroup(q.QueryRowContext(ctx, `SELECT `+groupColumns+` FROM security_groups WHERE guid = ?`, guid), &g))
		if err == nil && !known {
			err = noGroup(guid)
		}
		return err
	})
	return g, err
}

// storable reports whether the database can hold the text, so that it may have
// something by it.
func (d *db) storable(text string) bool { return len(d.Texts([]policy.AppID{policy.AppID(text)})) == 1 }

func noGroup(guid string) error {
	return fmt.Errorf("%w: no security group %q", store.ErrNotFound, guid)
}

func (d *db) PutSecurityGroup(ctx context.Context, g policy.SecurityGroup) error {
	_, err := d.write(ctx, "store security group "+g.GUID, func(t *tx) error {
		changed, err := t.putGroup(g)
		return t.touchGroups(changed, err)
	})
	return err
}

func (d *db) DeleteSecurityGroup(ctx context.Context, guid string) error {
	if !d.storable(guid) {
		return noGroup(guid)
	}
	_, err := d.write(ctx, "delete security group", func(t *tx) error {
		deleted, err := t.deleteGroup(guid)
		if err == nil && !deleted {
			err = noGroup(guid)
		}
		return t.touchGroups(deleted, err)
	})
	return err
}

func (d *db) ReplaceSecurityGroups(ctx context.Context, gs []policy.SecurityGroup) error {
	_, err := d.write(ctx, "replace security groups", func(t *tx) error {
		changed := false
		keep := map[string]bool{}
		for _, g := range gs {
			keep[g.GUID] = true
			put, err := t.putGroup(g)
			if err != nil {
				return err
			}
			changed = changed || put
		}
		stored, err := list(ctx, t, func(r *sql.Rows, s *string) error { return r.Scan(s) }, `SELECT guid FROM security_groups`)
		if err != nil {
			return err
		}
		for _, guid := range stored {
			if keep[guid] {
				continue
			}
			if _, err := t.deleteGroup(guid); err != nil {
				return err
			}
			changed = true
		}
		return t.touchGroups(changed, nil)
	})
	return err
}

// deleteGroup removes a group and says whether there was one.
func (t *tx) deleteGroup(guid string) (deleted bool, err error) {
	var old policy.SecurityGroup
	known, err := found(scanGroup(t.QueryRowContext(t.ctx, `SELECT `+groupColumns+` FROM security_groups WHERE guid = ?`, guid), &old))
	if err != nil || !known {
		return false, err
	}
	t.audit(api.GroupDelete, guid, api.NewSecurityGroup(old), nil)
	return t.touch(`DELETE FROM security_groups WHERE guid = ?`, guid)
}

// putGroup stores g and says whether that changed anything.
func (t *tx) putGroup(g policy.SecurityGroup) (changed bool, err error) {
	rules, rulesErr := listJSON(g.Rules)
	staging, stagingErr := listJSON(g.StagingSpaces)
	running, runningErr := listJSON(g.RunningSpaces)
	if err := errors.Join(rulesErr, stagingErr, runningErr); err != nil {
		return false, err
	}
	var before any
	if !t.replaced {
		var old policy.SecurityGroup
		known, err := found(scanGroup(t.QueryRowContext(t.ctx, `SELECT `+groupColumns+` FROM security_groups WHERE guid = ?`, g.GUID), &old))
		if err != nil {
			return false, err
		}
		if known {
			before = api.NewSecurityGroup(old)
		}
	}
	// An upsert that is no change touches no row.
	changed, err = t.touch(`INSERT INTO security_groups (`+groupColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (guid) DO UPDATE SET name = excluded.name, rules = excluded.rules,
		staging_default = excluded.staging_default, running_default = excluded.running_default,
		staging_spaces = excluded.staging_spaces, running_spaces = excluded.running_spaces
		WHERE security_groups.name <> excluded.name OR security_groups.rules <> excluded.rules
		OR security_groups.staging_default <> excluded.staging_default OR security_groups.running_default <> excluded.running_default
		OR security_groups.staging_spaces <> excluded.staging_spaces OR security_groups.running_spaces <> excluded.running_spaces`,
		g.GUID, g.Name, rules, number(g.StagingDefault), number(g.RunningDefault), staging, running)
	if err != nil || !changed {
		return false, err
	}
	if !t.replaced {
		t.audit(api.GroupSet, g.GUID, before, api.NewSecurityGroup(g))
	}
	var id int64
	if err := t.row(&id, `SELECT id FROM security_groups WHERE guid = ?`, g.GUID); err != nil {
		return false, err
	}
	if err := t.exec(`DELETE FROM security_group_spaces WHERE id = ?`, id); err != nil {
		return false, err
	}
	for _, space := range slices.Concat(g.StagingSpaces, g.RunningSpaces) {
		if err := t.exec(`INSERT INTO security_group_spaces (space, id) VALUES (?, ?) ON CONFLICT DO NOTHING`, space, id); err != nil {
			return false, err
		}
	}
	return true, nil
}

// number is a truth as every database has it.
func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// listJSON writes no list as an empty one.
func listJSON[T any](list []T) (string, error) {
	if len(list) == 0 {
		return "[]", nil
	}
	text, err := json.Marshal(list)
	return string(text), err
}

// touchGroups moves the time of the last change, which always grows.
func (t *tx) touchGroups(changed bool, err error) error {
	if err != nil || !changed {
		return err
	}
	return t.exec(`UPDATE meta SET groups_updated = CASE WHEN groups_updated < ?1 THEN ?1 ELSE groups_updated + 1 END`, t.now.UnixMicro())
}

func (d *db) SecurityGroupsUpdated(ctx context.Context) (time.Time, error) {
	var micros int64
	if err := d.read(ctx, "read time of last update", func(q querier) error {
		return q.QueryRowContext(ctx, `SELECT groups_updated FROM meta`).Scan(&micros)
	}); err != nil {
		return time.Time{}, err
	}
	return time.UnixMicro(micros), nil
}
