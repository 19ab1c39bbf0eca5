package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tulle/policy"
	"tulle/policy/api"
)

const (
	web     = "11111111-aaaa-4bbb-8ccc-000000000001"
	db      = "22222222-aaaa-4bbb-8ccc-000000000002"
	dbStage = "22222222-aaaa-4bbb-8ccc-000000000003"
	cache   = "33333333-aaaa-4bbb-8ccc-000000000004"
	stray   = "99999999-aaaa-4bbb-8ccc-000000000009" // in policies, but registered by nobody
)

// server answers as the reference says the policy server does (policy-api 2.1
// and 4), from a list in memory.
type server struct {
	*httptest.Server
	user string // whoami; "": the token is not an admin's

	mu       sync.Mutex
	policies []policy.Policy
	asked    []string // method and path of each request
	sent     string   // body of the last registration
	fail     []int    // statuses to answer the next requests with
	failBody string
}

func newServer(t *testing.T) *server {
	s := &server{user: "ops"}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, r.Method+" "+r.URL.RequestURI())
	refuse := func(status int, text string) {
		w.WriteHeader(status)
		_, _ = w.Write(api.ErrorBody(text))
	}
	answer := func(v any) {
		b, _ := json.Marshal(v)
		_, _ = w.Write(b)
	}
	w.Header().Set("X-Vcap-Request-Id", "request-1")
	if len(s.fail) > 0 {
		status := s.fail[0]
		s.fail = s.fail[1:]
		w.WriteHeader(status)
		_, _ = io.WriteString(w, s.failBody)
		return
	}
	if r.Header.Get("Authorization") != "Bearer secret" {
		refuse(http.StatusUnauthorized, "failed to verify token with uaa")
		return
	}
	body, _ := io.ReadAll(r.Body)
	switch r.Method + " " + r.URL.Path {
	case "GET /networking/v1/external/whoami":
		if s.user == "" {
			refuse(http.StatusForbidden, "provided scopes [network.write] do not include allowed scopes [network.admin]")
			return
		}
		answer(api.Whoami{Subject: s.user})
	case "GET /v1/apps":
		answer(api.Apps{Apps: []api.App{
			{GUID: web, Name: "web", Space: "prod", SpaceGUID: "sp", Org: "acme", OrgGUID: "ac", Instances: 2},
			{GUID: db, Name: "db", Space: "prod", SpaceGUID: "sp", Org: "acme", OrgGUID: "ac", Instances: 1},
			{GUID: dbStage, Name: "db", Space: "stage", SpaceGUID: "ss", Org: "acme", OrgGUID: "ac"},
			{GUID: cache, Name: "cache", Space: "shared", SpaceGUID: "sh", Org: "infra", OrgGUID: "in", Instances: 3},
		}})
	case "POST /v1/apps":
		s.sent = string(body)
		answer(api.Registered{GUID: "new-guid"})
	case "DELETE /v1/apps/" + cache:
		w.WriteHeader(http.StatusNoContent)
	case "DELETE /v1/apps/" + web:
		refuse(http.StatusConflict, "remove app: conflict: app has 2 containers")
	case "GET /v1/cells":
		answer(api.Cells{})
	case "GET /v1/endpoints":
		answer(api.Endpoints{Revision: 4})
	case "GET /networking/v1/external/policies":
		list := []policy.Policy{}
		id, source := r.URL.Query().Get("id"), r.URL.Query().Get("source_id")
		for _, p := range s.policies {
			if (id == "" || string(p.Source) == id || string(p.Destination) == id) && (source == "" || string(p.Source) == source) {
				list = append(list, p)
			}
		}
		answer(api.NewPolicies(list))
	case "POST /networking/v1/external/policies", "POST /networking/v1/external/policies/delete":
		ps, err := api.V1.DecodePolicies(body)
		if err != nil {
			refuse(http.StatusBadRequest, err.Error())
			return
		}
		for _, p := range ps {
			s.policies = slices.DeleteFunc(s.policies, func(q policy.Policy) bool { return p == q })
			if !strings.HasSuffix(r.URL.Path, "delete") {
				s.policies = append(s.policies, p)
			}
		}
		_, _ = io.WriteString(w, "{}")
	default:
		http.NotFound(w, r)
	}
}

// result is what a command line did.
type result struct {
	status   int
	out, err string
}

