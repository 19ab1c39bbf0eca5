package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"tulle/policy/api"
)

// Writes go one after the other, and each waits for the disk. Those that come
// while one is under way wait for their turn, and then are made in one
// transaction: eight clients wait for two commits, their own and the one before,
// and not for eight. A write that fails is taken back to a savepoint; the others
// stand. Each has its own revision, as if it had been alone.

// atOnce bounds how many writes are made in one transaction.
const atOnce = 64

// group is where writes wait. The first that comes leads: it makes its own and
// all that wait with it, and gives the lead to the next.
type group struct {
	mu      sync.Mutex // guards what follows
	waiting []*member  // the leader of the next batch first, if there is one
	leading bool
}

// member is one attempt of a write.
type member struct {
	ctx  context.Context
	f    func(*tx) error
	turn chan bool // capacity 1: true, lead; false, it is done
	outcome
}

// outcome is what came of it.
type outcome struct {
	revision api.Revision
	changed  bool
	sent     bool // the commit was under way
	err      error
}

// attemptInTurn is attempt, with whoever waits.
func (d *db) attemptInTurn(ctx context.Context, f func(*tx) error) outcome {
	m := &member{ctx: ctx, f: f, turn: make(chan bool, 1)}
	g := &d.group
	g.mu.Lock()
	g.waiting = append(g.waiting, m)
	lead := !g.leading
	g.leading = true
	g.mu.Unlock()
	if !lead {
		select {
		case lead = <-m.turn:
		case <-ctx.Done():
			if g.withdraw(m) {
				return outcome{err: ctx.Err()}
			}
			lead = <-m.turn // it is being made, or to lead
		}
	}
	if lead {
		d.lead()
	}
	return m.outcome
}

// withdraw takes a member away that nobody has taken up yet.
func (g *group) withdraw(m *member) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.waiting, m)
	if i <= 0 { // the first is the next leader
		return false
	}
	g.waiting = slices.Delete(g.waiting, i, i+1)
	return true
}

// lead makes what waits, the caller's own first.
func (d *db) lead() {
	g := &d.group
	g.mu.Lock()
	n := min(len(g.waiting), atOnce)
	batch := slices.Clone(g.waiting[:n])
	g.waiting = slices.Delete(g.waiting, 0, n)
	g.mu.Unlock()
	d.make(batch)
	g.mu.Lock()
	if len(g.waiting) > 0 {
		g.waiting[0].turn <- true
	} else {
		g.leading = false
	}
	g.mu.Unlock()
	for _, m := range batch[1:] {
		m.turn <- false
	}
}

func (d *db) make(batch []*member) {
	alone := func(m *member) {
		m.revision, m.changed, m.sent, m.err = d.attempt(m.ctx, m.f)
	}
	if len(batch) == 1 {
		alone(batch[0])
		return
	}
	sent, err := d.attemptMany(batch)
	switch {
	case err == nil:
	case sent: // what became of it nobody knows, and it is the same for all
		for _, m := range batch {
			if m.err == nil {
				m.outcome = outcome{sent: true, err: err}
			}
		}
	default: // nothing was made, and one of them may be at fault
		for _, m := range batch {
			alone(m)
		}
	}
}

// attemptMany makes writes in one transaction. An error is about all of them.
func (d *db) attemptMany(batch []*member) (sent bool, err error) {
	// It goes on while any of them is waited for.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var left atomic.Int32
	left.Store(int32(len(batch)))
	for _, m := range batch {
		m.outcome = outcome{}
		stop := context.AfterFunc(m.ctx, func() {
			if left.Add(-1) == 0 {
				cancel()
			}
		})
		defer stop()
	}
	sqlTx, err := d.Writer.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer sqlTx.Rollback() // as in attempt
	first := &tx{Tx: sqlTx, ctx: ctx, db: d, statements: map[string]*sql.Stmt{}}
	if err := d.begin(first); err != nil {
		return false, err
	}
	for _, m := range batch {
		if m.err = m.ctx.Err(); m.err != nil {
			continue
		}
		t := &tx{Tx: sqlTx, ctx: both{ctx, m.ctx}, db: d, now: first.now, statements: first.statements}
		if err := d.one(t, m); err != nil {
			return false, err
		}
	}
	return true, sqlTx.Commit()
}

// one makes one of several writes. An error is about all of them.
func (d *db) one(t *tx, m *member) error {
	if _, err := t.ExecContext(t.ctx, `SAVEPOINT one`); err != nil {
		return fmt.Errorf("begin a write beside others: %w", err)
	}
	if m.err = m.f(t); m.err == nil {
		m.revision, m.changed, m.err = t.record()
	}
	if m.err != nil {
		if _, err := t.ExecContext(t.ctx, `ROLLBACK TO SAVEPOINT one`); err != nil {
			return fmt.Errorf("take a write back: %w", err)
		}
	}
	_, err := t.ExecContext(t.ctx, `RELEASE SAVEPOINT one`)
	return err
}

// both is a context that ends with one and has the values of another.
type both struct {
	context.Context
	values context.Context
}

func (b both) Value(key any) any { return b.values.Value(key) }
