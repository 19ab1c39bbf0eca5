package foundation_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/foundation"
	"tulle/policy/foundation/foundationtest"
)

var subnet2 = netip.MustParsePrefix("10.255.2.0/24")

// A cell hears of the policies of its apps with their tags, of changes, and of the
// other cells; it asks by apps and spaces, and fetches only what has changed.
func TestPoliciesAndPeers(t *testing.T) {
	r := newRig(t, nil)
	r.Leases.Put(foundationtest.Entry(self, netip.MustParsePrefix("10.255.1.0/24")))
	r.Leases.Put(foundationtest.Entry(other, subnet2))
	web, db := tcp("web", "db", 8080), tcp("db", "cache", 9000)
	r.Policies.Allow(web, db, tcp("x", "y", 1))
	r.hosts("web")
	r.watch()
	r.until("web's policy", func(s *api.Snapshot) bool { return has(s, web) })
	s := r.said()
	if tagOf(s, "web") != r.Policies.Tag("web") || tagOf(s, "db") != r.Policies.Tag("db") || tagOf(s, "web") == policy.NoTag || len(s.Tags) != 2 {
		t.Errorf("tags %v", s.Tags)
	}
	want := api.Peer{Name: "silk-" + other, Kind: api.KindSilk, Mode: api.ModeVXLAN, Underlay: netip.MustParseAddr(other), Port: 4789, Subnet: subnet2, Generation: 1}
	if len(s.Peers) != 1 || s.Peers[0] != want || len(s.Endpoints) != 0 {
		t.Errorf("peers %+v, endpoints %v; want the other cell alone", s.Peers, s.Endpoints)
	}
	r.connected(true)

	// Nothing new: the number is asked for, the policies are not.
	r.Policies.Requests()
	r.wait(r.Policies, "GET /networking/v1/internal/policies_last_updated")
	r.wait(r.Policies, "GET /networking/v1/internal/policies_last_updated")
	for _, q := range r.Policies.Requests() {
		if strings.HasPrefix(q, "GET /networking/v1/internal/policies?") {
			t.Errorf("policies were fetched though nothing had changed: %s", q)
		}
	}

	r.hosts("db", "web")
	r.wait(r.Policies, "GET /networking/v1/internal/policies?id=db%2Cspace-of-db%2Cspace-of-web%2Cweb")
	r.until("db's policies too", func(s *api.Snapshot) bool { return has(s, web, db) })
	r.Policies.Deny(db)
	r.until("one policy less", func(s *api.Snapshot) bool { return has(s, web) && tagOf(s, "cache") == policy.NoTag })

	r.Leases.Put(foundationtest.Entry("192.0.2.3", netip.MustParsePrefix("10.255.3.0/24")))
	r.until("a third cell", func(s *api.Snapshot) bool { _, ok := peerAt(s, "192.0.2.3"); return ok })
	r.Leases.Drop(other)
	r.until("a cell less", func(s *api.Snapshot) bool { _, ok := peerAt(s, other); return !ok && len(s.Peers) == 1 })
}

// A tag that is given to another app at once is that app's and nobody else's.
func TestTagsAreThoseOfTheLastList(t *testing.T) {
	r := newRig(t, nil)
	old, next := tcp("old", "web", 1), tcp("next", "web", 2)
	r.Policies.Allow(old)
	r.hosts("web")
	r.watch()
	r.until("the first policy", func(s *api.Snapshot) bool { return has(s, old) })
	tag := tagOf(r.said(), "old")
	r.Policies.Deny(old)
	r.Policies.Allow(next)
	r.until("the next policy", func(s *api.Snapshot) bool { return has(s, next) })
	if s := r.said(); tagOf(s, "next") != tag || tagOf(s, "old") != policy.NoTag {
		t.Errorf("tags %v; %v is next's now", s.Tags, tag)
	}
}

// Nothing is said before both servers have answered: not to know the peers is not
// the same as to have none.
func TestNothingBeforeBothHaveAnswered(t *testing.T) {
	for name, away := range map[string]func(r *rig) (back func()){
		"the controller is away":    func(r *rig) func() { r.Leases.Stop(); return r.Leases.Start },
		"the policy server is away": func(r *rig) func() { r.Policies.Stop(); return r.Policies.Start },
		"the controller's database is away": func(r *rig) func() {
			r.Leases.Fail(500, `{"error": "all-routable-leases: dial tcp: "refused""}`)
			return func() { r.Leases.Fail(0, "") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.Leases.Put(foundationtest.Entry(other, subnet2))
			r.Policies.Allow(tcp("web", "db", 8080))
			back := away(r)
			r.hosts("web")
			r.watch()
			// The server that is there has been asked again, so the other has been too.
			for range 3 {
				if name == "the policy server is away" {
					r.wait(r.Leases, "GET /leases")
				} else {
					r.wait(r.Policies, "GET /networking/v1/internal/policies_last_updated")
				}
			}
			if r.said() != nil || r.client.Connected() {
				t.Errorf("said %+v, connected %v", r.said(), r.client.Connected())
			}
			back()
			r.until("policy and peer", func(s *api.Snapshot) bool { return has(s, tcp("web", "db", 8080)) && len(s.Peers) == 1 })
			r.connected(true)
		})
	}
}