// tulle runs a command line against the server, its words split at spaces.
func (s *server) tulle(line string, env ...string) result {
	vars := map[string]string{"TULLE_SERVER": s.URL, "TULLE_TOKEN": "secret"}
	for _, e := range env {
		k, v, _ := strings.Cut(e, "=")
		vars[k] = v
	}
	var out, errs bytes.Buffer
	root := New(func(k string) string { return vars[k] }, strings.NewReader(""), &out, &errs)
	root.SetArgs(strings.Fields(line))
	status := Report(root, root.ExecuteContext(context.Background()))
	return result{status, out.String(), errs.String()}
}

func allow(src, dst string, proto policy.Protocol, start, end uint16) policy.Policy {
	return policy.Policy{Source: policy.AppID(src), Destination: policy.AppID(dst), Protocol: proto, Ports: policy.PortRange{Start: start, End: end}}
}

func TestAddNetworkPolicy(t *testing.T) {
	prod := []string{"TULLE_SPACE=prod", "TULLE_ORG=acme"}
	for _, c := range []struct {
		line string
		env  []string
		out  string
		want policy.Policy
	}{
		{"add-network-policy web db", prod, "Adding network policy from app web to app db in org acme / space prod as ops...\nOK\n", allow(web, db, policy.TCP, 8080, 8080)},
		{"add-network-policy web db --protocol UDP --port 53-60", prod, "Adding network policy from app web to app db in org acme / space prod as ops...\nOK\n", allow(web, db, policy.UDP, 53, 60)},
		{"add-network-policy web db -s stage --protocol tcp --port 80", prod, "Adding network policy from app web in org acme / space prod to app db in org acme / space stage as ops...\nOK\n", allow(web, dbStage, policy.TCP, 80, 80)},
		{"add-network-policy web db -s prod", prod, "Adding network policy from app web in org acme / space prod to app db in org acme / space prod as ops...\nOK\n", allow(web, db, policy.TCP, 8080, 8080)},
		{"add-network-policy web cache --space shared --org infra", prod, "Adding network policy from app web in org acme / space prod to app cache in org infra / space shared as ops...\nOK\n", allow(web, cache, policy.TCP, 8080, 8080)},
		{"add-network-policy web cache", nil, "Adding network policy from app web in org acme / space prod to app cache in org infra / space shared as ops...\nOK\n", allow(web, cache, policy.TCP, 8080, 8080)},
		{"add-network-policy db web --source-space stage -s prod", nil, "Adding network policy from app db in org acme / space stage to app web in org acme / space prod as ops...\nOK\n", allow(dbStage, web, policy.TCP, 8080, 8080)},
		{"add-network-policy web web", nil, "Adding network policy from app web to app web in org acme / space prod as ops...\nOK\n", allow(web, web, policy.TCP, 8080, 8080)},
		{"add-network-policy " + web + " " + dbStage, prod, "Adding network policy from app web in org acme / space prod to app db in org acme / space stage as ops...\nOK\n", allow(web, dbStage, policy.TCP, 8080, 8080)},
		{"add-network-policy " + stray + " " + stray, nil, "Adding network policy from app " + stray + " to app " + stray + " as ops...\nOK\n", allow(stray, stray, policy.TCP, 8080, 8080)},
	} {
		s := newServer(t)
		got := s.tulle(c.line, c.env...)
		if diff := cmp.Diff(result{0, c.out, ""}, got, cmp.AllowUnexported(result{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.line, diff)
		}
		if diff := cmp.Diff([]policy.Policy{c.want}, s.policies); diff != "" {
			t.Errorf("%s, stored (-want +got):\n%s", c.line, diff)
		}
		if again := s.tulle(c.line, c.env...); again != got || len(s.policies) != 1 {
			t.Errorf("%s, a second time: %+v, %d policies", c.line, again, len(s.policies))
		}
	}
}

// A wrong call is refused before anybody is asked.
func TestWrongUsage(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"add-network-policy web db --port 80", "--protocol and --port flags must be specified together"},
		{"add-network-policy web db --protocol tcp", "--protocol and --port flags must be specified together"},
		{"add-network-policy web db --protocol tcp --port 0", "--protocol and --port flags must be specified together"},
		{"add-network-policy web db -o acme", "A space must be provided when an org is provided, but the '-s' flag was not specified."},
		{"add-network-policy web db --protocol tcp --port x", "PORT must be a positive integer"},
		{"add-network-policy web db --protocol tcp --port 80-", "PORT must be a positive integer"},
		{"add-network-policy web db --protocol tcp --port=-5", "PORT must be a positive integer"},
		{"add-network-policy web db --protocol tcp --port 1-2-3", "PORT syntax must match integer[-integer]"},
		{"add-network-policy web db --protocol icmp --port 1", `PROTOCOL must be "tcp" or "udp"`},
		{"add-network-policy web db --protocol= --port 1", `PROTOCOL must be "tcp" or "udp"`},
		{"add-network-policy", "the required arguments `SOURCE_APP` and `DESTINATION_APP` were not provided"},
		{"add-network-policy web", "the required argument `DESTINATION_APP` was not provided"},
		{"add-network-policy web db other", `unexpected argument "other"`},
		{"add-network-policy web db --frob", "unknown flag: --frob"},
		{"remove-network-policy web db --protocol tcp", "the required flag `--port' was not specified"},
		{"remove-network-policy web db --port 80", "the required flag `--protocol' was not specified"},
		{"remove-network-policy web db", "the required flags `--port' and `--protocol' were not specified"},
		{"network-policies web", `unexpected argument "web"`},
		{"apps --output yaml", `--output yaml: must be "text" or "json"`},
		{"frob", `"frob" is no command of tulle`},
	} {
		s := newServer(t)
		got := s.tulle(c.line)
		first, rest, _ := strings.Cut(got.err, "\n")
		if got.status != 1 || got.out != "FAILED\n" || first != "Incorrect Usage: "+c.want || !strings.Contains(rest, "Usage:") {
			t.Errorf("%s: status %d, stdout %q, stderr %q", c.line, got.status, got.out, got.err)
		}
		if len(s.asked) != 0 {
			t.Errorf("%s: the server was asked %v", c.line, s.asked)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name, line string
		env        []string
		want       string
	}{
		{"unknown app", "add-network-policy nope db", nil, "App 'nope' not found\n"},
		{"unknown in that space", "add-network-policy web cache", []string{"TULLE_SPACE=prod"}, "App 'cache' not found\n"},
		{"ambiguous", "add-network-policy web db", nil, "App 'db' is ambiguous, name its space and org or its GUID:\n  " +
			db + "  org acme / space prod\n  " + dbStage + "  org acme / space stage\n"},
		{"the server's rule", "add-network-policy web cache --protocol tcp --port 9000-8000", nil, "mapper: validate policies: invalid port range 9000-8000, start must be less than or equal to end\n"},
		{"too high", "add-network-policy web cache --protocol tcp --port 70000", nil, "mapper: validate policies: invalid end port 70000, must be in range 1-65535\n"},
		{"a wrong token", "apps", []string{"TULLE_TOKEN=wrong"}, "failed to verify token with uaa\n" +
			"SERVER does not take the token of TULLE_TOKEN: it is another server's, was removed or has expired\n"},
		{"no token", "apps", []string{"TULLE_TOKEN="}, "no token: name its file with --token-file or TULLE_TOKEN_FILE, or put it into TULLE_TOKEN\n"},
		{"no such source", "network-policies --source nope", nil, "App 'nope' not found\n"},
	} {
		s := newServer(t)
		got := s.tulle(c.line, c.env...)
		got.err = strings.ReplaceAll(got.err, s.URL, "SERVER")
		if got.status != 1 || got.err != c.want || !strings.HasSuffix(got.out, "FAILED\n") {
			t.Errorf("%s: status %d, stdout %q, stderr %q, want %q", c.name, got.status, got.out, got.err, c.want)
		}
		if len(s.policies) != 0 {
			t.Errorf("%s: stored %v", c.name, s.policies)
		}
		if j := s.tulle(c.line+" --output json", c.env...); j.out != "" || !json.Valid([]byte(j.err)) || j.status != 1 {
			t.Errorf("%s, as JSON: %+v", c.name, j)
		}
	}
}

