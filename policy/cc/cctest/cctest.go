// Package cctest is a Cloud Controller for tests: as much of the API v3 as a
// policy server and the cf CLI's network-policy commands ask for (reference:
// cf-cli, 2), over TLS on a free port, with the root document that advertises
// the networking API and a route that leads there. It takes the tokens of a UAA
// of package uaatest, and has its moods.
//
// A test makes one with New and calls it from any goroutine.
package cctest

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"tulle/policy/auth/uaa/uaatest"
)

// CC is a running one.
type CC struct {
	uaatest.Temper
	URL    string
	server *httptest.Server
	uaa    *uaatest.UAA

	mu         sync.Mutex // guards what follows
	orgs       map[string]object
	spaces     map[string]object
	apps       map[string]object
	roles      []object
	external   string // what the next page's address begins with
	pageSize   int    // at most, whatever is asked for; 0: as asked
	unseen     bool   // show nothing to the server's own client
	requests   []string
	networking http.Handler // behind /networking; nil: not routed
	change     func(kind string, page map[string]any)
}

// object is a resource: of its fields those that lists are filtered by.
type object struct{ guid, name, org, space, user, kind string }

// New starts one for the test's time.
func New(t testing.TB, u *uaatest.UAA) *CC {
	c := &CC{uaa: u, orgs: map[string]object{}, spaces: map[string]object{}, apps: map[string]object{}}
	c.server = httptest.NewTLSServer(http.HandlerFunc(c.serve))
	c.URL = c.server.URL
	c.external = c.URL
	t.Cleanup(func() {
		c.Release()
		c.server.Close()
	})
	return c
}

// HTTP trusts the server's certificate.
func (c *CC) HTTP() *http.Client { return c.server.Client() }

// Root is that certificate, PEM.
func (c *CC) Root() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.server.Certificate().Raw})
}

func (c *CC) locked(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

// Org adds an org.
func (c *CC) Org(guid, name string) {
	c.locked(func() { c.orgs[guid] = object{guid: guid, name: name} })
}

// Space adds a space.
func (c *CC) Space(guid, name, org string) {
	c.locked(func() { c.spaces[guid] = object{guid: guid, name: name, org: org} })
}

// App adds an app.
func (c *CC) App(guid, name, space string) {
	c.locked(func() { c.apps[guid] = object{guid: guid, name: name, space: space} })
}

// DeleteApp removes an app.
func (c *CC) DeleteApp(guid string) { c.locked(func() { delete(c.apps, guid) }) }

// Role gives a user a role in a space, such as space_developer.
func (c *CC) Role(kind, user, space string) {
	c.locked(func() {
		c.roles = append(c.roles, object{guid: fmt.Sprint("role-", len(c.roles)), kind: kind, user: user, space: space})
	})
}

// Pages makes no page longer than n, and addresses of further pages begin with
// external, as where the API is reached by a second name.
func (c *CC) Pages(n int, external string) {
	c.locked(func() { c.pageSize, c.external = n, external })
}

// Hide shows nothing to the server's own client, as if it lacked the authority;
// the lists are empty then.
func (c *CC) Hide() { c.locked(func() { c.unseen = true }) }

// Change lets the test spoil the pages of a kind of list (apps, roles) before
// they are sent; nil: no more.
func (c *CC) Change(f func(kind string, page map[string]any)) {
	c.locked(func() { c.change = f })
}

// Route leads /networking to a policy server, as the router of a foundation does.
func (c *CC) Route(to string) error {
	target, err := url.Parse(to)
	if err != nil {
		return err
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	c.locked(func() { c.networking = proxy })
	return nil
}

// Requests are those that came, as "GET /v3/apps?guids=a".
func (c *CC) Requests() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.requests)
}

// Reset forgets the requests.
func (c *CC) Reset() { c.locked(func() { c.requests = nil }) }

func (c *CC) serve(w http.ResponseWriter, r *http.Request) {
	var networking http.Handler
	c.locked(func() {
		c.requests = append(c.requests, r.Method+" "+r.URL.RequestURI())
		networking = c.networking
	})
	if networking != nil && strings.HasPrefix(r.URL.Path, "/networking/") {
		networking.ServeHTTP(w, r)
		return
	}
	if !c.Serves(w, r) {
		return
	}
	if r.Method != http.MethodGet {
		refuse(w, http.StatusNotFound, 10000, "CF-NotFound", "Unknown request")
		return
	}
	if r.URL.Path == "/" {
		c.root(w)
		return
	}
	token := r.Header.Get("Authorization")
	if len(token) > 7 && strings.EqualFold(token[:7], "bearer ") {
		token = token[7:]
	}
	subject := c.uaa.Verify(token)
	own := c.uaa.IsOwn(token)
	if subject == "" || subject == uaatest.ClientID && !own {
		refuse(w, http.StatusUnauthorized, 1000, "CF-InvalidAuthToken", "Invalid Auth Token")
		return
	}
	c.list(w, r, own)
}

