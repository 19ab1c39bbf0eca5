package server_test

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/auth/uaa"
	"tulle/policy/auth/uaa/uaatest"
	"tulle/policy/cc"
	"tulle/policy/cc/cctest"
	"tulle/policy/server"
)

// foundation is a server within a Cloud Foundry: a UAA says who somebody is, a
// Cloud Controller what they develop. Alice develops the apps of blue and green
// (web, db; cache), bob those of red (shop); audrey audits blue.
type foundation struct {
	*world
	uaa *uaatest.UAA
	cc  *cctest.CC

	admin, alice, bob, audrey string // tokens, of which only the first is an admin's
}

func found(t *testing.T, change ...func(*server.Options)) *foundation {
	t.Helper()
	return foundIn(t, 20*time.Second, change...)
}

// foundIn is found with a limit to each request that the server makes.
func foundIn(t *testing.T, limit time.Duration, change ...func(*server.Options)) *foundation {
	t.Helper()
	u := uaatest.New(t)
	f := &foundation{uaa: u, cc: cctest.New(t, u)}
	f.cc.Org("acme", "acme")
	for app, space := range map[string]string{"web": "blue", "db": "blue", "cache": "green", "shop": "red"} {
		f.cc.Space(space, space+" space", "acme")
		f.cc.App(app, app+" app", space)
	}
	f.cc.Role("space_developer", "guid-alice", "blue")
	f.cc.Role("space_developer", "guid-alice", "green")
	f.cc.Role("space_developer", "guid-bob", "red")
	f.cc.Role("space_auditor", "guid-audrey", "blue")
	f.admin = u.User("admin", "guid-admin", "network.admin")
	f.alice = u.User("alice", "guid-alice", "network.write")
	f.bob = u.User("bob", "guid-bob", "network.write")
	f.audrey = u.User("audrey", "guid-audrey", "network.write")
	client := uaa.New(uaa.Options{URL: u.URL, ID: uaatest.ClientID, Secret: uaatest.ClientSecret, HTTP: u.HTTP(), Timeout: limit})
	f.world = start(t, append([]func(*server.Options){func(o *server.Options) {
		o.Auth = client
		o.Directory = cc.New(cc.Options{URL: f.cc.URL, Tokens: client, HTTP: f.cc.HTTP(), Timeout: limit})
	}}, change...)...)
	return f
}

const (
	cleanup = "/networking/v1/external/policies/cleanup"
	whoami  = "/networking/v1/external/whoami"

	notYours = `{"error": "one or more applications cannot be found or accessed"}`
	badToken = `{"error": "failed to verify token with uaa"}`
)

func TestWhoamiInAFoundation(t *testing.T) {
	f := found(t)
	f.expect("a user", f.call("GET", whoami, f.admin, ""), 200, `{"subject":"admin"}`)
	c := f.uaa.Claims("", "operations", "network.admin")
	delete(c, "user_name")
	f.expect("a client", f.call("GET", whoami, f.uaa.Token(c), ""), 200, `{"subject":"operations"}`)
	f.expect("not an admin", f.call("GET", whoami, f.alice, ""), 403,
		`{"error": "provided scopes [network.write] do not include allowed scopes [network.admin]"}`)
	f.expect("in small letters", f.call("GET", whoami, "", "", "Authorization: bearer "+f.admin), 200, `{"subject":"admin"}`)
}

func TestBadTokensInAFoundation(t *testing.T) {
	f := found(t)
	expired := f.uaa.Claims("admin", "guid-admin", "network.admin")
	expired["exp"] = time.Now().Add(-time.Minute).Unix()
	revoked := f.uaa.User("admin", "guid-admin", "network.admin")
	f.uaa.Revoke(revoked)
	for name, token := range map[string]string{"expired": f.uaa.Token(expired), "taken back": revoked, "nonsense": "nonsense", "of a tokens file": f.world.admin} {
		got := f.call("GET", policies, token, "")
		f.expect(name, got, 401, badToken)
		if got.header.Get("WWW-Authenticate") != "Bearer" {
			t.Errorf("%s: WWW-Authenticate %q", name, got.header.Get("WWW-Authenticate"))
		}
	}
	f.expect("no token", f.call("GET", policies, "", ""), 401, `{"error": "missing authorization header"}`)
}

