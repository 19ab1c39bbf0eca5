package sqlite

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tulle/policy/store"
)

// What is answered is on the disk: the writer syncs every commit, also on a
// connection that had to be made anew, the readers cannot write, and the file is
// its owner's alone whatever the umask.
func TestDurabilityIsAskedFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tulle.db")
	s, err := Open(t.Context(), path, Options{Lease: store.LeaseConfig{Network: netip.MustParsePrefix("10.255.0.0/16"), Bits: 24, Lifetime: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d := s.(*db)
	for _, connection := range []string{"first", "next"} {
		var synchronous int
		var journal string
		if err := d.writer.QueryRowContext(t.Context(), `PRAGMA synchronous`).Scan(&synchronous); err != nil {
			t.Fatal(err)
		}
		if err := d.writer.QueryRowContext(t.Context(), `PRAGMA journal_mode`).Scan(&journal); err != nil {
			t.Fatal(err)
		}
		const full = 2 // https://sqlite.org/pragma.html#pragma_synchronous
		if synchronous != full || journal != "wal" {
			t.Errorf("%s connection: synchronous is %d and the journal %s, want %d and wal", connection, synchronous, journal, full)
		}
		d.writer.SetMaxIdleConns(0) // closes the first
		d.writer.SetMaxIdleConns(1)
	}
	if _, err := d.reader.ExecContext(t.Context(), `DELETE FROM apps`); err == nil {
		t.Error("a reader writes")
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %s", info.Mode())
	}
}
