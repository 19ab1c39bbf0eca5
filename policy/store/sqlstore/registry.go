package sqlstore

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/google/uuid"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// defaultName is the org or space of an app that is named without one.
const defaultName = "default"

// register finds the app that ref names, or enters it. why is the reason of a
// refusal, in the words the cell shows.
func (t *tx) register(ref api.AppRef) (app policy.AppID, why string, err error) {
	switch {
	case ref.GUID == "" && ref.Name == "":
		return "", "the app has neither a GUID nor a name", nil
	case ref.Name == "":
		added, err := t.touch(`INSERT INTO apps (guid) VALUES (?) ON CONFLICT DO NOTHING`, ref.GUID)
		if added {
			t.audit(api.AppRegister, string(ref.GUID), nil, auditApp(ref))
		}
		return ref.GUID, "", err
	}
	if ref.Org == "" {
		ref.Org = defaultName
	}
	if ref.Space == "" {
		ref.Space = defaultName
	}
	org, _, err := t.guid(`SELECT guid FROM orgs WHERE name = ?1`,
		`INSERT INTO orgs (name, guid) VALUES (?1, ?2)`, ref.Org)
	if err != nil {
		return "", "", err
	}
	space, _, err := t.guid(`SELECT guid FROM spaces WHERE org = ?1 AND name = ?2`,
		`INSERT INTO spaces (org, name, guid) VALUES (?1, ?2, ?3)`, org, ref.Space)
	if err != nil {
		return "", "", err
	}
	if ref.GUID != "" {
		return t.registerAs(ref, space)
	}
	guid, made, err := t.guid(`SELECT guid FROM apps WHERE space = ?1 AND name = ?2`,
		`INSERT INTO apps (space, name, guid) VALUES (?1, ?2, ?3)`, space, ref.Name)
	if made {
		ref.GUID = policy.AppID(guid)
		t.audit(api.AppRegister, guid, nil, auditApp(ref))
	}
	return policy.AppID(guid), "", err
}

func auditApp(ref api.AppRef) api.AuditApp {
	return api.AuditApp{GUID: string(ref.GUID), Name: ref.Name, Space: ref.Space, Org: ref.Org}
}

// registerAs enters an app under the GUID it came with. Neither a GUID nor a
// name changes hands: a cell that may host one space must not get at the app of
// another by naming its GUID.
func (t *tx) registerAs(ref api.AppRef, space string) (policy.AppID, string, error) {
	var holder policy.AppID
	taken, err := found(t.row(&holder, `SELECT guid FROM apps WHERE space = ? AND name = ?`, space, ref.Name))
	if err != nil {
		return "", "", err
	}
	if taken {
		if holder == ref.GUID {
			return ref.GUID, "", nil
		}
		return "", fmt.Sprintf("app %s in %s/%s is %s, not %s", ref.Name, ref.Org, ref.Space, holder, ref.GUID), nil
	}
	var elsewhere sql.NullString
	known, err := found(t.row(&elsewhere, `SELECT space FROM apps WHERE guid = ?`, ref.GUID))
	if err != nil {
		return "", "", err
	}
	if known && elsewhere.Valid {
		return "", fmt.Sprintf("app %s has another name or space than %s in %s/%s", ref.GUID, ref.Name, ref.Org, ref.Space), nil
	}
	var before any
	if known {
		before = auditApp(api.AppRef{GUID: ref.GUID})
	}
	t.audit(api.AppRegister, string(ref.GUID), before, auditApp(ref))
	return ref.GUID, "", t.exec(`INSERT INTO apps (guid, space, name) VALUES (?, ?, ?)
		ON CONFLICT (guid) DO UPDATE SET space = excluded.space, name = excluded.name`, ref.GUID, space, ref.Name)
}

// guid reads the stored GUID, or makes one and stores it as the last parameter.
func (t *tx) guid(query, insert string, args ...any) (guid string, made bool, err error) {
	if ok, err := found(t.row(&guid, query, args...)); ok || err != nil {
		return guid, false, err
	}
	guid = uuid.NewString()
	return guid, true, t.exec(insert, append(args, guid)...)
}

func (d *db) RegisterApp(ctx context.Context, ref api.AppRef) (app policy.AppID, err error) {
	_, err = d.write(ctx, "register app", func(t *tx) error {
		var why string
		app, why, err = t.register(ref)
		if err == nil && why != "" {
			err = fmt.Errorf("%w: %s", store.ErrConflict, why)
		}
		return err
	})
	return app, err
}

func (d *db) RemoveApp(ctx context.Context, app policy.AppID) error {
	if !d.storable(string(app)) {
		return fmt.Errorf("%w: no app %q", store.ErrNotFound, app)
	}
	_, err := d.write(ctx, "remove app "+string(app), func(t *tx) error {
		var ref api.AppRef
		known, err := found(t.QueryRowContext(ctx, `SELECT a.guid, a.name, coalesce(s.name, ''), coalesce(o.name, '')
			FROM apps a LEFT JOIN spaces s ON s.guid = a.space LEFT JOIN orgs o ON o.guid = s.org WHERE a.guid = ?`, string(app)).
			Scan(&ref.GUID, &ref.Name, &ref.Space, &ref.Org))
		if err != nil {
			return err
		}
		if !known {
			return fmt.Errorf("%w: no app %q", store.ErrNotFound, app)
		}
		for _, use := range []struct{ of, query string }{
			{"containers", `SELECT count(*) FROM endpoints WHERE app = ?1`},
			{"policies", `SELECT count(*) FROM policies WHERE source = ?1 OR destination = ?1`},
			{"routes", `SELECT count(*) FROM routes WHERE app = ?1`},
		} {
			var n int
			if err := t.row(&n, use.query, string(app)); err != nil {
				return err
			}
			if n > 0 {
				return fmt.Errorf("%w: app %s has %d %s", store.ErrConflict, app, n, use.of)
			}
		}
		t.audit(api.AppRemove, string(app), auditApp(ref), nil)
		return t.exec(`DELETE FROM apps WHERE guid = ?`, string(app))
	})
	return err
}
