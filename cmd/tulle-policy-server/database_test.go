package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tulle/policy/store/pgtest"
)

// replica writes the configuration of another server beside the one of init's,
// with the same keys, tokens and database and a state of its own.
func replica(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name+".yaml")
	text := read(t, filepath.Join(dir, configFile)) + "state: " + name + "\ndatabase_connections: 5\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestServersOnOneDatabase runs two servers on PostgreSQL, as an operator
// configures them: what is told to one is known to the other, and one can go.
func TestServersOnOneDatabase(t *testing.T) {
	dir := initialised(t, "--database", pgtest.Start(t).Database())
	token := strings.TrimSpace(read(t, filepath.Join(dir, adminToken)))
	one, two := replica(t, dir, "one"), replica(t, dir, "two")
	a, b := serving(t, "--config", one), serving(t, "--config", two)
	if a.Epoch == "" || a.Epoch != b.Epoch {
		t.Errorf("epochs %q and %q, want one", a.Epoch, b.Epoch)
	}
	if want := filepath.Join(dir, "one", "admin.sock"); a.Admin != want {
		t.Errorf("admin socket %s, want %s", a.Admin, want)
	}
	status, _, stderr := call(t, "serve", "--config", one)
	if status != 1 || !strings.Contains(stderr, "in use by another server") {
		t.Errorf("a second server with the same state: %d %s", status, stderr)
	}
	must(t, "add-peer", "silk-1", "--config", one, "--underlay", "192.0.2.9", "--subnet", "10.255.9.0/24")
	for _, s := range []*running{a, b} {
		if got := s.get(t, "/v1/cells", token); !strings.Contains(got, `"name":"silk-1"`) {
			t.Errorf("cells: %s", got)
		}
	}
	if status, text := a.stop(); status != 0 {
		t.Errorf("stopped with %d: %s", status, text)
	}
	// Its own server is gone: the command writes the database, the other reads it.
	must(t, "remove-peer", "silk-1", "--config", one)
	if got := b.get(t, "/v1/cells", token); got != `200 OK {"cells":[]}` {
		t.Errorf("cells after the removal: %s", got)
	}
	if status, text := b.stop(); status != 0 {
		t.Errorf("stopped with %d: %s", status, text)
	}
	for _, left := range []string{"policy.db", "one/admin.sock", "two/admin.sock"} {
		if _, err := os.Stat(filepath.Join(dir, left)); err == nil {
			t.Errorf("%s is left after a clean stop", left)
		}
	}
}

func TestDatabaseURLsThatMakeNoSense(t *testing.T) {
	dir := initialised(t)
	for value, want := range map[string]string{
		"database: postgres://u:sesame@h/x?sslmode=perhaps":     "sslmode is invalid",
		"database: postgres://u:sesame@[/x":                     "database: cannot parse",
		"database: postgres://u:sesame@127.0.0.1:1/x":           "127.0.0.1:1/x",
		"database_connections: 3":                               "must be 4 or more",
		"database: postgres://u:sesame@h/x\ndatabase_pool: 100": "database_pool",
	} {
		path := filepath.Join(dir, "bad.yaml")
		if err := os.WriteFile(path, []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		status, _, stderr := call(t, "serve", "--config", path)
		if status != 1 || !strings.Contains(stderr, want) || strings.Contains(stderr, "sesame") {
			t.Errorf("%s: status %d, %s; want %q and no password", value, status, stderr, want)
		}
	}
}