// TestSpaceDevelopers: who may create and delete which policies.
func TestSpaceDevelopers(t *testing.T) {
	f := found(t)
	within, across := body("web db tcp 80 80"), body("web cache udp 53 60", "cache cache tcp 1 1")
	for _, c := range []struct {
		name, token, body string
		status            int
		want              string
	}{
		{"within a space", f.alice, within, 200, `{}`},
		{"across spaces of hers", f.alice, across, 200, `{}`},
		{"to another's", f.alice, body("web shop tcp 80 80"), 403, notYours},
		{"from another's", f.alice, body("shop web tcp 80 80"), 403, notYours},
		{"one of many", f.alice, body("web db tcp 80 80", "web db tcp 81 81", "shop shop tcp 80 80"), 403, notYours},
		{"another's only", f.bob, within, 403, notYours},
		{"an auditor", f.audrey, within, 403, notYours},
		{"an unknown destination", f.alice, body("web gone tcp 80 80"), 403, notYours},
		{"an unknown source", f.alice, body("gone web tcp 80 80"), 403, notYours},
		{"both unknown", f.alice, body("gone gone-too tcp 80 80"), 403, notYours},
		{"two in one", f.alice, body("web,db db tcp 80 80"), 403, notYours},
		{"the body is looked at first", f.bob, `{"policies":[]}`, 400, `{"error": "mapper: validate policies: missing policies"}`},
		{"an admin, unknown apps", f.admin, body("gone gone-too tcp 80 80"), 200, `{}`},
		{"an admin, any space", f.admin, body("web shop tcp 80 80"), 200, `{}`},
	} {
		f.expect("create: "+c.name, f.call("POST", policies, c.token, c.body), c.status, c.want)
		f.expect("delete: "+c.name, f.call("POST", remove, c.token, c.body), c.status, c.want)
	}
	f.expect("what is left", f.call("GET", policies, f.admin, ""), 200, body())
	f.expect("create in v0", f.call("POST", "/networking/v0/external/policies", f.alice,
		`{"policies":[{"source":{"id":"web"},"destination":{"id":"shop","protocol":"tcp","port":7}}]}`), 403, notYours)
}

// TestWhatIsAskedOfTheCloudController for one create of a space developer.
func TestWhatIsAskedOfTheCloudController(t *testing.T) {
	f := found(t)
	f.expect("create", f.call("POST", policies, f.alice, body("web db tcp 80 80", "web cache tcp 80 80", "db web tcp 1 1")), 200, `{}`)
	want := []string{
		"GET /v3/apps?guids=web%2Cdb%2Ccache&per_page=3",
		"GET /v3/roles?per_page=2&space_guids=blue%2Cgreen&types=space_developer&user_guids=guid-alice",
	}
	if diff := cmp.Diff(want, f.cc.Requests()); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	f.cc.Reset()
	f.expect("an admin's", f.call("POST", policies, f.admin, body("web db tcp 80 80")), 200, `{}`)
	f.expect("and list", f.call("GET", policies+"?id=db", f.admin, ""), 200, body("db web tcp 1 1", "web db tcp 80 80"))
	if asked := f.cc.Requests(); len(asked) != 0 {
		t.Errorf("for an admin: %q", asked)
	}
}

// TestListsAreFiltered: a policy is shown to developers of both its apps.
func TestListsAreFiltered(t *testing.T) {
	f := found(t)
	f.expect("create", f.call("POST", policies, f.admin,
		body("cache web tcp 1 1", "gone web tcp 2 2", "shop shop tcp 3 3", "shop web tcp 4 4", "web db tcp 5 6", "web shop tcp 7 7")), 200, `{}`)
	mine := body("cache web tcp 1 1", "web db tcp 5 6")
	f.expect("alice", f.call("GET", policies, f.alice, ""), 200, mine)
	f.expect("alice, by id", f.call("GET", policies+"?id=db,shop", f.alice, ""), 200, body("web db tcp 5 6"))
	f.expect("alice in v0", f.call("GET", "/networking/v0/external/policies", f.alice, ""), 200,
		`{"total_policies":1,"policies":[{"source":{"id":"cache"},"destination":{"id":"web","protocol":"tcp","port":1}}]}`)
	f.expect("bob", f.call("GET", policies, f.bob, ""), 200, body("shop shop tcp 3 3"))
	f.expect("audrey", f.call("GET", policies, f.audrey, ""), 200, body())
	f.expect("nothing to filter", f.call("GET", policies+"?id=", f.alice, ""), 200, body())
	f.cc.Pages(1, "https://api.example.invalid")
	f.expect("alice, page by page", f.call("GET", policies, f.alice, ""), 200, mine)
}

