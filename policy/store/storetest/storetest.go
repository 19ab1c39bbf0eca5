// Package storetest holds a store to its promises. Every store runs the same
// tests, so that which database stands behind the interface is no question for
// anybody else.
package storetest

import (
	"math"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// Config is what a test wants of the store it is given.
type Config struct {
	Lease   store.LeaseConfig
	History int           // changes that are kept
	TagRest time.Duration // rest of a released tag
	Audit   int           // entries of the audit record that are kept; 0: the store's default
	MaxTag  policy.Tag    // the last tag; 0: what the wire bears
	Now     func() time.Time
	Elapsed func() time.Duration // nil: leases are counted by Now
	Random  func(n int) int      // nil: the store's own
}

// Open makes a fresh, empty store, closed at the test's end. Reopen closes it
// and opens the same database again.
type Open func(t testing.TB, c Config) (s store.Store, reopen func() store.Store)

// Run runs the suite.
func Run(t *testing.T, open Open) {
	for _, group := range []map[string]func(*testing.T, Open){policyTests, togetherTests, tagTests, idTagTests, leaseTests, peerTests, tunnelTests, secretTests, silkTests, groupTests, routeTests, endpointTests, historyTests, auditTests, backupTests, credentialTests, appTests, clockTests} {
		for name, test := range group {
			t.Run(name, func(t *testing.T) { test(t, open) })
		}
	}
}

// Clock is a clock that moves when it is told to.
type Clock struct {
	mu  sync.Mutex // guards now
	now time.Time
}

// NewClock starts at a whole second of no importance.
func NewClock() *Clock { return &Clock{now: time.Unix(1_800_000_000, 0)} }

// Now is the time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the time.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func standard(c *Clock) Config {
	return Config{
		Lease: store.LeaseConfig{Network: netip.MustParsePrefix("10.255.0.0/16"), Bits: 24, Lifetime: 168 * time.Hour},
		Now:   c.Now, TagRest: time.Minute, History: 1000,
	}
}

// fixture is a store under test, with the words the tests are written in.
type fixture struct {
	store.Store
	t      *testing.T
	clock  *Clock
	reopen func()

	acknowledged atomic.Int64 // the revision that every cell has in force; all of them unless a test says otherwise
}

func start(t *testing.T, open Open, change ...func(*Config)) *fixture {
	t.Helper()
	clock := NewClock()
	c := standard(clock)
	for _, f := range change {
		f(&c)
	}
	s, again := open(t, c)
	f := &fixture{Store: s, t: t, clock: clock}
	f.acknowledged.Store(math.MaxInt64)
	ask := func() api.Revision { return api.Revision(f.acknowledged.Load()) }
	s.RestTags(ask)
	f.reopen = func() {
		f.Store = again()
		f.RestTags(ask)
	}
	return f
}

func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// add and remove take policies as "web db tcp 80-90".
func (f *fixture) add(ps ...policy.Policy) api.Revision {
	f.t.Helper()
	r, err := f.AddPolicies(f.t.Context(), ps)
	f.must(err)
	return r
}

func (f *fixture) remove(ps ...policy.Policy) api.Revision {
	f.t.Helper()
	r, err := f.RemovePolicies(f.t.Context(), ps)
	f.must(err)
	return r
}

func (f *fixture) state() *store.State {
	f.t.Helper()
	s, err := f.State(f.t.Context())
	f.must(err)
	return s
}

// since is what changed after a revision.
func (f *fixture) since(r api.Revision) []api.Delta {
	f.t.Helper()
	ds, err := f.Changes(f.t.Context(), r, 1000)
	f.must(err)
	return ds
}

func (f *fixture) tags() map[policy.AppID]policy.Tag {
	f.t.Helper()
	list, err := f.Tags(f.t.Context())
	f.must(err)
	tags := map[policy.AppID]policy.Tag{}
	for _, t := range list {
		tags[t.App] = t.Tag
	}
	return tags
}

func (f *fixture) lease(cell string, r api.LeaseRequest) api.Lease {
	f.t.Helper()
	l, err := f.Lease(f.t.Context(), cell, r)
	f.must(err)
	return l
}

func (f *fixture) endpoints(cell string, r api.EndpointsRequest) api.EndpointsResponse {
	f.t.Helper()
	a, err := f.SetEndpoints(f.t.Context(), cell, r)
	f.must(err)
	return a
}

// at is the first request of a cell at an underlay address.
func at(underlay string) api.LeaseRequest {
	a := netip.MustParseAddrPort(underlay)
	return api.LeaseRequest{Underlay: a.Addr(), Port: a.Port(), Mode: api.ModeVXLAN}
}

// again is the request of a cell that has its journal.
func again(underlay string, l api.Lease) api.LeaseRequest {
	r := at(underlay)
	r.Subnet, r.Generation = l.Subnet, l.Generation
	return r
}

func allow(src, dst policy.AppID, proto policy.Protocol, ports ...uint16) policy.Policy {
	r := policy.PortRange{Start: ports[0], End: ports[len(ports)-1]}
	return policy.Policy{Source: src, Destination: dst, Protocol: proto, Ports: r}
}

// same compares, an empty list being as good as none.
func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}
