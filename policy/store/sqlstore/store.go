// Package sqlstore is what every SQL store has in common: the control plane's
// reads and writes, in SQL that SQLite and PostgreSQL both understand.
//
// Packages sqlite and postgres open a database, bring its schema up to date and
// give it to New with what is their own: how a parameter is written, how a
// write begins, what their errors mean and which of them are worth another try.
// So the logic of leases, tags and endpoints exists once, and a difference
// between the two databases stands in their packages alone.
//
// A write holds the single row of meta from its first statement to its commit,
// on every database: writes go one after the other over all servers, and commit
// order is revision order. Methods are safe for concurrent use.
package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/lease"
	"tulle/policy/store"
)

// Options of a store. The zero value of each field but Lease is its default.
type Options struct {
	Lease store.LeaseConfig
	// History is how many changes are kept for watchers that reconnect; 10,000.
	History int
	// TagRest is how long a released tag is given to nobody, whoever has
	// acknowledged its release: for agents that poll and acknowledge nothing.
	TagRest time.Duration
	// MaxTag is the last tag that is given; policy.MaxTag, which the wire bears.
	MaxTag policy.Tag
	// Audit is how many entries of the audit record are kept; 100,000.
	Audit int
	// Now is the clock; that of the database where it has one that all servers
	// share, else time.Now.
	Now func() time.Time
	// Elapsed is the time since some moment by a clock that nobody sets, by which
	// leases are counted where the database has no clock; without it, with Now
	// given, they are counted by Now.
	Elapsed func() time.Duration
	// Random draws from 0 to n-1, for the choice of subnets; math/rand.
	Random func(n int) int
}

const (
	defaultHistory = 10_000
	defaultAudit   = 100_000
)

// complete fills the defaults in and checks the rest.
func (o *Options) complete() (lease.Pool, error) {
	if o.History <= 0 {
		o.History = defaultHistory
	}
	if o.MaxTag == policy.NoTag {
		o.MaxTag = policy.MaxTag
	}
	if o.Audit <= 0 {
		o.Audit = defaultAudit
	}
	if o.Now == nil {
		start := time.Now()
		o.Now = time.Now
		o.Elapsed = func() time.Duration { return time.Since(start) }
	}
	if o.Random == nil {
		o.Random = rand.IntN
	}
	if o.Lease.Lifetime < time.Second {
		return lease.Pool{}, fmt.Errorf("lease lifetime %s: must be a second or more", o.Lease.Lifetime)
	}
	return lease.NewPool(o.Lease.Network, o.Lease.Bits)
}

// Check says what is wrong with the options, before a database is touched.
func (o Options) Check() error {
	_, err := o.complete()
	return err
}

// Database is an open database and its ways. Query, List and Explain may be
// called by any goroutine.
type Database struct {
	Writer *sql.DB // for writes
	Reader *sql.DB // for reads; may be the same
	Pulse  *Pulse  // told of every change that this store commits
	Notify string  // a statement that each change ends with, to tell other servers; "": none

	// Lock is the statement that a write begins with, so that it sees what the
	// one before it did; "": beginning is enough.
	Lock string
	// Clock is an expression of the time in microseconds since 1970, by which
	// servers on several machines agree on when a lease ends; "": time.Now.
	Clock string

	View sql.TxOptions // of a transaction whose reads all see one state
	// Prepare: statements are prepared once a transaction. Otherwise the driver
	// sees to that.
	Prepare bool
	// Query writes a statement with parameters as ? or ?1 in the database's way.
	Query func(string) string
	// List is a subquery of the texts in the parameter ?, a JSON array.
	List string
	// Texts keeps of a filter's texts those that the database can hold.
	Texts func([]policy.AppID) []policy.AppID

	// Explain gives the database's errors the store's names.
	Explain func(error) error
	// Again says whether an attempt that ended with err may be repeated. For
	// the error of a commit, sent is true: then only an error that says that
	// nothing was stored may be.
	Again func(err error, sent bool) bool
}

// db implements store.Store.
type db struct {
	Database
	options Options
	pool    lease.Pool
	epoch   atomic.Pointer[api.Epoch]
	steady  *steady // nil: leases are counted by now
	group   group

	acknowledged atomic.Pointer[func() api.Revision] // see store.RestTags
}

// New makes the store of a database whose schema is up to date. Close closes
// Writer and Reader.
func New(ctx context.Context, database Database, o Options) (store.Store, error) {
	if o.Now != nil {
		database.Clock = ""
	}
	pool, err := o.complete()
	if err != nil {
		return nil, err
	}
	d := &db{Database: database, options: o, pool: pool}
	if d.Clock == "" && o.Elapsed != nil {
		d.steady = &steady{elapsed: o.Elapsed, zero: o.Now().Round(0).Add(-o.Elapsed())}
	}
	var epoch api.Epoch
	err = d.read(ctx, "read epoch", func(q querier) error {
		return q.QueryRowContext(ctx, `SELECT epoch FROM meta`).Scan(&epoch)
	})
	if err != nil {
		return nil, err
	}
	d.epoch.Store(&epoch)
	return d, nil
}

// Close ends the store. Reads and writes under way end first.
func (d *db) Close() error {
	err := d.Reader.Close()
	// The writer is the last one out: with SQLite that folds the journal in.
	if e := d.Writer.Close(); e != nil {
		err = e
	}
	return err
}

// Epoch is that of the last state read: a restore on another server changes it.
func (d *db) Epoch() api.Epoch { return *d.epoch.Load() }

// Ping reads one row: the database is there and answers.
func (d *db) Ping(ctx context.Context) error {
	var one int
	return d.read(ctx, "ping", func(q querier) error {
		return q.QueryRowContext(ctx, `SELECT id FROM meta`).Scan(&one)
	})
}

// now is the time by the clock that counts.
func (d *db) now(ctx context.Context, q querier) (time.Time, error) {
	if d.Clock == "" {
		return d.options.Now(), nil
	}
	var micros int64
	err := q.QueryRowContext(ctx, `SELECT `+d.Clock).Scan(&micros)
	return time.UnixMicro(micros), err
}

func (d *db) Changed() <-chan struct{} { return d.Pulse.Wait() }

// fail wraps err with what was being done; nil stays nil.
func (d *db) fail(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, d.Explain(err))
}