// TestSelfService: with it a developer needs no scope; what admins alone may do
// stays theirs.
func TestSelfService(t *testing.T) {
	within := body("web db tcp 80 80")
	without := found(t)
	plain := without.uaa.User("alice", "guid-alice", "cloud_controller.read")
	const refused = `{"error": "provided scopes [cloud_controller.read] do not include allowed scopes [network.admin network.write]"}`
	without.expect("create without the switch", without.call("POST", policies, plain, within), 403, refused)
	without.expect("the scope is looked at before the body", without.call("POST", policies, plain, "{"), 403, refused)
	without.expect("delete without the switch", without.call("POST", remove, plain, within), 403, refused)
	without.expect("list without the switch", without.call("GET", policies, plain, ""), 403, refused)

	f := found(t, func(o *server.Options) { o.SelfService = true })
	plain = f.uaa.User("alice", "guid-alice", "cloud_controller.read")
	none := f.uaa.User("bob", "guid-bob")
	f.expect("create", f.call("POST", policies, plain, within), 200, `{}`)
	f.expect("list", f.call("GET", policies, plain, ""), 200, within)
	f.expect("another's create", f.call("POST", policies, none, within), 403, notYours)
	f.expect("another's list", f.call("GET", policies, none, ""), 200, body())
	f.expect("delete", f.call("POST", remove, plain, within), 200, `{}`)
	f.expect("no token", f.call("GET", policies, "", ""), 401, `{"error": "missing authorization header"}`)
	f.expect("bad token", f.call("GET", policies, "nobody", ""), 401, badToken)
	for method, path := range map[string]string{"GET": "/networking/v1/external/tags", "POST": cleanup} {
		f.expect(path, f.call(method, path, none, ""), 403, `{"error": "provided scopes [] do not include allowed scopes [network.admin]"}`)
	}
	o := options(t, f.world)
	o.SelfService = true
	if s, err := server.New(t.Context(), o); err == nil {
		s.Close()
		t.Error("self-service of developers that nobody knows is taken")
	}
}

func TestQuotaOfASpaceDeveloper(t *testing.T) {
	f := found(t, func(o *server.Options) { o.MaxPolicies = 2 })
	f.expect("up to the limit", f.call("POST", policies, f.alice, body("web db tcp 1 1", "web db tcp 2 2")), 200, `{}`)
	f.expect("again", f.call("POST", policies, f.alice, body("web db tcp 1 1", "web db tcp 2 2")), 200, `{}`)
	f.expect("more", f.call("POST", policies, f.alice, body("web db tcp 3 3")), 403, `{"error": "policy quota exceeded"}`)
	f.expect("access is checked before", f.call("POST", policies, f.alice, body("web shop tcp 3 3")), 403, notYours)
	f.expect("an admin has none", f.call("POST", policies, f.admin, body("web db tcp 3 3")), 200, `{}`)
}