func TestRemoveNetworkPolicy(t *testing.T) {
	s := newServer(t)
	stay := allow(web, cache, policy.TCP, 80, 90)
	s.policies = []policy.Policy{stay, allow(web, cache, policy.TCP, 80, 80), allow(cache, web, policy.TCP, 80, 80)}
	line := "remove-network-policy web cache --protocol tcp --port 80"
	const words = "Removing network policy from app web in org acme / space prod to app cache in org infra / space shared as ops...\n"
	if got := s.tulle(line); got != (result{0, words + "OK\n", ""}) {
		t.Errorf("got %+v", got)
	}
	if want := []policy.Policy{stay, allow(cache, web, policy.TCP, 80, 80)}; !slices.Equal(s.policies, want) {
		t.Errorf("left %v, want %v", s.policies, want)
	}
	s.asked = nil
	if got := s.tulle(line); got != (result{0, words + "Policy does not exist.\nOK\n", ""}) {
		t.Errorf("a second time: %+v", got)
	}
	if slices.ContainsFunc(s.asked, func(a string) bool { return strings.HasPrefix(a, "POST") }) {
		t.Errorf("nothing was to be deleted, but asked %v", s.asked)
	}
	if got := s.tulle("remove-network-policy web cache --protocol tcp --port 80-91"); got.out != words+"Policy does not exist.\nOK\n" {
		t.Errorf("the range must match exactly: %+v", got)
	}
	var j struct {
		Policy  api.Policy
		Removed bool
	}
	got := s.tulle("remove-network-policy web cache --protocol tcp --port 80-90 --output json")
	if err := json.Unmarshal([]byte(got.out), &j); err != nil || !j.Removed || j.Policy != api.FromDomain(stay) {
		t.Errorf("as JSON: %+v, %v", got, err)
	}
}

