package server_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"tulle/policy"
	"tulle/policy/api"
)

const (
	routes   = "/v1/routes"
	unroute  = "/v1/routes/delete"
	domains  = "/v1/routes/domains"
	notAdmin = `{"error": "provided scopes [network.write] do not include allowed scopes [network.admin]"}`
)

// mapping is a request's body of "name app" lines.
func mapping(list ...string) string {
	var rs []string
	for _, line := range list {
		name, app, _ := strings.Cut(line, " ")
		rs = append(rs, fmt.Sprintf(`{"name":%q,"app":%q}`, name, app))
	}
	return `{"routes":[` + strings.Join(rs, ",") + `]}`
}

func TestRoutesAreManaged(t *testing.T) {
	w := start(t)
	w.expect("none", w.call("GET", routes, w.write, ""), 200, `{"routes":[]}`)
	w.expect("map", w.call("POST", routes, w.write, mapping("Web.Apps.Internal. web", "web.apps.internal blue", "a.apps.internal web")), 200, `{"revision":1}`)
	w.expect("again", w.call("POST", routes, w.write, mapping("web.apps.internal web")), 200, `{"revision":1}`)
	_, err := w.store.AddRoutes(t.Context(), []policy.Route{{Name: "x.apps.internal", Address: netip.MustParseAddr("10.255.3.4")}}, nil)
	w.must(err)
	w.expect("list", w.call("GET", routes, w.write, ""), 200,
		`{"routes":[{"name":"a.apps.internal","app":"web"},{"name":"web.apps.internal","app":"web"},{"name":"web.apps.internal","app":"blue"},{"name":"x.apps.internal","address":"10.255.3.4"}]}`)
	w.expect("of an app", w.call("GET", routes+"?app=blue", w.write, ""), 200, `{"routes":[{"name":"web.apps.internal","app":"blue"}]}`)
	w.expect("of a name", w.call("GET", routes+"?name=A.apps.internal.", w.write, ""), 200, `{"routes":[{"name":"a.apps.internal","app":"web"}]}`)
	w.expect("unmap", w.call("POST", unroute, w.write, mapping("web.apps.internal web", "web.apps.internal nobody")), 200, `{"revision":3}`)
	w.expect("what is left", w.call("GET", routes+"?name=web.apps.internal", w.write, ""), 200, `{"routes":[{"name":"web.apps.internal","app":"blue"}]}`)

	w.expect("domains", w.call("GET", domains, w.write, ""), 200, `{"domains":["apps.internal"]}`)
	w.expect("a domain", w.call("PUT", domains+"/Acme.Internal", w.admin, ""), 200, `{"revision":4}`)
	w.expect("a name in it", w.call("POST", routes, w.write, mapping("web.acme.internal web")), 200, `{"revision":5}`)
	w.expect("a domain in use", w.call("DELETE", domains+"/acme.internal", w.admin, ""), 409,
		`{"error": "remove domain: conflict: acme.internal has routes, web.acme.internal -> web is one"}`)
	w.expect("unmap", w.call("POST", unroute, w.write, mapping("web.acme.internal web")), 200, `{"revision":6}`)
	w.expect("remove it", w.call("DELETE", domains+"/acme.internal", w.admin, ""), 200, `{"revision":7}`)
	w.expect("once more", w.call("DELETE", domains+"/acme.internal", w.admin, ""), 404,
		`{"error": "remove domain: not found: acme.internal is no internal domain"}`)
	for _, c := range []struct{ method, path string }{{"PUT", domains + "/x.internal"}, {"DELETE", domains + "/x.internal"}} {
		w.expect(c.method+" as no admin", w.call(c.method, c.path, w.write, ""), 403, notAdmin)
	}
	for _, c := range []struct{ method, path string }{{"GET", routes}, {"POST", routes}, {"POST", unroute}, {"GET", domains}} {
		w.expect(c.method+" as nobody", w.call(c.method, c.path, "", "{}"), 401, `{"error": "missing authorization header"}`)
	}
}

