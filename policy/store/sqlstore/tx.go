package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"math/rand/v2"
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
	notes []note // for the audit record

	replaced bool // the whole content: there is no delta that leads here

	free []policy.Tag // tags to give, lowest first; see assignTag
	next policy.Tag   // the first tag that was never given; 0 until free is read

	// statements are prepared once a transaction; a create of ten thousand
	// policies runs the same five over and over. They end with the transaction.
	statements map[string]*sql.Stmt
}

// attempts bounds how often a write or a read is tried.
const attempts = 6

// write runs f in a transaction. What f put into the delta becomes the next
// revision, or no revision where f changed nothing; then watchers are woken. An
// error leaves nothing behind. f is run again, in a transaction of its own,
// when the database gave the first one up without a fault of its own.
func (d *db) write(ctx context.Context, doing string, f func(*tx) error) (api.Revision, error) {
	f = admitted(store.ActorOf(ctx), f)
	for n := 1; ; n++ {
		o := d.attemptInTurn(ctx, f)
		if o.err == nil {
			if o.changed {
				d.Pulse.Beat()
			}
			return o.revision, nil
		}
		if n == attempts || !d.Again(o.err, o.sent) || !d.pause(ctx, n) {
			if o.sent {
				d.Pulse.Doubt()
			}
			return 0, d.fail(doing, o.err)
		}
	}
}

// pause waits before the attempt after the n-th, longer each time and by chance,
// so that two servers do not meet again. It reports whether ctx goes on.
func (d *db) pause(ctx context.Context, n int) bool {
	wait := time.Duration(1+rand.IntN(5<<n)) * time.Millisecond
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// attempt is one try of a write. sent says that the commit was under way.
func (d *db) attempt(ctx context.Context, f func(*tx) error) (revision api.Revision, changed, sent bool, err error) {
	sqlTx, err := d.Writer.BeginTx(ctx, nil)
	if err != nil {
		return 0, false, false, err
	}
	// After Commit this does nothing; after a full disk SQLite may have rolled
	// back by itself. Neither is worth a word.
	defer sqlTx.Rollback()
	t := &tx{Tx: sqlTx, ctx: ctx, db: d, statements: map[string]*sql.Stmt{}}
	if err := d.begin(t); err != nil {
		return 0, false, false, err
	}
	if err := f(t); err != nil {
		return 0, false, false, err
	}
	if revision, changed, err = t.record(); err != nil {
		return 0, false, false, err
	}
	return revision, changed, true, t.Commit()
}

// begin makes the transaction the only write there is, and tells it the time.
func (d *db) begin(t *tx) error {
	if d.Lock != "" {
		if _, err := t.Tx.ExecContext(t.ctx, d.Lock); err != nil {
			return err
		}
	}
	var err error
	t.now, err = d.now(t.ctx, t)
	return err
}

// record raises the revision and keeps the delta, if there is any, and writes
// the audit record.
func (t *tx) record() (revision api.Revision, changed bool, err error) {
	if revision, changed, err = t.recordDelta(); err != nil {
		return 0, false, err
	}
	return revision, changed, t.recordNotes(revision)
}

func (t *tx) recordDelta() (revision api.Revision, changed bool, err error) {
	d := &t.delta
	if !t.replaced && len(d.PoliciesAdded)+len(d.PoliciesRemoved)+len(d.TagsSet)+len(d.TagsRemoved)+
		len(d.EndpointsSet)+len(d.EndpointsRemoved)+len(d.PeersSet)+len(d.PeersRemoved)+
		len(d.DomainsSet)+len(d.DomainsRemoved)+len(d.RoutesSet)+len(d.RoutesRemoved)+len(d.Revoked)+len(d.SecretsSet) == 0 {
		err = t.row(&revision, `SELECT revision FROM meta`)
		return revision, false, err
	}
	if err := t.row(&revision, `UPDATE meta SET revision = revision + 1 RETURNING revision`); err != nil {
		return 0, false, err
	}
	if !t.replaced {
		d.Revision = revision
		text, err := json.Marshal(d)
		if err != nil {
			return 0, false, err
		}
		if err := t.exec(`INSERT INTO changes (revision, delta) VALUES (?, ?)`, revision, string(text)); err != nil {
			return 0, false, err
		}
	}
	if err := t.exec(`DELETE FROM changes WHERE revision <= ?`, int64(revision)-int64(t.db.options.History)); err != nil {
		return 0, false, err
	}
	if t.db.Notify != "" {
		_, err = t.ExecContext(t.ctx, t.db.Notify)
	}
	return revision, true, err
}

func (t *tx) statement(query string) (*sql.Stmt, error) {
	if s := t.statements[query]; s != nil {
		return s, nil
	}
	s, err := t.PrepareContext(t.ctx, t.db.Query(query))
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
	r, err := t.run(query, args...)
	if err != nil {
		return false, err
	}
	n, err := r.RowsAffected()
	return n > 0, err
}

func (t *tx) run(query string, args ...any) (sql.Result, error) {
	if !t.db.Prepare {
		return t.ExecContext(t.ctx, t.db.Query(query), args...)
	}
	s, err := t.statement(query)
	if err != nil {
		return nil, err
	}
	return s.ExecContext(t.ctx, args...)
}

// row reads the first column of one row into dest.
func (t *tx) row(dest any, query string, args ...any) error {
	if !t.db.Prepare {
		return t.QueryRowContext(t.ctx, query, args...).Scan(dest)
	}
	s, err := t.statement(query)
	if err != nil {
		return err
	}
	return s.QueryRowContext(t.ctx, args...).Scan(dest)
}

// QueryContext and QueryRowContext make the transaction a querier.

func (t *tx) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return t.Tx.QueryContext(ctx, t.db.Query(query), args...)
}