// A daemon that takes its containers back watches before it has said which they are.
// Nothing is asked until then, so that what it is told first has their policies.
func TestNothingBeforeTheFirstList(t *testing.T) {
	r := newRig(t, nil)
	r.Policies.Allow(tcp("web", "db", 8080))
	r.watch()
	asked, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := r.Leases.Until(asked, "GET /leases"); err == nil || r.said() != nil {
		t.Errorf("without a list the servers are asked, and said %+v", r.said())
	}
	r.hosts("web")
	r.until("something is said", func(*api.Snapshot) bool { return true })
	if r.mu.Lock(); !has(r.begun, tcp("web", "db", 8080)) {
		t.Errorf("the first that is said is %+v", r.begun)
	}
	r.mu.Unlock()
}

// Whatever fails, and however, what is known stays known; and what has changed
// meanwhile is heard of when it is over.
func TestOutagesChangeNothing(t *testing.T) {
	type outage struct {
		name     string
		policies bool
		begin    func(r *rig)
		end      func(r *rig)
	}
	var cases []outage
	add := func(name string, policies bool, begin, end func(r *rig)) {
		cases = append(cases, outage{name, policies, begin, end})
	}
	add("policy server away", true, func(r *rig) { r.Policies.Stop() }, func(r *rig) { r.Policies.Start() })
	add("policy server hangs", true, func(r *rig) { r.Policies.Hang() }, func(r *rig) { r.Policies.Fail(0, "") })
	for _, body := range []string{`{"error": "database read failed"}`, `{"error": "a "quote" in it"}`, "", "<html>502 Bad Gateway</html>"} {
		add(fmt.Sprintf("policy server says 500 %q", body), true, func(r *rig) { r.Policies.Fail(http.StatusInternalServerError, body) }, func(r *rig) { r.Policies.Fail(0, "") })
	}
	for _, body := range []string{"{", "null", "[]", `{"total_policies":2,"policies":[]}`, `{"total_policies":0}`, "banana"} {
		add(fmt.Sprintf("policy server says %q", body), true, func(r *rig) { r.Policies.Answer(body) }, func(r *rig) { r.Policies.Answer("") })
	}
	add("controller away", false, func(r *rig) { r.Leases.Stop() }, func(r *rig) { r.Leases.Start() })
	add("controller hangs", false, func(r *rig) { r.Leases.Hang() }, func(r *rig) { r.Leases.Fail(0, "") })
	for status, body := range map[int]string{500: `{"error": "all-routable-leases: pq: no"}`, 200: `{}`, 404: "404 page not found", 302: ""} {
		add(fmt.Sprintf("controller says %d %q", status, body), false, func(r *rig) { r.Leases.Fail(status, body) }, func(r *rig) { r.Leases.Fail(0, "") })
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(o *foundation.Options) { o.Timeout = 200 * time.Millisecond })
			p, more := tcp("web", "db", 8080), tcp("web", "db", 8081)
			r.Leases.Put(foundationtest.Entry(other, subnet2))
			r.Policies.Allow(p)
			r.hosts("web")
			r.watch()
			r.until("policy and peer", func(s *api.Snapshot) bool { return has(s, p) && len(s.Peers) == 1 })
			before := r.said()
			c.begin(r)
			r.Policies.Allow(more)
			r.Leases.Put(foundationtest.Entry("192.0.2.3", netip.MustParsePrefix("10.255.3.0/24")))
			if c.policies {
				r.connected(false)
				r.until("the new peer", func(s *api.Snapshot) bool { return len(s.Peers) == 2 })
				if !has(r.said(), p) || r.said().Tags[0] != before.Tags[0] {
					t.Errorf("policies %+v, tags %v, want those of before", r.said().Policies, r.said().Tags)
				}
			} else {
				r.until("the new policy", func(s *api.Snapshot) bool { return has(s, p, more) })
				if len(r.said().Peers) != 1 {
					t.Errorf("peers %+v, want that of before", r.said().Peers)
				}
			}
			c.end(r)
			r.until("all that is new", func(s *api.Snapshot) bool { return has(s, p, more) && len(s.Peers) == 2 })
			r.connected(true)
		})
	}
}

