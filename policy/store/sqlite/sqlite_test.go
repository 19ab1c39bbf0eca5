package sqlite_test

import (
	"path/filepath"
	"testing"

	"tulle/policy/store"
	"tulle/policy/store/sqlite"
	"tulle/policy/store/storetest"
)

// TestStore runs the suite that every store passes.
func TestStore(t *testing.T) {
	storetest.Run(t, func(t testing.TB, c storetest.Config) (store.Store, func() store.Store) {
		path := filepath.Join(t.TempDir(), "tulle.db")
		o := sqlite.Options{Lease: c.Lease, History: c.History, Audit: c.Audit, TagRest: c.TagRest, MaxTag: c.MaxTag, Now: c.Now, Elapsed: c.Elapsed, Random: c.Random}
		var s store.Store
		open := func() store.Store {
			var err error
			if s, err = sqlite.Open(t.Context(), path, o); err != nil {
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