func (t *tx) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	return t.Tx.QueryRowContext(ctx, t.db.Query(query), args...)
}

// found turns "no row" into false.
func found(err error) (bool, error) {
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// querier is a database or a transaction that takes portable SQL.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// portable makes one of a database's own.
type portable struct {
	querier
	write func(string) string // portable SQL in the database's way
}

func (p portable) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return p.querier.QueryContext(ctx, p.write(query), args...)
}

func (p portable) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	return p.querier.QueryRowContext(ctx, p.write(query), args...)
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

// read runs f, which may be run again, with a connection for one query.
func (d *db) read(ctx context.Context, doing string, f func(querier) error) error {
	for n := 1; ; n++ {
		err := f(portable{d.Reader, d.Query})
		if err == nil || n == attempts || !d.Again(err, false) || !d.pause(ctx, n) {
			return d.fail(doing, err)
		}
	}
}

// view runs f, which may be run again, in a read transaction: one consistent
// state, however many queries.
func (d *db) view(ctx context.Context, doing string, f func(querier) error) error {
	once := func() error {
		t, err := d.Reader.BeginTx(ctx, &d.View)
		if err != nil {
			return err
		}
		defer t.Rollback() // nothing to commit
		return f(portable{t, d.Query})
	}
	for n := 1; ; n++ {
		err := once()
		if err == nil || n == attempts || !d.Again(err, false) || !d.pause(ctx, n) {
			return d.fail(doing, err)
		}
	}
}

// State reads everything at one revision.
func (d *db) State(ctx context.Context) (*store.State, error) {
	s := &store.State{}
	err := d.view(ctx, "read state", func(t querier) (err error) {
		if err = t.QueryRowContext(ctx, `SELECT epoch, revision FROM meta`).Scan(&s.Epoch, &s.Revision); err != nil {
			return err
		}
		if s.Policies, err = d.listPolicies(ctx, t, store.Filter{}); err != nil {
			return err
		}
		if s.Tags, err = listTags(ctx, t); err != nil {
			return err
		}
		if s.Endpoints, err = listEndpoints(ctx, t, ``); err != nil {
			return err
		}
		if s.Domains, err = listDomains(ctx, t); err != nil {
			return err
		}
		if s.Routes, err = listRoutes(ctx, t, store.RouteFilter{}); err != nil {
			return err
		}
		if s.Revoked, err = listRevocations(ctx, t); err != nil {
			return err
		}
		if s.Secrets, err = listSecrets(ctx, t); err != nil {
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
	d.epoch.Store(&s.Epoch)
	return s, nil
}

// Changes reads what is kept of the history. Kept changes have no gaps, so the
// first one tells whether all that was asked for is still there. Those of
// another epoch than Epoch's are another history's.
func (d *db) Changes(ctx context.Context, after api.Revision, limit int) ([]api.Delta, error) {
	const doing = "read changes"
	var deltas []api.Delta
	err := d.view(ctx, doing, func(t querier) error {
		var epoch api.Epoch
		var current api.Revision
		if err := t.QueryRowContext(ctx, `SELECT epoch, revision FROM meta`).Scan(&epoch, &current); err != nil {
			return err
		}
		deltas = nil
		if after >= current || epoch != d.Epoch() {
			if after > current || epoch != d.Epoch() { // not of this history
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
