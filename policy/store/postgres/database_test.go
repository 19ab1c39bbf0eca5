package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/store"
	"tulle/policy/store/pgtest"
	"tulle/policy/store/postgres"
)

// TestGivenUpTransactions: what the database gives up for another transaction
// is run again, and is stored once.
func TestGivenUpTransactions(t *testing.T) {
	cluster := pgtest.Shared(t)
	url := cluster.Database()
	s := open(t, url, options())
	// A sequence keeps what a transaction that is rolled back took of it.
	cluster.Exec(url, `CREATE SEQUENCE tries;
		CREATE FUNCTION give_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF nextval('tries') < 4 THEN RAISE EXCEPTION 'not now' USING ERRCODE = TG_ARGV[0]; END IF;
			RETURN NULL;
		END $$`)
	for n, code := range []string{"40001", "40P01"} {
		cluster.Exec(url, fmt.Sprintf(`SELECT setval('tries', 1, false);
			DROP TRIGGER IF EXISTS give_up ON changes;
			CREATE CONSTRAINT TRIGGER give_up AFTER INSERT ON changes DEFERRABLE INITIALLY %s
				FOR EACH ROW EXECUTE FUNCTION give_up('%s')`, []string{"DEFERRED", "IMMEDIATE"}[n], code))
		// Deferred, it is the commit that fails, and says that it did.
		revision, err := s.AddPolicies(t.Context(), []policy.Policy{tcp("a", "b", n+1)})
		if err != nil || int(revision) != n+1 {
			t.Errorf("%s: revision %d, %v", code, revision, err)
		}
	}
	cluster.Exec(url, `SELECT setval('tries', 1, false); DROP TRIGGER give_up ON changes;
		CREATE TRIGGER give_up AFTER INSERT ON changes FOR EACH ROW EXECUTE FUNCTION give_up('23514')`)
	if _, err := s.AddPolicies(t.Context(), []policy.Policy{tcp("a", "b", 3)}); err == nil || !strings.Contains(err.Error(), "not now") {
		t.Errorf("an error that another try does not mend: %v", err)
	}
	ps, err := s.Policies(t.Context(), store.Filter{})
	if err != nil || len(ps) != 2 {
		t.Errorf("policies %v, %v", ps, err)
	}
}

