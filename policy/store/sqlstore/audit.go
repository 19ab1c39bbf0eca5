package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"math"
	"time"

	"tulle/policy/api"
	"tulle/policy/store"
)

// note is an entry of the audit record that the transaction will write.
type note struct {
	by            store.Actor
	action        api.Action
	subject       string
	before, after any // nil: was not, is not
}

// audit notes a change for the record.
func (t *tx) audit(action api.Action, subject string, before, after any) {
	by := store.ActorOf(t.ctx)
	if action == api.LeaseExpire {
		by = store.Self // whoever's request it was found by
	}
	t.notes = append(t.notes, note{by, action, subject, before, after})
}

// recordNotes writes what was noted, at the transaction's revision, and forgets
// the oldest entries. Ids follow each other: writes never overlap.
func (t *tx) recordNotes(revision api.Revision) error {
	if len(t.notes) == 0 {
		return nil
	}
	var last int64
	if err := t.row(&last, `SELECT coalesce(max(id), 0) FROM audit`); err != nil {
		return err
	}
	for _, n := range t.notes {
		before, err := auditValue(n.before)
		if err != nil {
			return err
		}
		after, err := auditValue(n.after)
		if err != nil {
			return err
		}
		last++
		if err := t.putNote(last, t.now.UnixMicro(), n.by, n.action, n.subject, revision, before, after); err != nil {
			return err
		}
	}
	return t.exec(`DELETE FROM audit WHERE id <= ?`, last-int64(t.db.options.Audit))
}

func (t *tx) putNote(id, at int64, by store.Actor, action api.Action, subject string, revision api.Revision, before, after sql.NullString) error {
	return t.exec(`INSERT INTO audit (id, at, who, origin, action, subject, revision, old_value, new_value)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`, id, at, by.Who, by.From, string(action), subject, int64(revision), before, after)
}

func auditValue(v any) (sql.NullString, error) {
	if v == nil {
		return sql.NullString{}, nil
	}
	text, err := json.Marshal(v)
	return sql.NullString{String: string(text), Valid: true}, err
}

func (d *db) Audit(ctx context.Context, before uint64, limit int) (entries []api.AuditEntry, err error) {
	if before == 0 || before > math.MaxInt64 {
		before = math.MaxInt64
	}
	err = d.read(ctx, "read audit", func(q querier) error {
		entries, err = listAudit(ctx, q, before, limit)
		return err
	})
	return entries, err
}

func listAudit(ctx context.Context, q querier, before uint64, limit int) ([]api.AuditEntry, error) {
	return list(ctx, q, func(r *sql.Rows, e *api.AuditEntry) error {
		var at int64
		var before, after sql.NullString
		err := r.Scan(&e.ID, &at, &e.Who, &e.From, &e.Action, &e.Subject, &e.Revision, &before, &after)
		e.At = time.UnixMicro(at).UTC()
		if before.Valid {
			e.Before = json.RawMessage(before.String)
		}
		if after.Valid {
			e.After = json.RawMessage(after.String)
		}
		return err
	}, `SELECT id, at, who, origin, action, subject, revision, old_value, new_value FROM audit
		WHERE id < ? ORDER BY id DESC LIMIT ?`, int64(before), limit)
}
