package storetest

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tulle/policy/api"
	"tulle/policy/store"
)

var credentialTests = map[string]func(*testing.T, Open){
	"AJoinTokenIsGoodOnce":                 aJoinTokenIsGoodOnce,
	"RevocationEndsTheLease":               revocationEndsTheLease,
	"RevokedCellsChangeNothing":            revokedCellsChangeNothing,
	"SubnetOfARevokedCellRests":            subnetOfARevokedCellRests,
	"RevocationsAreInStateChangeAndBackup": revocationsAreKept,
}

func aJoinTokenIsGoodOnce(t *testing.T, open Open) {
	f := start(t, open)
	token := store.JoinToken{Sum: "sum", Cell: "cell-1", Spaces: []string{"acme/prod", "*"}, Lifetime: time.Hour, Expires: f.clock.Now().Add(time.Minute)}
	f.must(f.AddJoinToken(t.Context(), token))
	if err := f.AddJoinToken(t.Context(), token); !errors.Is(err, store.ErrConflict) {
		t.Errorf("the same again: %v", err)
	}
	if _, err := f.RedeemJoinToken(t.Context(), "other"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("another: %v", err)
	}
	// Of many at once one wins.
	var mu sync.Mutex // guards won
	var won []store.JoinToken
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			got, err := f.RedeemJoinToken(t.Context(), "sum")
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				won = append(won, got)
			case !errors.Is(err, store.ErrNotFound):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Fatalf("%d redeemed the token, want one", len(won))
	}
	token.Redeemed = f.clock.Now().UTC()
	if diff := cmp.Diff(token, won[0]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	token.Sum = "late"
	f.must(f.AddJoinToken(t.Context(), token))
	f.clock.Advance(time.Minute)
	if _, err := f.RedeemJoinToken(t.Context(), "late"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("expired: %v", err)
	}
	token.Sum, token.Expires = "void", f.clock.Now().Add(time.Minute)
	f.must(f.AddJoinToken(t.Context(), token))
	_, err := f.RevokeCell(t.Context(), "cell-1")
	f.must(err)
	if _, err := f.RedeemJoinToken(t.Context(), "void"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("of a revoked cell: %v", err)
	}
	issued, err := f.CredentialRenewed(t.Context(), "cell-1", time.Hour)
	if f.must(err); !issued.Equal(f.clock.Now()) {
		t.Errorf("issued at %s, want %s by the store's clock", issued, f.clock.Now())
	}
	entries, err := f.Audit(t.Context(), 0, 100)
	f.must(err)
	var actions []api.Action
	for _, e := range entries {
		actions = append(actions, e.Action)
	}
	if diff := cmp.Diff([]api.Action{api.CellRenew, api.CellRevoke, api.CellInvite, api.CellInvite, api.CellJoin, api.CellInvite}, actions); diff != "" {
		t.Errorf("audit (-want +got):\n%s", diff)
	}
}

func leaseOf(t *testing.T, f *fixture, name string, host byte) api.Lease {
	t.Helper()
	l, err := f.Lease(t.Context(), name, api.LeaseRequest{Underlay: netip.AddrFrom4([4]byte{192, 0, 2, host}), Port: 4789, Mode: api.ModeVXLAN})
	f.must(err)
	return l
}

func revocationEndsTheLease(t *testing.T, open Open) {
	f := start(t, open)
	l := leaseOf(t, f, "cell-1", 1)
	_, err := f.SetEndpoints(t.Context(), "cell-1", api.EndpointsRequest{Generation: l.Generation, Sequence: 1,
		Endpoints: []api.EndpointRegistration{{Container: "k", Address: l.Subnet.Addr().Next(), App: api.AppRef{GUID: "web"}, Incarnation: 1}}})
	f.must(err)
	before := f.state().Revision
	r, err := f.RevokeCell(t.Context(), "cell-1")
	f.must(err)
	if want := (api.Revocation{Cell: "cell-1", At: f.clock.Now().UTC()}); r != want {
		t.Errorf("%v, want %v", r, want)
	}
	s := f.state()
	if s.Revision != before+1 || len(s.Peers) != 0 || len(s.Endpoints) != 0 {
		t.Errorf("after revision %d: %+v", before, s)
	}
	changes, err := f.Changes(t.Context(), before, 10)
	f.must(err)
	if len(changes) != 1 || len(changes[0].Revoked) != 1 || changes[0].Revoked[0] != r || len(changes[0].PeersRemoved) != 1 {
		t.Errorf("changes %+v", changes)
	}
	// One without a lease, and one that there never was, tell the servers as well.
	for _, name := range []string{"cell-1", "never"} {
		f.clock.Advance(time.Second)
		revision := f.state().Revision
		r, err = f.RevokeCell(t.Context(), name)
		f.must(err)
		if got := f.state().Revision; got != revision+1 {
			t.Errorf("%s: revision %d after %d", name, got, revision)
		}
		if r.Unknown != (name == "never") {
			t.Errorf("%s: unknown %t", name, r.Unknown)
		}
	}
	f.must(f.AddJoinToken(t.Context(), store.JoinToken{Sum: "sum", Cell: "invited", Spaces: []string{"*"}, Lifetime: time.Hour, Expires: f.clock.Now().Add(time.Hour)}))
	if r, err = f.RevokeCell(t.Context(), "invited"); err != nil || r.Unknown {
		t.Errorf("one that has a join token: %+v, %v", r, err)
	}
	f.must(f.AddPeer(t.Context(), api.Peer{Name: "silk", Underlay: netip.MustParseAddr("192.0.2.9"), Subnet: netip.MustParsePrefix("10.255.9.0/24")}))
	if _, err := f.RevokeCell(t.Context(), "silk"); !errors.Is(err, store.ErrConflict) {
		t.Errorf("a silk peer: %v", err)
	}
}

