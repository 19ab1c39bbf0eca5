package sqlstore

import (
	"database/sql"
	"fmt"

	"github.com/google/uuid"

	"tulle/policy"
	"tulle/policy/api"
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