// TestDeadlock makes a real one, with a transaction of an operator's.
func TestDeadlock(t *testing.T) {
	cluster := pgtest.Shared(t)
	url := cluster.Database()
	// Whoever looks first is the one who is given up.
	s := open(t, url+"&deadlock_timeout=200ms", options())
	operator := cluster.Connect(url)
	defer operator.Close(context.Background())
	must := func(statement string) {
		t.Helper()
		if _, err := operator.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	must(`SET deadlock_timeout = '60s'; BEGIN; LOCK TABLE policies IN SHARE ROW EXCLUSIVE MODE`)
	done := make(chan error, 1)
	go func() {
		_, err := s.AddPolicies(t.Context(), []policy.Policy{tcp("a", "b", 1)})
		done <- err
	}()
	for blocked := false; !blocked; { // s holds meta, and waits for policies
		blocked = query[bool](t, cluster.Connect(url), `SELECT EXISTS (SELECT 1 FROM pg_locks WHERE relation = 'policies'::regclass AND NOT granted)`)
	}
	must(`UPDATE meta SET policies_updated = policies_updated`) // waits for s, and s for us
	must(`COMMIT`)
	if err := <-done; err != nil {
		t.Errorf("a write that was in a deadlock: %v", err)
	}
	if err := s.Close(); err != nil { // the database counts a session's deadlocks at its end
		t.Error(err)
	}
	for n := 0; n == 0; {
		n = query[int](t, cluster.Connect(url), `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`)
	}
}

// TestDurableWhateverTheDefault: an answered write was on the disk even where
// the database's default is not to wait.
func TestDurableWhateverTheDefault(t *testing.T) {
	cluster := pgtest.Start(t, "synchronous_commit = off")
	url := cluster.Database()
	s := open(t, url, options())
	cluster.Exec(url, `CREATE TABLE seen (setting text);
		CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$;
		CREATE TRIGGER look AFTER INSERT ON policies FOR EACH ROW EXECUTE FUNCTION look()`)
	if _, err := s.AddPolicies(t.Context(), []policy.Policy{tcp("a", "b", 1)}); err != nil {
		t.Fatal(err)
	}
	if got := query[string](t, cluster.Connect(url), `SELECT setting FROM seen`); got != "on" {
		t.Errorf("a write was committed with synchronous_commit %q", got)
	}
}

// query reads one value and closes the connection.
func query[T any](t *testing.T, c *pgx.Conn, text string) (v T) {
	t.Helper()
	defer c.Close(context.Background())
	if err := c.QueryRow(t.Context(), text).Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestOneClock: when a lease ends is judged by the database's clock, which here
// is an hour ahead of the server's.
func TestOneClock(t *testing.T) {
	cluster := pgtest.Shared(t)
	url := cluster.Database()
	cluster.Exec(url, `CREATE SCHEMA fake; CREATE FUNCTION fake.clock_timestamp() RETURNS timestamptz
		LANGUAGE sql AS $$ SELECT pg_catalog.clock_timestamp() + interval '1 hour' $$`)
	s := open(t, url+"&search_path=public,fake,pg_catalog", options())
	before := time.Now()
	if _, err := s.Lease(t.Context(), "a", api.LeaseRequest{Underlay: netip.MustParseAddr("192.0.2.1"), Port: 1, Mode: api.ModeVXLAN}); err != nil {
		t.Fatal(err)
	}
	cells, err := s.Cells(t.Context())
	if err != nil || len(cells) != 1 {
		t.Fatalf("cells %v, %v", cells, err)
	}
	if ahead := cells[0].Renewed.Sub(before).Round(time.Minute); ahead != time.Hour {
		t.Errorf("renewed %s ahead of the server's clock, want an hour", ahead)
	}
	next, err := s.Expire(t.Context())
	if in := next.Sub(before).Round(time.Minute); err != nil || in != time.Hour+6*time.Minute {
		t.Errorf("the lease ends in %s, %v; want its lifetime of an hour and the grace", in, err)
	}
}

func TestConnectionLimit(t *testing.T) {
	cluster := pgtest.Shared(t)
	url := cluster.Database()
	o := options()
	o.Connections = postgres.MinConnections - 1
	if _, err := postgres.Open(t.Context(), url, o); err == nil || !strings.Contains(err.Error(), "must be 4 or more") {
		t.Errorf("too few connections: %v", err)
	}
	o.Connections = 5
	s := open(t, url, o)
	observer := cluster.Connect(url)
	var wg sync.WaitGroup
	for n := range 40 {
		wg.Go(func() {
			if _, err := s.AddPolicies(t.Context(), []policy.Policy{tcp("a", "b", n+1)}); err != nil {
				t.Error(err)
			}
			if _, err := s.State(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got := query[int](t, observer, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tulle-policy-server' AND datname = current_database()`)
	if got < postgres.MinConnections || got > 5 {
		t.Errorf("%d connections, want 4 or 5", got)
	}
}

func TestOtherDatabases(t *testing.T) {
	cluster := pgtest.Shared(t)
	foreign, newer := cluster.Database(), cluster.Database()
	cluster.Exec(foreign, `CREATE TABLE recipes (name text)`)
	if err := open(t, newer, options()).Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	cluster.Exec(newer, `UPDATE tulle_schema SET version = 1000`)
	for name, c := range map[string]struct {
		url  string
		want error
		text string
	}{
		"another program's": {foreign, store.ErrCorrupt, "another program's tables"},
		"newer":             {newer, store.ErrNewer, "schema 1000"},
		"not there":         {cluster.URL("nowhere"), nil, `"nowhere" does not exist`},
		"no such user":      {strings.Replace(foreign, "user=tulle", "user=eve", 1), nil, `"eve" does not exist`},
		"nobody listens":    {"postgres://u:secret@127.0.0.1:1/x?sslmode=disable", nil, "refused"},
		"no URL":            {"postgres://u:secret@[/x", nil, "parse"},
		"unknown mode":      {"postgres://h/x?sslmode=perhaps", nil, "sslmode"},
	} {
		_, err := postgres.Open(t.Context(), c.url, options())
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v; want %v, saying %q", name, err, c.want, c.text)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error tells the password: %v", name, err)
		}
	}
	// What is another program's in a schema beside ours does not matter.
	cluster.Exec(foreign, `CREATE SCHEMA tulle`)
	s := open(t, foreign+"&search_path=tulle", options())
	if _, err := s.AddPolicies(t.Context(), []policy.Policy{tcp("a", "b", 1)}); err != nil {
		t.Error(err)
	}
}

// TestTextThatCannotBeStored: PostgreSQL's text holds no zero byte.
func TestTextThatCannotBeStored(t *testing.T) {
	s := open(t, pgtest.Shared(t).Database(), options())
	if _, err := s.AddPolicies(t.Context(), []policy.Policy{tcp("a\x00", "b", 1)}); !errors.Is(err, store.ErrConflict) {
		t.Errorf("a zero byte: %v, want %v", err, store.ErrConflict)
	}
	for _, app := range []policy.AppID{"a\x00", "a\xff", "\\u0000", `"`} {
		ps, err := s.Policies(t.Context(), store.Filter{IDs: []policy.AppID{app}})
		if err != nil || len(ps) != 0 {
			t.Errorf("policies of %q: %v, %v", app, ps, err)
		}
	}
}

// TestTLS lets the server in by its certificate alone, and demands the client's.
func TestTLS(t *testing.T) {
	cluster := pgtest.Start(t)
	url := cluster.Database()
	dir := t.TempDir()
	roots, err := ca.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	cred, err := roots.Server.IssueServer([]string{"127.0.0.1"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(free.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	cluster.Set("listen_addresses = '127.0.0.1'", "port = "+port, "ssl = on",
		"ssl_cert_file = '"+cluster.File("server.pem", cred.CertPEM)+"'",
		"ssl_key_file = '"+cluster.File("server.key", cred.KeyPEM)+"'")
	cluster.Restart()
	url += "&port=" + port // the socket's name has it too

	name := filepath.Base(strings.SplitN(url, "?", 2)[0])
	over := func(query string) string {
		return "postgres://tulle@127.0.0.1:" + port + "/" + name + "?" + query
	}
	root := func(a *ca.Authority, file string) string {
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, a.CertPEM(), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	s := open(t, over("sslmode=verify-full&sslrootcert="+root(roots.Server, "server-root.pem")), options())
	if _, err := s.AddPolicies(t.Context(), []policy.Policy{tcp("a", "b", 1)}); err != nil {
		t.Fatal(err)
	}
	if plain := query[int](t, cluster.Connect(url), `SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
		WHERE application_name = 'tulle-policy-server' AND NOT ssl`); plain != 0 {
		t.Errorf("%d connections in clear", plain)
	}
	_, err = postgres.Open(t.Context(), over("sslmode=verify-full&sslrootcert="+root(roots.Cells, "other-root.pem")), options())
	if err == nil || !strings.Contains(err.Error(), "certificate signed by unknown authority") {
		t.Errorf("with another root: %v", err)
	}
}
