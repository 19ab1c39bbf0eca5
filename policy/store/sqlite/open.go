// Package sqlite is the store in one SQLite file: the control plane of a single
// server, with nothing to install.
//
// One process owns the file, by a lock beside it. Writes go one after the other
// through one connection, each an immediate transaction that is on the disk when
// the call returns (WAL, synchronous=FULL); reads come from a small pool and see
// one consistent state, never waiting for a write. Everything that is SQLite's
// own dialect stays in this package; the promises are store.Store's, and
// package storetest holds any store to them.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	_ "modernc.org/sqlite" // registers the driver "sqlite"

	"tulle/policy"
	"tulle/policy/store"
	"tulle/policy/store/sqlstore"
)

// Options of a store. The zero value of each field but Lease is its default.
type Options = sqlstore.Options

const readers = 4

// db implements store.Store.
type db struct {
	store.Store

	path   string
	lock   *os.File
	writer *sql.DB // one connection, immediate transactions
	reader *sql.DB // query_only
}

// Open opens the database at path, makes it when there is none, and brings its
// schema up to date. The caller closes it. Errors: store.ErrLocked when another
// process has it open, store.ErrCorrupt, store.ErrFull, store.ErrNewer.
func Open(ctx context.Context, path string, o Options) (store.Store, error) {
	if err := o.Check(); err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	d := &db{path: path}
	if err := d.open(ctx, o); err != nil {
		d.Close()
		return nil, fmt.Errorf("open database %s: %w", path, explain(err))
	}
	return d, nil
}

func (d *db) open(ctx context.Context, o Options) error {
	lock, err := lockFile(d.path)
	if err != nil {
		return err
	}
	d.lock = lock
	// SQLite would make the file by the umask; who may read it is not left to
	// that. The journals beside it take the file's mode.
	f, err := openFile(d.path)
	if err != nil {
		return bare(err)
	}
	f.Close()

	if d.writer, err = sql.Open("sqlite", dsn(d.path, "immediate", "synchronous(FULL)")); err != nil {
		return err
	}
	d.writer.SetMaxOpenConns(1)
	if err := d.check(ctx); err != nil {
		return err
	}
	version, err := owned(ctx, d.writer)
	if err != nil {
		return err
	}
	// The file remembers this mode, so no other connection has to ask for it;
	// and a file that is not ours was not touched until here.
	var mode string
	if err := d.writer.QueryRowContext(ctx, `PRAGMA journal_mode = WAL`).Scan(&mode); err != nil {
		return err
	}
	if mode != "wal" {
		return fmt.Errorf("journal mode is %s: the file system does not support WAL", mode)
	}
	if err := migrate(ctx, d.writer, version); err != nil {
		return err
	}
	if d.reader, err = sql.Open("sqlite", dsn(d.path, "deferred", "query_only(1)")); err != nil {
		return err
	}
	d.reader.SetMaxOpenConns(readers)
	d.reader.SetMaxIdleConns(readers)
	d.Store, err = sqlstore.New(ctx, sqlstore.Database{
		Writer: d.writer, Reader: d.reader, Pulse: new(sqlstore.Pulse),
		View:    sql.TxOptions{ReadOnly: true},
		Prepare: true,
		Query:   func(query string) string { return query },
		List:    `(SELECT value FROM json_each(?))`,
		Texts:   func(apps []policy.AppID) []policy.AppID { return apps },
		Explain: explain,
		// Nobody else writes: what went wrong once, goes wrong again.
		Again: func(error, bool) bool { return false },
	}, o)
	return err
}

// check reads the file's structure once, so that damage is found when the
// server starts and not in the middle of its work.
func (d *db) check(ctx context.Context) error {
	var verdict string
	if err := d.writer.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&verdict); err != nil {
		return err
	}
	if verdict != "ok" {
		return fmt.Errorf("%w: %s", store.ErrCorrupt, verdict)
	}
	return nil
}

func dsn(path, txlock, pragma string) string {
	q := url.Values{"_txlock": {txlock}, "_pragma": {
		"busy_timeout(10000)", "foreign_keys(1)", pragma,
	}}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

// Close ends the store. Reads and writes under way end first.
func (d *db) Close() error {
	var errs []error
	if d.reader != nil {
		errs = append(errs, d.reader.Close())
	}
	if d.writer != nil {
		errs = append(errs, d.writer.Close()) // the last one out folds the journal in
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
		d.lock = nil
	}
	return errors.Join(errs...)
}

// bare takes the path out of a file error: Open says it once.
func bare(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
