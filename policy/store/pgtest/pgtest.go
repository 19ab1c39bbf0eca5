// Package pgtest gives tests a PostgreSQL server of their own, made by package
// pgrun, gone with the test.
//
// Where the package is not installed a test is skipped with one loud line, and
// never with CI=true, where a missing server is a failure. Everything here is
// for the test's goroutine.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"tulle/policy/store/pgrun"
)

// Cluster is a PostgreSQL server in the hands of one test.
type Cluster struct {
	t      testing.TB
	server *pgrun.Server
}

var (
	mu     sync.Mutex    // guards shared
	shared *pgrun.Server // nil: not started
)

// Main runs a package's tests, as its TestMain, and then ends the server that
// they shared.
func Main(m *testing.M) {
	status := m.Run()
	if shared != nil {
		if err := shared.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = max(status, 1)
		}
	}
	os.Exit(status)
}

// Shared is the server that a package's tests share, each with databases of its
// own. It must not be stopped or set, and the package needs Main.
func Shared(t testing.TB) *Cluster {
	t.Helper()
	mu.Lock()
	defer mu.Unlock()
	if shared == nil {
		shared = start(t, nil)
	}
	return &Cluster{t, shared}
}

// Start makes and starts a server for the test's time, with more settings of
// postgresql.conf. It keeps nothing on the disk for sure (fsync is off).
func Start(t testing.TB, settings ...string) *Cluster {
	t.Helper()
	c := &Cluster{t, start(t, settings)}
	t.Cleanup(func() {
		if err := c.server.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func start(t testing.TB, settings []string) *pgrun.Server {
	t.Helper()
	s, err := pgrun.Start(settings...)
	if errors.Is(err, pgrun.ErrMissing) {
		skip(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// skip is the only place where a test of PostgreSQL is skipped.
func skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CANNOT RUN (CI=true makes that a failure): %s", why)
	}
	fmt.Fprintf(os.Stderr, "SKIPPED %s: %s\n", t.Name(), why)
	t.Skip(why)
}

func (c *Cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// File writes a file that only the server's user may read, such as a key, and
// gives its path.
func (c *Cluster) File(name string, text []byte) string {
	c.t.Helper()
	path, err := c.server.File(name, text)
	c.must(err)
	return path
}

// Set adds settings to postgresql.conf, for the next Restart.
func (c *Cluster) Set(settings ...string) {
	c.t.Helper()
	c.must(c.server.Set(settings...))
}

// Stop ends the server at once, as a crash would. Stopping it twice is no error.
func (c *Cluster) Stop() {
	c.t.Helper()
	c.must(c.server.Stop())
}

// Restart starts the server, having stopped it if it ran, and returns when it
// takes connections.
func (c *Cluster) Restart() {
	c.t.Helper()
	c.must(c.server.Restart())
}

// Database makes an empty database and gives its URL.
func (c *Cluster) Database() string {
	c.t.Helper()
	url, err := c.server.Database()
	c.must(err)
	return url
}

// URL is that of a database, over the socket.
func (c *Cluster) URL(database string) string { return c.server.URL(database) }

// Exec runs a statement on a connection of its own.
func (c *Cluster) Exec(url, statement string, args ...any) {
	c.t.Helper()
	c.must(pgrun.Exec(url, statement, args...))
}

// Connect opens a connection, which the caller closes.
func (c *Cluster) Connect(url string) *pgx.Conn {
	c.t.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	c.must(err)
	return conn
}

// Cut ends every connection to the database at url but the caller's own.
func (c *Cluster) Cut(url string) {
	c.t.Helper()
	c.Exec(url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
}