func TestRouteRefusalsNameTheFault(t *testing.T) {
	w := start(t)
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		want                     string
	}{
		{"no JSON", "POST", routes, `{`, 400, "routes: unexpected EOF"},
		{"an unknown key", "POST", routes, `{"route":[]}`, 400, `unknown field \"route\"`},
		{"something behind", "POST", routes, mapping("a.apps.internal a") + "{}", 400, "something follows"},
		{"nothing", "POST", routes, `{"routes":[]}`, 400, "routes: there are none"},
		{"a wildcard", "POST", routes, mapping("*.apps.internal web"), 400, "routes[0]: name: \\\"*.apps.internal\\\": Wildcard hosts are not supported for internal domains."},
		{"a path", "POST", routes, mapping("a.apps.internal a", "web.apps.internal/path web"), 400, "routes[1]: name:"},
		{"no app", "POST", routes, mapping("web.apps.internal "), 400, `routes[0]: app \"\": is empty or no text`},
		{"an address", "POST", routes, `{"routes":[{"name":"web.apps.internal","address":"10.255.1.2"}]}`, 400, "registered over NATS"},
		{"no domain", "POST", routes, mapping("web a"), 400, "lies in no domain"},
		{"another's domain", "POST", routes, mapping("ok.apps.internal a", "web.example.com web"), 404, "example.com is no internal domain"},
		{"a bad wait", "POST", routes + "?wait=x", mapping("web.apps.internal web"), 400, "is not a time"},
		{"a bad filter", "GET", routes + "?name=a..b", "", 400, "two dots have nothing between them"},
		{"a bad domain", "PUT", domains + "/10.in-addr.arpa", "", 400, "addresses are looked up there"},
	} {
		if got := w.call(c.method, c.path, w.admin, c.body); got.Status != c.status || !strings.Contains(got.Body, c.want) {
			t.Errorf("%s: %d %s\nwant %d %s", c.name, got.Status, got.Body, c.status, c.want)
		}
	}
	w.expect("nothing was stored", w.call("GET", routes, w.admin, ""), 200, `{"routes":[]}`)
}

// TestRoutesOfSpaceDevelopers: a developer maps apps of their spaces, to names
// that nobody else has, and sees only those.
func TestRoutesOfSpaceDevelopers(t *testing.T) {
	f := found(t)
	for _, c := range []struct {
		name, token, path, body string
		status                  int
	}{
		{"her own", f.alice, routes, mapping("web.apps.internal web", "web.apps.internal cache"), 200},
		{"another's", f.alice, routes, mapping("shop.apps.internal shop"), 403},
		{"one of two", f.alice, routes, mapping("db.apps.internal db", "shop.apps.internal shop"), 403},
		{"an auditor", f.audrey, routes, mapping("web.apps.internal web"), 403},
		{"beside another's app", f.bob, routes, mapping("web.apps.internal shop"), 403},
		{"unmap another's", f.bob, unroute, mapping("web.apps.internal web"), 403},
		{"a name of his own", f.bob, routes, mapping("shop.apps.internal shop"), 200},
		{"an admin, beside anybody", f.admin, routes, mapping("web.apps.internal shop"), 200},
		{"now beside another's", f.alice, routes, mapping("web.apps.internal db"), 403},
		{"unmap her own", f.alice, unroute, mapping("web.apps.internal cache"), 200},
	} {
		if got := f.call("POST", c.path, c.token, c.body); got.Status != c.status {
			t.Errorf("%s: %d %s, want %d", c.name, got.Status, got.Body, c.status)
		}
	}
	f.expect("alice sees hers", f.call("GET", routes, f.alice, ""), 200, `{"routes":[{"name":"web.apps.internal","app":"web"}]}`)
	f.expect("an admin sees all", f.call("GET", routes, f.admin, ""), 200,
		`{"routes":[{"name":"shop.apps.internal","app":"shop"},{"name":"web.apps.internal","app":"web"},{"name":"web.apps.internal","app":"shop"}]}`)
	f.expect("all domains", f.call("GET", domains, f.audrey, ""), 200, `{"domains":["apps.internal"]}`)

	f.cc.DeleteApp("shop")
	f.expect("cleanup", f.call("POST", cleanup, f.admin, ""), 200, `{"total_policies":0,"policies":[]}`)
	f.expect("routes of what is gone are cleaned up", f.call("GET", routes, f.admin, ""), 200, `{"routes":[{"name":"web.apps.internal","app":"web"}]}`)
}

// TestRoutesReachEveryCell: one that has no policy with the app too, with the
// receipt to say so.
func TestRoutesReachEveryCell(t *testing.T) {
	w := start(t)
	one, two := w.cell("one", "web"), w.cell("two", "other")
	got := ask[api.Changed](w, "POST", routes+"?wait=20s", w.admin, mapping("web.apps.internal web"))
	if got.Enforced == nil || got.Enforced.Cells != "2/2" {
		t.Errorf("mapped: %+v", got.Enforced)
	}
	for _, c := range []*watcher{one, two} {
		c.until("the route comes", func() bool { return c.routes[policy.Route{Name: "web.apps.internal", App: "web"}] })
	}
	two.until("the instance comes to the other cell", func() bool { return len(two.instances) == 1 })
	one.until("and not to its own", func() bool { return len(one.instances) == 0 })
	got = ask[api.Changed](w, "POST", unroute+"?wait=20s", w.admin, mapping("web.apps.internal web"))
	if got.Enforced == nil || got.Enforced.Cells != "2/2" {
		t.Errorf("unmapped: %+v", got.Enforced)
	}
	two.until("the instance goes with its name", func() bool { return len(two.instances)+len(two.routes) == 0 })
}