func TestNetworkPolicies(t *testing.T) {
	s := newServer(t)
	s.policies = []policy.Policy{
		allow(web, db, policy.TCP, 5432, 5432), allow(cache, web, policy.UDP, 8080, 8090),
		allow(web, stray, policy.TCP, 80, 80), allow(dbStage, cache, policy.TCP, 1, 2),
	}
	for _, c := range []struct {
		line string
		env  []string
		want string
	}{
		{"network-policies", nil, `Listing network policies as ops...

source   destination                            protocol   ports       destination space   destination org
web      db                                     tcp        5432        prod                acme
cache    web                                    udp        8080-8090   prod                acme
web      99999999-aaaa-4bbb-8ccc-000000000009   tcp        80                              
db       cache                                  tcp        1-2         shared              infra
`},
		{"network-policies", []string{"TULLE_SPACE=stage", "TULLE_ORG=acme"}, `Listing network policies in org acme / space stage as ops...

source   destination   protocol   ports   destination space   destination org
db       cache         tcp        1-2     shared              infra
`},
		{"network-policies --source cache", nil, `Listing network policies of app cache in org infra / space shared as ops...

source   destination   protocol   ports       destination space   destination org
cache    web           udp        8080-8090   prod                acme
`},
		{"network-policies --source db --source-space prod", nil, `Listing network policies of app db in org acme / space prod as ops...

source   destination   protocol   ports   destination space   destination org
`},
	} {
		if diff := cmp.Diff(c.want, s.tulle(c.line, c.env...).out); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.line, diff)
		}
	}
	var got struct{ Policies []listedPolicy }
	out := s.tulle("network-policies --source cache --output json").out
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want := []listedPolicy{{listedApp{cache, "cache", "shared", "infra"},
		listedDestination{listedApp{web, "web", "prod", "acme"}, "udp", api.Ports{Start: 8080, End: 8090}}}}
	if diff := cmp.Diff(want, got.Policies, cmp.AllowUnexported(listedDestination{})); diff != "" {
		t.Errorf("as JSON (-want +got):\n%s", diff)
	}
}

// A token that may not ask who it is is told by its right.
func TestTheUserOfATokenWithoutAdmin(t *testing.T) {
	s := newServer(t)
	s.user = ""
	if got := s.tulle("add-network-policy web web"); !strings.HasSuffix(got.out, " as network.write...\nOK\n") {
		t.Errorf("got %+v", got)
	}
}

func TestLists(t *testing.T) {
	s := newServer(t)
	want := `name    instances   space    org     guid
web     2           prod     acme    11111111-aaaa-4bbb-8ccc-000000000001
db      1           prod     acme    22222222-aaaa-4bbb-8ccc-000000000002
db      0           stage    acme    22222222-aaaa-4bbb-8ccc-000000000003
cache   3           shared   infra   33333333-aaaa-4bbb-8ccc-000000000004
`
	if diff := cmp.Diff(result{0, want, ""}, s.tulle("apps"), cmp.AllowUnexported(result{})); diff != "" {
		t.Errorf("apps (-want +got):\n%s", diff)
	}
	for _, line := range []string{"apps", "cells", "endpoints", "version", "network-policies"} {
		got := s.tulle(line + " --output json")
		if got.status != 0 || got.err != "" || !json.Valid([]byte(got.out)) || strings.Contains(got.out, "null") {
			t.Errorf("%s as JSON: %+v", line, got)
		}
		if got := s.tulle(line); got.status != 0 || got.out == "" || got.err != "" {
			t.Errorf("%s: %+v", line, got)
		}
	}
}