// A server restored from a backup has an older last update; what it says counts.
func TestARestoredServerIsHeard(t *testing.T) {
	r := newRig(t, nil)
	r.Policies.Allow(tcp("web", "db", 1), tcp("web", "db", 2))
	r.hosts("web")
	r.watch()
	r.until("two policies", func(s *api.Snapshot) bool { return len(s.Policies) == 2 })
	r.Policies.Restore(tcp("web", "db", 2))
	r.until("one", func(s *api.Snapshot) bool { return has(s, tcp("web", "db", 2)) })
}

// Where the server cannot say when policies changed, they are fetched to see.
func TestFetchedWhereLastUpdateIsUnknown(t *testing.T) {
	r := newRig(t, nil)
	p := tcp("web", "db", 1)
	r.Policies.Allow(p)
	r.Policies.FailOn("policies_last_updated", 500, `{"error": "getting policies last updated"}`)
	r.hosts("web")
	r.watch()
	r.until("the policy", func(s *api.Snapshot) bool { return has(s, p) })
	r.Policies.Allow(tcp("web", "db", 2))
	r.until("another", func(s *api.Snapshot) bool { return len(s.Policies) == 2 })
}

// What cannot be is left out and the rest stands; a list against itself counts for
// nothing.
func TestPoliciesThatCannotBe(t *testing.T) {
	entry := func(src, stag, dst, dtag, proto string, start, end int) string {
		return fmt.Sprintf(`{"source":{"id":%q,"tag":%q},"destination":{"id":%q,"tag":%q,"protocol":%q,"ports":{"start":%d,"end":%d}}}`, src, stag, dst, dtag, proto, start, end)
	}
	list := func(ps ...string) string {
		return fmt.Sprintf(`{"total_policies":%d,"policies":[%s]}`, len(ps), strings.Join(ps, ","))
	}
	good := entry("web", "000A", "db", "000B", "tcp", 80, 80)
	want := tcp("web", "db", 80)
	r := newRig(t, nil)
	r.hosts("web")
	r.Policies.Answer(list(good,
		entry("web", "000A", "db", "000B", "tcp", 65536, 65536),
		entry("web", "000A", "db", "000B", "icmp", 1, 1),
		entry("web", "000A", "db", "000B", "udp", 9, 8),
		entry("web", "000A", "", "000C", "udp", 9, 9),
		entry("stranger", "0010", "another", "0011", "tcp", 1, 1)))
	r.watch()
	r.until("the good one", func(s *api.Snapshot) bool { return has(s, want) })
	if s := r.said(); tagOf(s, "web") != 10 || tagOf(s, "db") != 11 || len(s.Tags) != 2 {
		t.Errorf("tags %v", s.Tags)
	}
	for name, bad := range map[string]string{
		"two tags": entry("web", "000C", "x", "000D", "tcp", 1, 1), "one tag twice": entry("x", "000A", "web", "000A", "tcp", 1, 1),
		"no tag": entry("web", "000A", "x", "", "tcp", 1, 1), "tag 0": entry("web", "000A", "x", "0000", "tcp", 1, 1),
		"too large": entry("web", "000A", "x", "10000", "tcp", 1, 1), "no number": entry("web", "000A", "x", "zzzz", "tcp", 1, 1),
	} {
		r.Policies.Answer(list(good, bad))
		r.connected(false)
		if !has(r.said(), want) {
			t.Errorf("%s: %+v, want what was before", name, r.said().Policies)
		}
		r.Policies.Answer(list(good))
		r.connected(true)
	}
}

