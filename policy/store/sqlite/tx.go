package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// tx is one write: its transaction, the time it happens at, and what it has
// changed so far.
type tx struct {
	*sql.Tx
	ctx   context.Context
	db    *db
	now   time.Time
	delta api.Delta

	free []policy.Tag // tags to give, lowest first; see assignTag
	next policy.Tag   // the first tag that was never given; 0 until free is read

	// statements are prepared once a transaction; a create of ten thousand
	// policies runs the same five over and over. They end with the transaction.
	statements map[string]*sql.Stmt
}

// write runs f in a transaction. What f put into the delta becomes the next
// revision, or no revision where f changed nothing; then watchers are woken. An
// error leaves nothing behind.
func (d *db) write(ctx context.Context, doing string, f func(*tx) error) (api.Revision, error) {
	sqlTx, err := d.writer.BeginTx(ctx, nil)
	if err != nil {
		return 0, d.fail(doing, err)
	}
	// After Commit this does nothing; after a full disk SQLite may have rolled
	// back by itself. Neither is worth a word.
	defer sqlTx.Rollback()
	t := &tx{Tx: sqlTx, ctx: ctx, db: d, now: d.options.Now(), statements: map[string]*sql.Stmt{}}
	if err := f(t); err != nil {
		return 0, d.fail(doing, err)
	}
	revision, changed, err := t.record()
	if err != nil {
		return 0, d.fail(doing, err)
	}
	if err := t.Commit(); err != nil {
		return 0, d.fail(doing, err)
	}
	if changed {
		d.pulse()
	}
	return revision, nil
}

// record raises the revision and keeps the delta, if there is any.
func (t *tx) record() (revision api.Revision, changed bool, err error) {
	d := &t.delta
	if len(d.PoliciesAdded)+len(d.PoliciesRemoved)+len(d.TagsSet)+len(d.TagsRemoved)+
		len(d.EndpointsSet)+len(d.EndpointsRemoved)+len(d.PeersSet)+len(d.PeersRemoved) == 0 {
		err = t.row(&revision, `SELECT revision FROM meta`)
		return revision, false, err
	}
	if err := t.row(&revision, `UPDATE meta SET revision = revision + 1 RETURNING revision`); err != nil {
		return 0, false, err
	}
	d.Revision = revision
	text, err := json.Marshal(d)
	if err != nil {
		return 0, false, err
	}
	if err := t.exec(`INSERT INTO changes (revision, delta) VALUES (?, ?)`, revision, string(text)); err != nil {
		return 0, false, err
	}
	err = t.exec(`DELETE FROM changes WHERE revision <= ?`, int64(revision)-int64(t.db.options.History))
	return revision, true, err
}

func (t *tx) statement(query string) (*sql.Stmt, error) {
	if s := t.statements[query]; s != nil {
		return s, nil
	}
	s, err := t.PrepareContext(t.ctx, query)
	if err == nil {
		t.statements[query] = s
	}
	return s, err
}

func (t *tx) exec(query string, args ...any) error {
	_, err := t.touch(query, args...)
	return err
}

// touch is exec, saying whether a row was touched.
func (t *tx) touch(query string, args ...any) (bool, error) {
	s, err := t.statement(query)
	if err != nil {
		return false, err
	}
	r, err := s.ExecContext(t.ctx, args...)
	if err != nil {
		return false, err
	}
	n, err := r.RowsAffected()
	return n > 0, err
}

// row reads the first column of one row into dest.
func (t *tx) row(dest any, query string, args ...any) error {
	s, err := t.statement(query)
	if err != nil {
		return err
	}
	return s.QueryRowContext(t.ctx, args...).Scan(dest)
}

// found turns "no row" into false.
func found(err error) (bool, error) {
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// querier is a database or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// list reads all rows of a query. The result is never nil.
func list[T any](ctx context.Context, q querier, scan func(*sql.Rows, *T) error, query string, args ...any) ([]T, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := []T{}
	for rows.Next() {
		var v T
		if err := scan(rows, &v); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// view runs f in a read transaction: one consistent state, however many
// queries.
func (d *db) view(ctx context.Context, doing string, f func(*sql.Tx) error) error {
	t, err := d.reader.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return d.fail(doing, err)
	}
	defer t.Rollback() // nothing to commit
	return d.fail(doing, f(t))
}

// State reads everything at one revision.
func (d *db) State(ctx context.Context) (*store.State, error) {
	s := &store.State{Epoch: d.epoch}
	err := d.view(ctx, "read state", func(t *sql.Tx) (err error) {
		if err = t.QueryRowContext(ctx, `SELECT revision FROM meta`).Scan(&s.Revision); err != nil {
			return err
		}
		if s.Policies, err = listPolicies(ctx, t, store.Filter{}); err != nil {
			return err
		}
		if s.Tags, err = listTags(ctx, t); err != nil {
			return err
		}
		if s.Endpoints, err = listEndpoints(ctx, t, ``); err != nil {
			return err
		}
		cells, err := listCells(ctx, t)
		s.Peers = make([]api.Peer, len(cells))
		for i := range cells {
			s.Peers[i] = cells[i].Peer
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Changes reads what is kept of the history. Kept changes have no gaps, so the
// first one tells whether all that was asked for is still there.
func (d *db) Changes(ctx context.Context, after api.Revision, limit int) ([]api.Delta, error) {
	const doing = "read changes"
	var deltas []api.Delta
	err := d.view(ctx, doing, func(t *sql.Tx) error {
		var current api.Revision
		if err := t.QueryRowContext(ctx, `SELECT revision FROM meta`).Scan(&current); err != nil {
			return err
		}
		if after >= current {
			if after > current { // not of this history
				return store.ErrCompacted
			}
			return nil
		}
		texts, err := list(ctx, t, func(r *sql.Rows, s *string) error { return r.Scan(s) },
			`SELECT delta FROM changes WHERE revision > ? ORDER BY revision LIMIT ?`, int64(after), limit)
		if err != nil {
			return err
		}
		deltas = make([]api.Delta, len(texts))
		for i, text := range texts {
			if err := json.Unmarshal([]byte(text), &deltas[i]); err != nil {
				return err
			}
		}
		if limit > 0 && (len(deltas) == 0 || deltas[0].Revision != after+1) {
			return store.ErrCompacted
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return deltas, nil
}
