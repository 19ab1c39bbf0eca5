package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"tulle/policy/server"
	"tulle/policy/store"
	"tulle/policy/store/postgres"
	"tulle/policy/store/sqlite"
	"tulle/policy/store/sqlstore"
)

// legacyTagRest is twelve polls of the original's agent, which acknowledges
// nothing: by then it has heard that a tag was released.
const legacyTagRest = time.Minute

// open opens the database that the configuration names.
func (c *config) open(ctx context.Context, log *slog.Logger) (store.Store, error) {
	o := sqlstore.Options{Lease: c.lease(), Audit: c.AuditEntries}
	if c.Legacy != "" {
		o.TagRest = legacyTagRest
	}
	if postgres.IsURL(c.Database) {
		return postgres.Open(ctx, c.Database, postgres.Options{Options: o, Connections: c.DatabaseConnections, Log: log})
	}
	return sqlite.Open(ctx, c.Database, o)
}

// adminSocket is where commands reach the server: beside a file, else in the
// state directory.
func (c *config) adminSocket() string {
	if postgres.IsURL(c.Database) {
		return filepath.Join(c.State, "admin.sock")
	}
	return server.AdminSocket(c.Database)
}

// claimState makes sure that of several servers on one database each has a
// state directory, and so an admin socket, of its own. A file of SQLite has its
// own lock. release ends the claim; the kernel does so when the process ends.
func (c *config) claimState() (release func() error, err error) {
	if !postgres.IsURL(c.Database) {
		return func() error { return nil }, nil
	}
	if err := os.MkdirAll(c.State, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(c.State, "server.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errors.New("in use by another server; give each a `state` of its own")
		}
		return nil, errors.Join(fmt.Errorf("state directory %s: %w", c.State, err), f.Close())
	}
	return f.Close, nil
}