// The controller stores what nobody checked; only leases that can be are peers.
func TestLeasesThatCannotBe(t *testing.T) {
	r := newRig(t, nil)
	good := foundationtest.Entry(other, subnet2)
	wrong := good
	wrong.UnderlayIP, wrong.OverlaySubnet = "192.0.2.9", "10.255.9.0/24"
	for underlay, subnet := range map[string]string{
		"192.0.2.10": "10.0.0.0/8", "192.0.2.11": "10.255.0.0/16", "192.0.2.12": "10.255.12.0/25", "192.0.2.13": "10.255.13.7/24",
		"192.0.2.14": "192.168.1.0/24", "192.0.2.15": "10.255.0.0/24", "2001:db8::1": "10.255.16.0/24", "banana": "10.255.17.0/24",
		"192.0.2.18": "nonsense",
	} {
		e := foundationtest.Entry(underlay, netip.MustParsePrefix("10.255.1.0/24"))
		if p, err := netip.ParsePrefix(subnet); err == nil {
			e = foundationtest.Entry(underlay, p)
		}
		e.OverlaySubnet = subnet
		r.Leases.Put(e)
	}
	r.Leases.Put(wrong) // another's hardware address
	r.Leases.Put(good)
	r.Leases.Put(foundationtest.Entry("192.0.2.5", netip.MustParsePrefix("10.255.0.9/32"))) // a router's
	r.hosts()
	r.watch()
	r.until("two peers", func(s *api.Snapshot) bool { return len(s.Peers) > 0 })
	if s := r.said(); len(s.Peers) != 2 || s.Peers[0].Subnet != subnet2 || s.Peers[1].Subnet != netip.MustParsePrefix("10.255.0.9/32") {
		t.Errorf("peers %+v", s.Peers)
	}

	// A lease that another has already is not taken from it.
	r.Leases.Put(foundationtest.Entry("192.0.2.1", netip.MustParsePrefix("10.255.1.0/24"))) // this cell's own
	thief := foundationtest.Entry("192.0.2.20", subnet2)
	r.Leases.Put(thief)
	r.Leases.Put(foundationtest.Entry("192.0.2.21", netip.MustParsePrefix("10.255.21.0/24")))
	r.until("the next peer", func(s *api.Snapshot) bool { _, ok := peerAt(s, "192.0.2.21"); return ok })
	if p, ok := peerAt(r.said(), other); !ok || p.Subnet != subnet2 {
		t.Errorf("the lease of %s is %+v", other, r.said().Peers)
	}
	if _, ok := peerAt(r.said(), "192.0.2.20"); ok {
		t.Error("a second holder of one subnet is a peer")
	}
}

// An endpoint is in force when its policies are: not before, and not while the
// server is away.
func TestEndpointsAreInForceWithTheirPolicies(t *testing.T) {
	r := newRig(t, func(o *foundation.Options) { o.PollPolicies = time.Hour }) // nothing but what is asked for
	a, b := tcp("a", "x", 1), tcp("b", "x", 2)
	r.Policies.Allow(a, b)
	first := r.hosts("a")
	r.watch()
	r.until("a", func(s *api.Snapshot) bool { return has(s, a) })
	if r.revision() < first.Revision || first.Apps["c-a"] != "a" || len(first.Refused) != 0 {
		t.Errorf("revision %d, promised %+v", r.revision(), first)
	}
	if again := r.hosts("a"); again.Revision > r.revision() || again.Epoch != first.Epoch {
		t.Errorf("the same list is promised for %d, in force is %d", again.Revision, r.revision())
	}
	second := r.hosts("a", "b")
	if second.Revision <= first.Revision {
		t.Errorf("promised for %d, as before", second.Revision)
	}
	r.until("b as well, unasked for an hour", func(s *api.Snapshot) bool { return has(s, a, b) && s.Revision >= second.Revision })

	r.Policies.Fail(500, `{"error": "database read failed"}`)
	third := r.hosts("a", "b", "c")
	r.connected(false)
	if r.revision() >= third.Revision {
		t.Errorf("revision %d is in force, promised for a list that nobody has answered", third.Revision)
	}
	r.Policies.Fail(0, "")
	r.hosts("a", "c") // the poll that this asks for
	r.until("without b", func(s *api.Snapshot) bool { return has(s, a) && s.Revision >= third.Revision })
}

func TestAppsWithoutGUIDAreRefused(t *testing.T) {
	r := newRig(t, nil)
	got, err := r.client.SetEndpoints(t.Context(), api.EndpointsRequest{Endpoints: []api.EndpointRegistration{
		{Container: "one", App: api.AppRef{Name: "web", Space: "dev", Org: "acme"}}, {Container: "two", App: api.AppRef{GUID: "g"}}}})
	if err != nil || got.Apps["two"] != "g" || len(got.Apps) != 1 || !strings.Contains(got.Refused["one"], "by GUID alone") {
		t.Errorf("%+v, %v", got, err)
	}
}

// What the daemon cannot take in is given to it again.
func TestWhatIsNotTakenInComesAgain(t *testing.T) {
	r := newRig(t, nil)
	r.Policies.Allow(tcp("web", "db", 1))
	r.hosts("web")
	r.refuse = errors.New("not now")
	r.watch()
	r.wait(r.Policies, "GET /networking/v1/internal/policies_last_updated")
	r.wait(r.Policies, "GET /networking/v1/internal/policies_last_updated")
	if r.client.Connected() {
		t.Error("connected before anything was taken in")
	}
	r.mu.Lock()
	r.refuse = nil
	r.mu.Unlock()
	r.until("the policy", func(s *api.Snapshot) bool { return has(s, tcp("web", "db", 1)) })
}