// Faults of the server are tried three times, faults of a gateway and refusals
// once; what is not for people is told with all there is to know.
func TestServerFaults(t *testing.T) {
	for _, c := range []struct {
		fail   []int
		body   string
		status int
		asked  int
		err    string
	}{
		{[]int{500, 500}, `{"error": "database read failed"}`, 0, 3, ""},
		{[]int{500, 500, 500}, `{"error": "database read failed"}`, 1, 3, "Unexpected Response\nResponse code: 500\nRequest ID: request-1\nDescription: database read failed\n"},
		{[]int{503}, "busy\n", 1, 1, "Unexpected Response\nResponse code: 503\nRequest ID: request-1\nDescription: busy\n"},
		{[]int{404}, "404 page not found\n", 1, 1, "Unexpected Response\nResponse code: 404\nRequest ID: request-1\nDescription: 404 page not found\n"},
		{[]int{409}, `{"error": "conflict"}`, 1, 1, "conflict\n"},
		{[]int{200}, "<html>", 1, 1, ""},
	} {
		s := newServer(t)
		s.fail, s.failBody = c.fail, c.body
		got := s.tulle("apps")
		if got.status != c.status || len(s.asked) != c.asked || c.err != "" && got.err != c.err {
			t.Errorf("%v: %+v after %d requests, want status %d after %d, %q", c.fail, got, len(s.asked), c.status, c.asked, c.err)
		}
	}
	s := newServer(t)
	s.Close()
	if got := s.tulle("apps"); got.status != 1 || !strings.Contains(got.err, "connection refused") || strings.Count(got.err, s.URL) != 1 {
		t.Errorf("no server: %+v", got)
	}
}

func TestWhereTheTokenComesFrom(t *testing.T) {
	s := newServer(t)
	dir := t.TempDir()
	good, empty, two := filepath.Join(dir, "good"), filepath.Join(dir, "empty"), filepath.Join(dir, "two")
	for path, text := range map[string]string{good: "secret\n", empty: "\n", two: "a\nb\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, line string
		env        []string
		status     int
	}{
		{"the variable", "apps", nil, 0},
		{"the variable's file", "apps", []string{"TULLE_TOKEN=", "TULLE_TOKEN_FILE=" + good}, 0},
		{"the flag goes before", "apps --token-file " + good, []string{"TULLE_TOKEN=wrong"}, 0},
		{"an empty file", "apps --token-file " + empty, nil, 1},
		{"two lines", "apps --token-file " + two, nil, 1},
		{"no file", "apps --token-file " + filepath.Join(dir, "none"), nil, 1},
		{"the server's flag goes before", "apps --server " + s.URL, []string{"TULLE_SERVER=http://127.0.0.1:1"}, 0},
		{"no URL", "apps --server 127.0.0.1:4002", nil, 1},
		{"not http", "apps --server ftp://x", nil, 1},
	} {
		if got := s.tulle(c.line, c.env...); got.status != c.status {
			t.Errorf("%s: %+v, want status %d", c.name, got, c.status)
		}
	}
}

func TestHTTPSServer(t *testing.T) {
	s := &server{user: "ops"}
	s.Server = httptest.NewTLSServer(s)
	s.Config.ErrorLog = nil
	defer s.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pemOf(s.Certificate().Raw), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := s.tulle("apps --ca " + ca); got.status != 0 {
		t.Errorf("with its CA: %+v", got)
	}
	if got := s.tulle("apps", "TULLE_CA="+ca); got.status != 0 {
		t.Errorf("with its CA from the environment: %+v", got)
	}
	if got := s.tulle("apps"); got.status != 1 || !strings.Contains(got.err, "certificate") {
		t.Errorf("without: %+v", got)
	}
	if got := s.tulle("apps --ca /dev/null"); got.status != 1 || !strings.Contains(got.err, "holds no certificate") {
		t.Errorf("with a file that is none: %+v", got)
	}
}

// Names are others' choice: they must not move the reader's cursor.
func TestNamesDoNotReachTheTerminalRaw(t *testing.T) {
	var b bytes.Buffer
	table(&b, [][]string{{"name", "x"}, {"ev\x1b[2Jil\n\u009b", "é"}})
	if got, want := b.String(), "name         x\nev?[2Jil??   é\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// FuzzParsePorts: a person's --port. What is taken is written and taken again as
// the same.
func FuzzParsePorts(f *testing.F) {
	for _, s := range []string{"80", "80-90", "0", "-", "1-2-3", "+1", " 1", "99999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, problem := parsePorts(s)
		if problem != "" {
			return
		}
		again, problem := parsePorts(strconv.Itoa(r.Start) + "-" + strconv.Itoa(r.End))
		if problem != "" || again != r || r.Start < 0 || r.End < 0 {
			t.Errorf("%q is %v, then %v, %q", s, r, again, problem)
		}
	})
}