// A request that was let in before the revocation of its credential, and comes to
// the store after it, changes nothing.
func revokedCellsChangeNothing(t *testing.T, open Open) {
	f := start(t, open)
	l := leaseOf(t, f, "cell-1", 1)
	issued := f.clock.Now()
	f.clock.Advance(time.Second)
	r, err := f.RevokeCell(t.Context(), "cell-1")
	f.must(err)
	before := f.state()
	of := func(issued time.Time) context.Context {
		return store.WithActor(t.Context(), store.Actor{Who: "cell cell-1", Cell: "cell-1", Issued: issued})
	}
	ask := api.LeaseRequest{Underlay: netip.MustParseAddr("192.0.2.1"), Port: 4789, Mode: api.ModeVXLAN, Subnet: l.Subnet, Generation: l.Generation}
	for _, issued := range []time.Time{issued, r.At} {
		for what, change := range map[string]func(context.Context) error{
			"lease":      func(ctx context.Context) error { _, err := f.Lease(ctx, "cell-1", ask); return err },
			"release":    func(ctx context.Context) error { return f.ReleaseLease(ctx, "cell-1") },
			"credential": func(ctx context.Context) error { _, err := f.CredentialRenewed(ctx, "cell-1", time.Hour); return err },
			"tag":        func(ctx context.Context) error { _, err := f.Tag(ctx, "router", "router"); return err },
			"secrets":    func(ctx context.Context) error { return f.PutSecrets(ctx, "cell-1", api.SecretsRequest{}) },
			"endpoints": func(ctx context.Context) error {
				_, err := f.SetEndpoints(ctx, "cell-1", api.EndpointsRequest{Generation: l.Generation, Sequence: 1})
				return err
			},
		} {
			if err := change(of(issued)); !errors.Is(err, store.ErrRevoked) {
				t.Errorf("%s: %v, want %v", what, err, store.ErrRevoked)
			}
		}
	}
	same(t, "state", f.state(), before)
	if again, err := f.Lease(of(r.At.Add(time.Microsecond)), "cell-1", ask); err != nil || again.Generation <= l.Generation {
		t.Errorf("with a credential of after the revocation: %+v, %v", again, err)
	}
}

func subnetOfARevokedCellRests(t *testing.T, open Open) {
	f := start(t, open, func(c *Config) {
		c.Lease = store.LeaseConfig{Network: netip.MustParsePrefix("10.255.0.0/22"), Bits: 24, Lifetime: time.Hour}
	})
	one, two, three := leaseOf(t, f, "cell-1", 1), leaseOf(t, f, "cell-2", 2), leaseOf(t, f, "cell-3", 3)
	f.must(f.ReleaseLease(t.Context(), "cell-2"))
	_, err := f.RevokeCell(t.Context(), "cell-1")
	f.must(err)
	if got := leaseOf(t, f, "new", 4); got.Subnet != two.Subnet {
		t.Errorf("a new cell has %s, want %s: %s rests, %s is held", got.Subnet, two.Subnet, one.Subnet, three.Subnet)
	}
	ask := func() (api.Lease, error) {
		return f.Lease(t.Context(), "another", api.LeaseRequest{Underlay: netip.MustParseAddr("192.0.2.5"), Port: 4789, Mode: api.ModeVXLAN, Subnet: one.Subnet})
	}
	if got, err := ask(); !errors.Is(err, store.ErrNoLease) {
		t.Errorf("%s given while it rests, %v", got.Subnet, err)
	}
	if stats, err := f.Stats(t.Context()); err != nil || stats.Leases != 3 {
		t.Errorf("%d leases counted, %v; want 3, the resting one among them", stats.Leases, err)
	}
	// The cell itself, with a new credential, gets it back.
	if got := leaseOf(t, f, "cell-1", 1); got.Subnet != one.Subnet || got.Generation <= one.Generation {
		t.Errorf("the cell has %+v, had %+v", got, one)
	}
	_, err = f.RevokeCell(t.Context(), "cell-1")
	f.must(err)
	f.clock.Advance(2 * time.Hour)
	if got, err := ask(); err != nil {
		t.Errorf("%+v, %v: not given after the lease would have run out", got, err)
	}
}

func revocationsAreKept(t *testing.T, open Open) {
	f := start(t, open)
	for _, name := range []string{"b", "a", "b"} {
		_, err := f.RevokeCell(t.Context(), name)
		f.must(err)
		f.clock.Advance(time.Second)
	}
	list, err := f.Revocations(t.Context())
	f.must(err)
	want := []api.Revocation{{Cell: "a", At: f.clock.Now().Add(-2 * time.Second).UTC()}, {Cell: "b", At: f.clock.Now().Add(-time.Second).UTC()}}
	if diff := cmp.Diff(want, list); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, f.state().Revoked); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	b, err := f.Export(t.Context())
	f.must(err)
	g := start(t, open)
	f.must(g.Import(t.Context(), b))
	if diff := cmp.Diff(want, g.state().Revoked); diff != "" {
		t.Errorf("restored (-want +got):\n%s", diff)
	}
}