// TestFoundationOutages: every text of the original for a Cloud Controller or a
// UAA that is failing, slow, talking nonsense or away; in time, and nothing is
// stored, shown or deleted meanwhile.
func TestFoundationOutages(t *testing.T) {
	var log lines
	f := foundIn(t, time.Second, func(o *server.Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	p := body("web db tcp 80 80")
	f.expect("create", f.call("POST", policies, f.admin, p), 200, `{}`)
	other := body("web db tcp 81 81")
	for name, mood := range map[string]uaatest.Mood{"failing": uaatest.Failing, "garbage": uaatest.Garbage, "slow": uaatest.Slow, "down": uaatest.Down} {
		begun := time.Now()
		f.cc.Be(mood)
		f.expect(name+" cc, create", f.call("POST", policies, f.alice, other), 500, `{"error": "check access failed"}`)
		f.expect(name+" cc, delete", f.call("POST", remove, f.alice, p), 500, `{"error": "check access failed"}`)
		f.expect(name+" cc, list", f.call("GET", policies, f.alice, ""), 500, `{"error": "filter policies failed"}`)
		f.expect(name+" cc, cleanup", f.call("POST", cleanup, f.admin, ""), 500, `{"error": "policies cleanup failed"}`)
		f.expect(name+" cc, an admin's create", f.call("POST", policies, f.admin, p), 200, `{}`)
		f.expect(name+" cc, an admin's list", f.call("GET", policies, f.admin, ""), 200, p)
		f.cc.Release()
		f.uaa.Be(mood)
		f.expect(name+" uaa, create", f.call("POST", policies, f.alice, other), 401, badToken)
		f.expect(name+" uaa, list", f.call("GET", policies, f.admin, ""), 401, badToken)
		f.expect(name+" uaa, health", f.call("GET", "/health", "", ""), 200, "")
		f.uaa.Release()
		if took := time.Since(begun); took > 20*time.Second {
			t.Errorf("%s: took %v with limits of a second", name, took)
		}
	}
	f.expect("afterwards", f.call("GET", policies, f.alice, ""), 200, p)
	f.expect("a bad token", f.call("GET", policies, "nobody", ""), 401, badToken)
	// Four moods with two requests each; a token that is no good is nobody's concern.
	if n := strings.Count(log.String(), "whose a token is cannot be found out"); n != 8 {
		t.Errorf("the UAA's outages are in the log %d times, want 8:\n%s", n, log.String())
	}
	if strings.Contains(log.String(), f.alice) || strings.Contains(log.String(), uaatest.ClientSecret) {
		t.Error("the log tells a secret")
	}
}

// TestOfflineInAFoundation: with tokens checked by keys the UAA may be away.
func TestOfflineInAFoundation(t *testing.T) {
	u := uaatest.New(t)
	client := uaa.New(uaa.Options{URL: u.URL, ID: uaatest.ClientID, Secret: uaatest.ClientSecret, HTTP: u.HTTP()})
	verifier, err := uaa.NewVerifier(client, u.Issuer, []string{"network"})
	if err != nil {
		t.Fatal(err)
	}
	w := start(t, func(o *server.Options) { o.Auth = verifier })
	token := u.User("admin", "guid-admin", "network.admin")
	w.expect("whoami", w.call("GET", whoami, token, ""), 200, `{"subject":"admin"}`)
	u.Be(uaatest.Down)
	w.expect("whoami without the UAA", w.call("GET", whoami, token, ""), 200, `{"subject":"admin"}`)
	forged := jwt.NewWithClaims(jwt.SigningMethodHS256, u.Claims("mallory", "m", "network.admin"))
	forged.Header["kid"] = uaatest.KeyID(0)
	text, err := forged.SignedString([]byte(uaatest.JWK(0)["value"].(string)))
	w.must(err)
	w.expect("signed with the public key", w.call("GET", whoami, text, ""), 401, badToken)
}

// TestRegistryInAFoundation: developers see what is theirs, hosts are an
// admin's.
func TestRegistryInAFoundation(t *testing.T) {
	f := found(t)
	l, err := f.store.Lease(t.Context(), "cell-1", api.LeaseRequest{Underlay: netip.MustParseAddr("192.0.2.1"), Port: 4789, Mode: api.ModeVXLAN})
	f.must(err)
	address := l.Subnet.Addr()
	var list []api.EndpointRegistration
	for _, app := range []string{"web", "shop", "stranger"} {
		address = address.Next()
		list = append(list, api.EndpointRegistration{Container: "c-" + app, Address: address, Instance: "0", Incarnation: 1,
			App: api.AppRef{Org: "acme", Space: "x", Name: app, GUID: policy.AppID(app)}})
	}
	_, err = f.store.SetEndpoints(t.Context(), "cell-1", api.EndpointsRequest{Generation: 1, Sequence: 1, Endpoints: list})
	f.must(err)
	for _, c := range []struct {
		who, token string
		want       []string
	}{
		{"admin", f.admin, []string{"shop", "stranger", "web"}}, {"alice", f.alice, []string{"web"}}, {"bob", f.bob, []string{"shop"}}, {"audrey", f.audrey, nil},
	} {
		for path, mark := range map[string]string{"/v1/apps": `"name":"%s"`, "/v1/endpoints": `"container":"c-%s"`} {
			got := f.call("GET", path, c.token, "")
			var seen []string
			for _, app := range []string{"shop", "stranger", "web"} {
				if strings.Contains(got.Body, fmt.Sprintf(mark, app)) {
					seen = append(seen, app)
				}
			}
			if diff := cmp.Diff(c.want, seen); got.Status != 200 || diff != "" {
				t.Errorf("%s of %s: %d %s\n%s", path, c.who, got.Status, got.Body, diff)
			}
		}
	}
	f.expect("cells", f.call("GET", "/v1/cells", f.alice, ""), 403,
		`{"error": "provided scopes [network.write] do not include allowed scopes [network.admin]"}`)
	f.cc.Be(uaatest.Failing)
	f.expect("apps with the cc failing", f.call("GET", "/v1/apps", f.alice, ""), 500, `{"error": "check access failed"}`)
}
