package server_test

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tulle/policy/api"
	"tulle/policy/server"
	"tulle/policy/store"
	"tulle/policy/store/sqlite"
)

func (w *world) emptyStore() store.Store {
	w.t.Helper()
	s, err := sqlite.Open(w.t.Context(), filepath.Join(w.t.TempDir(), "restored.db"), sqlite.Options{
		Lease: store.LeaseConfig{Network: netip.MustParsePrefix("10.255.0.0/16"), Bits: 24, Lifetime: time.Hour},
	})
	w.must(err)
	return s
}

// has reports, with the lock held, whether the policies in force are those to
// these ports.
func (c *watcher) has(want ...int) bool {
	for _, port := range want {
		found := false
		for p := range c.policies {
			found = found || p.Destination.Ports.Start == port
		}
		if !found {
			return false
		}
	}
	return len(c.policies) == len(want)
}

// A backup is taken, the world moves on (more policies, a cell that joins, so
// that cells are at revisions that the backup never had), and the backup is
// restored, to a server at the same address. Every cell takes the new epoch and
// what the backup says, and follows the next change.
func TestRestoreOfABackupStrandsNoCell(t *testing.T) {
	w := start(t)
	one, two := w.cell("one", "web"), w.cell("two", "db")
	ask[api.Changed](w, "POST", "/v1/policies?wait=20s", w.admin, body("web db tcp 1 1"))
	backup, err := server.NewAdminClient(w.server.Addresses().Admin).Export(t.Context())
	w.must(err)

	old := w.store.Epoch()
	late := w.cell("late", "cache")
	lost := ask[api.Changed](w, "POST", "/v1/policies?wait=20s", w.admin, body("web db tcp 2 2", "web cache tcp 3 3"))
	if lost.Enforced.Cells != "3/3" || lost.Revision <= backup.Revision {
		t.Fatalf("before the restore: %+v after %d", lost.Enforced, backup.Revision)
	}
	o := w.options
	o.InternalAddress = w.server.Addresses().Internal
	w.stop()

	w.store = w.emptyStore()
	w.must(w.store.Import(t.Context(), backup))
	o.Store = w.store
	w.run(o)
	for _, c := range []*watcher{one, two} {
		c.until(c.Cell()+" has what the backup says", func() bool { return c.epoch == w.store.Epoch() && c.has(1) })
	}
	late.until("late has the new epoch and, being unknown, no policy", func() bool { return late.epoch == w.store.Epoch() && late.has() })
	if w.store.Epoch() == old {
		t.Error("the epoch is the old one")
	}

	// The cell that the backup does not know leases again with what it holds, and
	// gets its subnet, under a higher generation.
	lease, err := late.Lease(t.Context(), api.LeaseRequest{Underlay: netip.MustParseAddr("127.0.0.1"), Port: 40003, Mode: api.ModeVXLAN,
		Subnet: late.lease.Subnet, Generation: late.lease.Generation})
	w.must(err)
	if lease.Subnet != late.lease.Subnet || lease.Generation <= late.lease.Generation {
		t.Errorf("late held %+v and got %+v", late.lease, lease)
	}
	_, err = late.SetEndpoints(t.Context(), api.EndpointsRequest{Generation: lease.Generation, Sequence: 2, Endpoints: []api.EndpointRegistration{
		{Container: "cache-0", Address: lease.Subnet.Addr().Next(), App: api.AppRef{GUID: "cache"}, Incarnation: 9}}})
	w.must(err)

	next := ask[api.Changed](w, "POST", "/v1/policies?wait=20s", w.admin, body("web db tcp 4 4", "db cache tcp 5 5"))
	if next.Enforced.Cells != "3/3" {
		t.Errorf("a change after the restore: %+v", next.Enforced)
	}
	for c, want := range map[*watcher][]int{one: {1, 4}, two: {1, 4, 5}, late: {5}} {
		c.until(c.Cell()+" has the change", func() bool { return c.has(want...) })
	}
	tags := map[string]bool{}
	for _, tag := range decoded[api.Tags](t, w.call("GET", "/networking/v1/external/tags", w.admin, "").Body).Tags {
		tags[string(tag.ID)+"="+tag.Tag] = true
	}
	if len(tags) != 3 || !tags["web=0001"] || !tags["db=0002"] {
		t.Errorf("tags %v, want those of the backup and one more", tags)
	}
}

// An import into a live server, whose cells are on watches already.
func TestImportIntoALiveServer(t *testing.T) {
	w := start(t)
	w.call("POST", policies, w.admin, body("web db tcp 1 1"))
	admin := server.NewAdminClient(w.server.Addresses().Admin)
	backup, err := admin.Export(t.Context())
	w.must(err)
	if err := admin.Import(t.Context(), backup); err == nil || !strings.Contains(err.Error(), "the store is not empty: it is at revision 1") {
		t.Errorf("into a store in use: %v", err)
	}
	fresh := start(t)
	before := fresh.store.Epoch()
	admin = server.NewAdminClient(fresh.server.Addresses().Admin)
	w.must(admin.Import(t.Context(), backup))
	one := fresh.cell("one", "web")
	one.until("one has what the backup says", func() bool { return one.epoch == fresh.store.Epoch() && one.has(1) })
	if fresh.store.Epoch() == before {
		t.Error("the epoch is that of the empty store")
	}
	got := ask[api.Audit](fresh, "GET", "/v1/audit", fresh.admin, "")
	if e := got.Entries[len(got.Entries)-2]; e.Action != api.StoreImport || e.From != "admin socket" || !strings.Contains(string(e.After), string(backup.Epoch)) {
		t.Errorf("the record of the import: %+v", e)
	}
}
