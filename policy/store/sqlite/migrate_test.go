package sqlite_test

import (
	"database/sql"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
	"tulle/policy/store/sqlite"
)

// TestADatabaseOfTheFirstVersionIsBroughtUpToDate: what it holds stands, and
// what came later works on it.
func TestADatabaseOfTheFirstVersionIsBroughtUpToDate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.db")
	schema, err := os.ReadFile("migrations/0001_foundation.sql")
	if err != nil {
		t.Fatal(err)
	}
	old, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(schema), `
		INSERT INTO meta VALUES (1, 'first', 7, 1800000000000000);
		INSERT INTO policies VALUES ('web', 'db', 6, 80, 80);
		INSERT INTO tags (tag, app, free_at) VALUES (1, 'web', 0), (2, NULL, 0), (3, 'db', 0);
		PRAGMA application_id = 0x74756c6c; PRAGMA user_version = 1`} {
		if _, err := old.ExecContext(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := sqlite.Open(t.Context(), path, sqlite.Options{Lease: store.LeaseConfig{
		Network: netip.MustParsePrefix("10.255.0.0/16"), Bits: 24, Lifetime: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.RestTags(func() api.Revision { return 9 }) // what was released before there was a revision to it is free
	router, err := s.Tag(t.Context(), "INGRESS_ROUTER", "router")
	if err != nil {
		t.Fatal(err)
	}
	state, err := s.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []api.AppTag{{App: "web", Tag: 1}, router, {App: "db", Tag: 3}}
	if diff := cmp.Diff(want, state.Tags); diff != "" || router.Tag != 2 || state.Epoch != "first" || state.Revision != 9 || len(state.Policies) != 1 {
		t.Errorf("epoch %s, revision %d, policies %v, tags (-want +got):\n%s", state.Epoch, state.Revision, state.Policies, diff)
	}
	if diff := cmp.Diff([]policy.Hostname{policy.DefaultDomain}, state.Domains); diff != "" {
		t.Errorf("domains (-want +got):\n%s", diff)
	}
	at, err := s.SecurityGroupsUpdated(t.Context())
	if err != nil || at.UnixNano() != 0 {
		t.Errorf("security groups updated at %s, %v", at, err)
	}
}