// root is what `cf api` reads.
func (c *CC) root(w http.ResponseWriter) {
	link := func(to string) map[string]any { return map[string]any{"href": to} }
	answer(w, http.StatusOK, map[string]any{"links": map[string]any{
		"self":                link(c.URL),
		"cloud_controller_v3": map[string]any{"href": c.URL + "/v3", "meta": map[string]any{"version": "3.180.0"}},
		"network_policy_v0":   link(c.URL + "/networking/v0/external"),
		"network_policy_v1":   link(c.URL + "/networking/v1/external"),
		"uaa":                 link(c.uaa.URL),
		"login":               link(c.uaa.URL),
	}})
}

// filters are the query parameters of each kind of list, and what they look at.
var filters = map[string]map[string]func(object) string{
	"apps":          {"guids": object.id, "names": object.called, "space_guids": object.inSpace},
	"spaces":        {"guids": object.id, "names": object.called, "organization_guids": object.inOrg},
	"organizations": {"guids": object.id, "names": object.called},
	"roles":         {"types": object.is, "user_guids": object.of, "space_guids": object.inSpace},
}

func (o object) id() string      { return o.guid }
func (o object) called() string  { return o.name }
func (o object) inSpace() string { return o.space }
func (o object) inOrg() string   { return o.org }
func (o object) is() string      { return o.kind }
func (o object) of() string      { return o.user }

func (c *CC) list(w http.ResponseWriter, r *http.Request, own bool) {
	kind := strings.TrimPrefix(r.URL.Path, "/v3/")
	known := filters[kind]
	if known == nil {
		refuse(w, http.StatusNotFound, 10000, "CF-NotFound", "Unknown request")
		return
	}
	query := r.URL.Query()
	number := map[string]int{"page": 1, "per_page": 50}
	for name := range query {
		if _, ok := number[name]; ok {
			n, err := strconv.Atoi(query.Get(name))
			if err != nil || n < 1 || name == "per_page" && n > 5000 {
				refuse(w, http.StatusBadRequest, 10005, "CF-BadQueryParameter", name+" is out of range")
				return
			}
			number[name] = n
		} else if known[name] == nil {
			refuse(w, http.StatusBadRequest, 10005, "CF-BadQueryParameter", "Unknown query parameter "+name)
			return
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	all := map[string][]object{"apps": sorted(c.apps), "spaces": sorted(c.spaces), "organizations": sorted(c.orgs), "roles": c.roles}[kind]
	found := []map[string]any{}
	for _, o := range all {
		matches := !(own && c.unseen)
		for name, field := range known {
			if query.Has(name) && !slices.Contains(strings.Split(query.Get(name), ","), field(o)) {
				matches = false
			}
		}
		if matches {
			found = append(found, c.resource(kind, o))
		}
	}
	size := number["per_page"]
	if c.pageSize > 0 {
		size = min(size, c.pageSize)
	}
	begin := min((number["page"]-1)*size, len(found))
	end := min(begin+size, len(found))
	pagination := map[string]any{"total_results": len(found), "total_pages": (len(found) + size - 1) / size, "next": nil}
	if end < len(found) {
		query.Set("page", strconv.Itoa(number["page"]+1))
		pagination["next"] = map[string]any{"href": c.external + r.URL.Path + "?" + query.Encode()}
	}
	page := map[string]any{"pagination": pagination, "resources": found[begin:end]}
	if c.change != nil {
		c.change(kind, page)
	}
	answer(w, http.StatusOK, page)
}

func sorted(objects map[string]object) []object {
	return slices.SortedFunc(maps.Values(objects), func(a, b object) int { return strings.Compare(a.guid, b.guid) })
}

func to(guid string) map[string]any {
	return map[string]any{"data": map[string]any{"guid": guid}}
}

func (c *CC) resource(kind string, o object) map[string]any {
	switch kind {
	case "apps":
		return map[string]any{"guid": o.guid, "name": o.name, "relationships": map[string]any{"space": to(o.space)},
			"links": map[string]any{"space": map[string]any{"href": c.external + "/v3/spaces/" + o.space}}}
	case "spaces":
		return map[string]any{"guid": o.guid, "name": o.name, "relationships": map[string]any{"organization": to(o.org)}}
	case "roles":
		return map[string]any{"guid": o.guid, "type": o.kind, "relationships": map[string]any{
			"user": to(o.user), "space": to(o.space), "organization": map[string]any{"data": nil}}}
	}
	return map[string]any{"guid": o.guid, "name": o.name}
}

func refuse(w http.ResponseWriter, status, code int, title, detail string) {
	answer(w, status, map[string]any{"errors": []any{map[string]any{"code": code, "title": title, "detail": detail}}})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
