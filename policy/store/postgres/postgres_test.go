package postgres_test

import (
	"net/netip"
	"testing"
	"time"

	"tulle/policy/store"
	"tulle/policy/store/pgtest"
	"tulle/policy/store/postgres"
	"tulle/policy/store/sqlstore"
	"tulle/policy/store/storetest"
)

// TestMain ends the server that the tests share.
func TestMain(m *testing.M) { pgtest.Main(m) }

func options() postgres.Options {
	return postgres.Options{Options: sqlstore.Options{
		Lease: store.LeaseConfig{Network: netip.MustParsePrefix("10.255.0.0/16"), Bits: 24, Lifetime: time.Hour}}}
}

// open opens a store for the test's time.
func open(t testing.TB, url string, o postgres.Options) store.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), url, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// TestStore runs the suite that every store passes.
func TestStore(t *testing.T) {
	cluster := pgtest.Shared(t)
	storetest.Run(t, func(t testing.TB, c storetest.Config) (store.Store, func() store.Store) {
		url := cluster.Database()
		o := postgres.Options{Options: sqlstore.Options{Lease: c.Lease, History: c.History, Audit: c.Audit, TagRest: c.TagRest,
			MaxTag: c.MaxTag, Now: c.Now, Elapsed: c.Elapsed, Random: c.Random}}
		var s store.Store
		open := func() store.Store {
			var err error
			if s, err = postgres.Open(t.Context(), url, o); err != nil {
				t.Fatal(err)
			}
			return s
		}
		open()
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		return s, func() store.Store {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return open()
		}
	})
}
