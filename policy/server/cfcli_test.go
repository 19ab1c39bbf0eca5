package server_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tulle/policy/cc/cctest"
)

// cf is the cf CLI's part in the network-policy commands, request for request
// (reference: cf-cli, 2.1 and 2.3 to 2.5, 3). It finds the policy server as the
// CLI does, by the root document of the API it targets.
type cf struct {
	t          *testing.T
	http       *http.Client
	api        string
	np         string // links.network_policy_v1.href
	token      string
	space, org string // targeted, guids
}

func targeted(t *testing.T, c *cctest.CC, token, space, org string) *cf {
	t.Helper()
	cli := &cf{t: t, http: c.HTTP(), api: c.URL, token: token, space: space, org: org}
	var root struct {
		Links struct {
			NetworkPolicyV1 struct {
				Href string `json:"href"`
			} `json:"network_policy_v1"`
		} `json:"links"`
	}
	cli.read("GET", c.URL+"/", "", &root)
	if cli.np = root.Links.NetworkPolicyV1.Href; cli.np == "" {
		t.Fatal("This command requires Network Policy API V1. Your targeted endpoint does not expose it.")
	}
	return cli
}

// read sends a request; a refusal is returned as the CLI prints it.
func (c *cf) read(method, address, body string, into any) (refusal string) {
	c.t.Helper()
	r, err := http.NewRequestWithContext(c.t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	r.Header.Set("Accept", "application/json")
	r.Header.Set("Authorization", "bearer "+c.token)
	r.Header.Set("User-Agent", "cf/9.0.0 (go1.26; amd64 linux)")
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	answer, err := c.http.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	if answer.StatusCode >= 400 {
		var e struct {
			Error string `json:"error"`
		}
		if err := json.Unmarshal(text, &e); err != nil {
			return fmt.Sprintf("Unexpected Response\nResponse code: %d", answer.StatusCode)
		}
		if !slices.Contains([]int{400, 401, 403, 406, 409}, answer.StatusCode) {
			return fmt.Sprintf("Unexpected Response\nResponse code: %d\nRequest ID: %s\nDescription: %s", answer.StatusCode, answer.Header.Get("X-Vcap-Request-Id"), e.Error)
		}
		return e.Error
	}
	if into != nil {
		if err := json.Unmarshal(text, into); err != nil {
			c.t.Fatalf("%s %s: %v in %s", method, address, err, text)
		}
	}
	return ""
}

// resource is what the CLI reads of apps, spaces and orgs.
type resource struct {
	GUID          string `json:"guid"`
	Name          string `json:"name"`
	Relationships map[string]struct {
		Data struct {
			GUID string `json:"guid"`
		} `json:"data"`
	} `json:"relationships"`
}

func (c *cf) list(path string, query url.Values) []resource {
	c.t.Helper()
	var all []resource
	for next := c.api + path + "?" + query.Encode(); next != ""; {
		var page struct {
			Pagination struct {
				Next struct {
					Href string `json:"href"`
				} `json:"next"`
			} `json:"pagination"`
			Resources []resource `json:"resources"`
		}
		if refusal := c.read("GET", next, "", &page); refusal != "" {
			c.t.Fatalf("%s: %s", next, refusal)
		}
		all = append(all, page.Resources...)
		next = page.Pagination.Next.Href
	}
	return all
}

// one looks a resource up by its name.
func (c *cf) one(path, name, within, guid string) string {
	c.t.Helper()
	query := url.Values{"names": {name}, "page": {"1"}, "per_page": {"1"}}
	if within != "" {
		query.Set(within, guid)
	}
	found := c.list(path, query)
	if len(found) != 1 {
		c.t.Fatalf("%s %q not found", path, name)
	}
	return found[0].GUID
}

// cliPolicy is a policy in the shape that the CLI sends and reads.
type cliPolicy struct {
	Source struct {
		ID string `json:"id"`
	} `json:"source"`
	Destination struct {
		ID       string `json:"id"`
		Protocol string `json:"protocol"`
		Ports    struct {
			Start int `json:"start"`
			End   int `json:"end"`
		} `json:"ports"`
	} `json:"destination"`
}

type cliPolicies struct {
	Policies []cliPolicy `json:"policies"`
}

// resolve is the beginning of add and of remove.
func (c *cf) resolve(source, destination, destSpace, destOrg, protocol string, start, end int) cliPolicy {
	c.t.Helper()
	space, org := c.space, c.org
	if destOrg != "" {
		org = c.one("/v3/organizations", destOrg, "", "")
	}
	if destSpace != "" {
		space = c.one("/v3/spaces", destSpace, "organization_guids", org)
	}
	var p cliPolicy
	p.Source.ID = c.one("/v3/apps", source, "space_guids", c.space)
	p.Destination.ID = c.one("/v3/apps", destination, "space_guids", space)
	p.Destination.Protocol = strings.ToLower(protocol)
	p.Destination.Ports.Start, p.Destination.Ports.End = start, end
	return p
}

func (c *cf) send(path string, p cliPolicy) string {
	c.t.Helper()
	body, err := json.Marshal(cliPolicies{[]cliPolicy{p}})
	if err != nil {
		c.t.Fatal(err)
	}
	if refusal := c.read("POST", c.np+path, string(body), nil); refusal != "" {
		return refusal + "\nFAILED"
	}
	return "OK"
}

// add is cf add-network-policy.
func (c *cf) add(source, destination, destSpace, destOrg, protocol string, start, end int) string {
	c.t.Helper()
	return c.send("/policies", c.resolve(source, destination, destSpace, destOrg, protocol, start, end))
}

// remove is cf remove-network-policy.
func (c *cf) remove(source, destination, destSpace, destOrg, protocol string, start, end int) string {
	c.t.Helper()
	p := c.resolve(source, destination, destSpace, destOrg, protocol, start, end)
	var there cliPolicies
	if refusal := c.read("GET", c.np+"/policies?id="+url.QueryEscape(p.Source.ID), "", &there); refusal != "" {
		return refusal + "\nFAILED"
	}
	if !slices.Contains(there.Policies, p) {
		return "Policy does not exist.\nOK"
	}
	return c.send("/policies/delete", p)
}

// policies is cf network-policies, with --source or without: its table.
func (c *cf) policies(source string) string {
	c.t.Helper()
	query := url.Values{"space_guids": {c.space}}
	if source != "" {
		query = url.Values{"names": {source}, "page": {"1"}, "per_page": {"1"}, "space_guids": {c.space}}
	}
	sources := map[string]string{}
	var guids []string
	for _, app := range c.list("/v3/apps", query) {
		sources[app.GUID] = app.Name
		guids = append(guids, app.GUID)
	}
	var shown []cliPolicy
	for batch := range slices.Chunk(guids, 200) {
		var list cliPolicies
		if refusal := c.read("GET", c.np+"/policies?id="+url.QueryEscape(strings.Join(batch, ",")), "", &list); refusal != "" {
			return refusal + "\nFAILED"
		}
		for _, p := range list.Policies {
			if _, ok := sources[p.Source.ID]; ok {
				shown = append(shown, p)
			}
		}
	}
	var ids []string
	for _, p := range shown {
		if !slices.Contains(ids, p.Destination.ID) {
			ids = append(ids, p.Destination.ID)
		}
	}
	apps, spaces, orgs := map[string]resource{}, map[string]resource{}, map[string]resource{}
	for batch := range slices.Chunk(ids, 200) {
		for _, app := range c.list("/v3/apps", url.Values{"guids": {strings.Join(batch, ",")}}) {
			apps[app.GUID] = app
		}
	}
	related := func(of map[string]resource, relation, path string, into map[string]resource) {
		var guids []string
		for _, r := range of {
			if g := r.Relationships[relation].Data.GUID; !slices.Contains(guids, g) {
				guids = append(guids, g)
			}
		}
		slices.Sort(guids)
		for _, r := range c.list(path, url.Values{"guids": {strings.Join(guids, ",")}}) {
			into[r.GUID] = r
		}
	}
	related(apps, "space", "/v3/spaces", spaces)
	related(spaces, "organization", "/v3/organizations", orgs)
	lines := []string{}
	for _, p := range shown {
		app := apps[p.Destination.ID]
		space := spaces[app.Relationships["space"].Data.GUID]
		ports := strconv.Itoa(p.Destination.Ports.Start)
		if p.Destination.Ports.End != p.Destination.Ports.Start {
			ports += "-" + strconv.Itoa(p.Destination.Ports.End)
		}
		lines = append(lines, strings.Join([]string{sources[p.Source.ID], app.Name, p.Destination.Protocol, ports,
			space.Name, orgs[space.Relationships["organization"].Data.GUID].Name}, " | "))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// behind puts the policy server behind the router of its foundation, where the
// CLI finds it.
func behind(f *foundation) *foundation {
	f.t.Helper()
	f.must(f.cc.Route(f.base))
	f.cc.Org("acme", "acme")
	f.cc.Org("globex", "globex")
	f.cc.Space("blue", "blue", "acme")
	f.cc.Space("green", "green", "globex")
	for guid, name := range map[string]string{"web": "web", "db": "db"} {
		f.cc.App(guid, name, "blue")
	}
	f.cc.App("cache", "cache", "green")
	return f
}

// TestCFCLI: the commands of a space developer, with the requests they make and
// what they print.
func TestCFCLI(t *testing.T) {
	f := behind(found(t))
	cli := targeted(t, f.cc, f.alice, "blue", "acme")
	if cli.np != f.cc.URL+"/networking/v1/external" {
		t.Fatalf("network_policy_v1 is %s", cli.np)
	}
	// requests are the CLI's, without those that our server makes to answer them.
	requests := func() []string {
		var list []string
		for _, r := range f.cc.Requests() {
			if !strings.Contains(r, "/v3/roles") && !(strings.Contains(r, "/v3/apps?guids=") && strings.Contains(r, "per_page=")) {
				list = append(list, r)
			}
		}
		f.cc.Reset()
		return list
	}
	step := func(what, got, want string, made ...string) {
		t.Helper()
		if got != want {
			t.Errorf("%s prints\n%s\nwant\n%s", what, got, want)
		}
		if diff := cmp.Diff(made, requests()); diff != "" {
			t.Errorf("%s: requests (-want +got):\n%s", what, diff)
		}
	}
	const (
		app  = "GET /v3/apps?names=%s&page=1&per_page=1&space_guids=%s"
		np   = "/networking/v1/external/policies"
		post = "POST " + np
	)
	requests()
	web, db, cache := fmt.Sprintf(app, "web", "blue"), fmt.Sprintf(app, "db", "blue"), fmt.Sprintf(app, "cache", "green")
	green := []string{"GET /v3/organizations?names=globex&page=1&per_page=1", "GET /v3/spaces?names=green&organization_guids=globex&page=1&per_page=1"}

	step("add", cli.add("web", "db", "", "", "tcp", 8080, 8080), "OK", web, db, post)
	step("add again", cli.add("web", "db", "", "", "tcp", 8080, 8080), "OK", web, db, post)
	step("add across spaces, in capitals", cli.add("web", "cache", "green", "globex", "UDP", 53, 60), "OK", append(slices.Clone(green), web, cache, post)...)
	step("list", cli.policies(""), "web | cache | udp | 53-60 | green | globex\nweb | db | tcp | 8080 | blue | acme",
		"GET /v3/apps?space_guids=blue", "GET "+np+"?id=db%2Cweb", "GET /v3/apps?guids=cache%2Cdb", "GET /v3/spaces?guids=blue%2Cgreen", "GET /v3/organizations?guids=acme%2Cglobex")
	step("list of a source", cli.policies("db"), "",
		db, "GET "+np+"?id=db", "GET /v3/spaces?guids=", "GET /v3/organizations?guids=")

	step("add backwards", cli.add("web", "db", "", "", "tcp", 9000, 8000),
		"mapper: validate policies: invalid port range 9000-8000, start must be less than or equal to end\nFAILED", web, db, post)
	step("add out of range", cli.add("web", "db", "", "", "tcp", 8000, 65536),
		"mapper: validate policies: invalid end port 65536, must be in range 1-65535\nFAILED", web, db, post)

	step("remove another range", cli.remove("web", "cache", "green", "globex", "udp", 53, 59), "Policy does not exist.\nOK",
		append(slices.Clone(green), web, cache, "GET "+np+"?id=web")...)
	step("remove", cli.remove("web", "cache", "green", "globex", "udp", 53, 60), "OK",
		append(slices.Clone(green), web, cache, "GET "+np+"?id=web", post+"/delete")...)
	step("remove again", cli.remove("web", "cache", "green", "globex", "udp", 53, 60), "Policy does not exist.\nOK",
		append(slices.Clone(green), web, cache, "GET "+np+"?id=web")...)
	f.expect("what is left", f.call("GET", policies, f.admin, ""), 200, body("web db tcp 8080 8080"))
}

// TestCFCLIRefused: the server's texts arrive as they are.
func TestCFCLIRefused(t *testing.T) {
	f := behind(found(t))
	const notYours = "one or more applications cannot be found or accessed\nFAILED"
	for who, c := range map[string]struct{ token, want string }{
		"another space's developer": {f.bob, notYours},
		"an auditor":                {f.audrey, notYours},
		"no scope": {f.uaa.User("alice", "guid-alice", "cloud_controller.read"),
			"provided scopes [cloud_controller.read] do not include allowed scopes [network.admin network.write]\nFAILED"},
	} {
		if got := targeted(t, f.cc, c.token, "blue", "acme").add("web", "db", "", "", "tcp", 80, 80); got != c.want {
			t.Errorf("%s: %s", who, got)
		}
	}
	admin := targeted(t, f.cc, f.admin, "blue", "acme")
	if got := admin.add("web", "db", "", "", "tcp", 80, 80); got != "OK" {
		t.Errorf("an admin: %s", got)
	}
	if got := targeted(t, f.cc, f.bob, "blue", "acme").policies(""); got != "" {
		t.Errorf("another space's developer sees %s", got)
	}
	token := f.uaa.User("alice", "guid-alice", "network.write")
	cli := targeted(t, f.cc, token, "blue", "acme")
	f.uaa.Revoke(token)
	if got, want := cli.policies(""), "failed to verify token with uaa\nFAILED"; got != want {
		t.Errorf("a token taken back: %s", got)
	}
}

// TestCFCLIWithManyApps: lists come in batches of 200, within the length of an
// address.
func TestCFCLIWithManyApps(t *testing.T) {
	f := behind(found(t))
	var all []string
	for i := range 450 {
		guid := fmt.Sprintf("11111111-aaaa-4bbb-8ccc-%012d", i)
		f.cc.App(guid, fmt.Sprintf("app-%03d", i), "blue")
		// To an app that is not listed: the CLI prints a policy between two of its
		// batches twice.
		all = append(all, guid+" cache tcp 80 80")
	}
	f.expect("create", f.call("POST", policies, f.alice, body(all...)), 200, "{}")
	f.cc.Reset()
	table := strings.Split(targeted(t, f.cc, f.alice, "blue", "acme").policies(""), "\n")
	if len(table) != 450 || table[449] != "app-449 | cache | tcp | 80 | green | globex" {
		t.Errorf("%d lines, the last %q", len(table), table[len(table)-1])
	}
	batches := 0
	for _, r := range f.cc.Requests() {
		if strings.HasPrefix(r, "GET /networking/v1/external/policies?id=") {
			batches++
		}
	}
	if batches != 3 {
		t.Errorf("%d batches, want 3", batches)
	}
}
