package server_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/auth"
	"tulle/policy/ca"
	"tulle/policy/server"
	"tulle/policy/store"
	"tulle/policy/store/sqlite"
)

// world is a running server, on real sockets, and who calls it.
type world struct {
	t            *testing.T
	store        store.Store
	server       *server.Server
	roots        *ca.Roots
	base         string // URL of the external API
	auth         auth.Authenticator
	admin, write string // tokens
	cells        uint16 // made so far
	options      server.Options
	stop         func() // ends the server and closes the store
}

// start runs a server for the test's time.
func start(t *testing.T, change ...func(*server.Options)) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t}
	var entries [2]auth.Token
	w.admin, entries[0] = auth.NewToken("alice", auth.Admin)
	w.write, entries[1] = auth.NewToken("bob", auth.Write)
	text, err := auth.EncodeTokens(entries[:])
	w.must(err)
	w.must(os.WriteFile(filepath.Join(dir, "tokens.yaml"), text, 0o600))
	tokens, err := auth.OpenTokens(filepath.Join(dir, "tokens.yaml"), slog.New(slog.DiscardHandler))
	w.must(err)
	w.auth = tokens
	roots, err := ca.Create(filepath.Join(dir, "pki"))
	w.must(err)
	w.roots = roots
	certificate, err := roots.Server.Certificates([]string{"127.0.0.1"})
	w.must(err)
	w.store, err = sqlite.Open(t.Context(), filepath.Join(dir, "policy.db"), sqlite.Options{
		Lease: store.LeaseConfig{Network: netip.MustParsePrefix("10.255.0.0/16"), Bits: 24, Lifetime: time.Hour},
	})
	w.must(err)
	o := server.Options{
		Store: w.store, Auth: tokens, Log: slog.New(slog.DiscardHandler),
		ExternalAddress: "127.0.0.1:0", InternalAddress: "127.0.0.1:0",
		InternalTLS: ca.ServerTLS(roots.Cells, certificate),
		AdminSocket: server.AdminSocket(filepath.Join(dir, "policy.db")),
	}
	for _, f := range change {
		f(&o)
	}
	w.run(o)
	return w
}

// run runs a server until the test's end, or stop.
func (w *world) run(o server.Options) {
	w.t.Helper()
	var err error
	w.server, err = server.New(w.t.Context(), o)
	w.must(err)
	w.options, w.base = o, "http://"+w.server.Addresses().External
	ctx, stop := context.WithCancel(context.WithoutCancel(w.t.Context()))
	done := make(chan error, 1)
	go func() { done <- w.server.Run(ctx) }()
	opened := w.store
	w.stop = sync.OnceFunc(func() {
		stop()
		if err := <-done; err != nil {
			w.t.Errorf("the server ended with %v", err)
		}
		w.must(opened.Close())
	})
	w.t.Cleanup(w.stop)
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// answer is what a test looks at.
type answer struct {
	Status int
	Body   string
	header http.Header
}

// call sends a request; headers are "Name: value".
func (w *world) call(method, path, token, body string, headers ...string) answer {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.base+path, strings.NewReader(body))
	w.must(err)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	got, err := http.DefaultTransport.RoundTrip(r) // no redirects
	w.must(err)
	defer got.Body.Close()
	text, err := io.ReadAll(got.Body)
	w.must(err)
	agrees(w.t, method, path, got.StatusCode, got.Header, text)
	return answer{got.StatusCode, string(text), got.Header}
}

func (w *world) expect(what string, got answer, status int, body string) {
	w.t.Helper()
	if got.Status != status || got.Body != body {
		w.t.Errorf("%s: %d %q\nwant %d %q", what, got.Status, got.Body, status, body)
	}
}

const (
	policies = "/networking/v1/external/policies"
	remove   = "/networking/v1/external/policies/delete"
)

// body is a v1 list of policies like "web db tcp 80 90".
func body(list ...string) string {
	var ps []string
	for _, p := range list {
		f := strings.Fields(p)
		ps = append(ps, fmt.Sprintf(`{"source":{"id":"%s"},"destination":{"id":"%s","protocol":"%s","ports":{"start":%s,"end":%s}}}`,
			f[0], f[1], f[2], f[3], f[4]))
	}
	return fmt.Sprintf(`{"total_policies":%d,"policies":[%s]}`, len(list), strings.Join(ps, ","))
}

func TestPoliciesLive(t *testing.T) {
	w := start(t)
	w.expect("empty list", w.call("GET", policies, w.admin, ""), 200, `{"total_policies":0,"policies":[]}`)
	both := body("web db tcp 5432 5432", "web db udp 80 90")
	w.expect("create", w.call("POST", policies, w.write, both), 200, `{}`)
	w.expect("create again", w.call("POST", policies, w.admin, both), 200, `{}`)
	w.expect("list", w.call("GET", policies, w.write, ""), 200, both)
	w.expect("list in v0", w.call("GET", "/networking/v0/external/policies", w.admin, ""), 200,
		`{"total_policies":1,"policies":[{"source":{"id":"web"},"destination":{"id":"db","protocol":"tcp","port":5432}}]}`)
	w.expect("create in v0", w.call("POST", "/networking/v0/external/policies", w.admin,
		`{"policies":[{"source":{"id":"db"},"destination":{"id":"db","protocol":"tcp","port":7}}]}`), 200, `{}`)
	w.expect("tags", w.call("GET", "/networking/v1/external/tags", w.admin, ""), 200,
		`{"tags":[{"id":"web","tag":"0001","type":"app"},{"id":"db","tag":"0002","type":"app"}]}`)
	w.expect("delete, some of it not there", w.call("POST", remove, w.write, body("web db tcp 5432 5432", "x y tcp 1 1")), 200, `{}`)
	w.expect("delete of nothing", w.call("POST", remove, w.write, body("x y tcp 1 1")), 200, `{}`)
	w.expect("list", w.call("GET", policies, w.admin, ""), 200, body("db db tcp 7 7", "web db udp 80 90"))
	w.expect("cleanup without a cloud controller", w.call("POST", "/networking/v0/external/policies/cleanup", w.admin, ""), 200,
		`{"total_policies":0,"policies":[]}`)
	w.expect("whoami", w.call("GET", "/networking/v0/external/whoami", w.admin, ""), 200, `{"subject":"alice"}`)
	w.expect("health", w.call("GET", "/health", "", ""), 200, "")
	for _, path := range []string{"/", "/networking"} {
		got := w.call("GET", path, "", "")
		if got.Status != 200 || !regexp.MustCompile(`^Network policy server, up for [0-9.]+(µs|ms|s)\n$`).MatchString(got.Body) {
			t.Errorf("%s: %d %q", path, got.Status, got.Body)
		}
	}
}

func TestListFilters(t *testing.T) {
	w := start(t)
	ab, bc, ca := "a b tcp 1 1", "b c tcp 2 2", "c a udp 3 3"
	w.expect("create", w.call("POST", policies, w.admin, body(ab, bc, ca)), 200, `{}`)
	for query, want := range map[string]string{
		"?id=a":                    body(ab, ca),
		"?id=a,b":                  body(ab, bc, ca),
		"?id=a&id=b":               body(ab, ca),
		"?id=":                     body(),
		"?id=a&source_id=b":        body(ab, ca),
		"?source_id=b":             body(bc),
		"?dest_id=b,c":             body(ab, bc),
		"?source_id=a,b&dest_id=c": body(bc),
		"?id=a,%20b":               body(ab, ca), // not trimmed
		"?unknown=x":               body(ab, bc, ca),
	} {
		w.expect(query, w.call("GET", policies+query, w.admin, ""), 200, want)
	}
}

// TestRefusals holds every refusal of the external API to the original's status
// and body, byte for byte, and sees that nothing is stored by any.
func TestRefusals(t *testing.T) {
	w := start(t)
	good := body("web db tcp 80 80")
	port := func(ports string) string {
		return `{"policies":[{"source":{"id":"a"},"destination":{"id":"b","protocol":"tcp","ports":` + ports + `}}]}`
	}
	huge := `{"padding":"` + strings.Repeat("x", api.MaxBody) + `"}`
	const (
		scopes = `{"error": "provided scopes [network.write] do not include allowed scopes [network.admin]"}`
		uaa    = `{"error": "failed to verify token with uaa"}`
	)
	for _, c := range []struct {
		name, method, path, token, body string
		status                          int
		want                            string
	}{
		{"no token", "GET", policies, "", "", 401, `{"error": "missing authorization header"}`},
		{"bad token", "GET", policies, "nobody", "", 401, uaa},
		{"bad token, bad body", "POST", policies, "nobody", "{", 401, uaa},
		{"version before token", "GET", "/networking/v7/external/policies", "", "", 406, `{"error": "api version 'v7' not supported"}`},
		{"version in capitals", "POST", "/networking/V1/external/policies/delete", w.admin, good, 406, `{"error": "api version 'V1' not supported"}`},
		{"tags are admin's", "GET", "/networking/v1/external/tags", w.write, "", 403, scopes},
		{"whoami is admin's", "GET", "/networking/v1/external/whoami", w.write, "", 403, scopes},
		{"cleanup is admin's", "POST", "/networking/v1/external/policies/cleanup", w.write, "", 403, scopes},

		{"empty body", "POST", policies, w.admin, "", 400, `{"error": "mapper: unmarshal json: unexpected end of JSON input"}`},
		{"cut off", "POST", policies, w.admin, good[:20], 400, `{"error": "mapper: unmarshal json: unexpected end of JSON input"}`},
		{"not JSON", "POST", policies, w.admin, "policy", 400, `{"error": "mapper: unmarshal json: invalid character 'p' looking for beginning of value"}`},
		{"two values", "POST", remove, w.admin, "{} {}", 400, `{"error": "mapper: unmarshal json: invalid character '{' after top-level value"}`},
		{"no list", "POST", policies, w.admin, "{}", 400, `{"error": "mapper: validate policies: missing policies"}`},
		{"empty list", "POST", remove, w.admin, body(), 400, `{"error": "mapper: validate policies: missing policies"}`},
		{"no source", "POST", policies, w.admin, `{"policies":[{}]}`, 400, `{"error": "mapper: validate policies: missing source id"}`},
		{"no destination", "POST", policies, w.admin, `{"policies":[{"source":{"id":"a"}}]}`, 400, `{"error": "mapper: validate policies: missing destination id"}`},
		{"icmp", "POST", policies, w.admin, body("a b icmp 1 1"), 400, `{"error": "mapper: validate policies: invalid destination protocol, specify either udp or tcp"}`},
		{"TCP", "POST", policies, w.admin, body("a b TCP 1 1"), 400, `{"error": "mapper: validate policies: invalid destination protocol, specify either udp or tcp"}`},
		{"range backwards", "POST", policies, w.admin, body("a b tcp 9 8"), 400, `{"error": "mapper: validate policies: invalid port range 9-8, start must be less than or equal to end"}`},
		{"negative", "POST", policies, w.admin, body("a b tcp -1 8"), 400, `{"error": "mapper: validate policies: invalid start port -1, must be in range 1-65535"}`},
		{"port 0", "POST", policies, w.admin, body("a b tcp 0 8"), 400, `{"error": "mapper: validate policies: missing start port"}`},
		{"no ports", "POST", policies, w.admin, port(`{}`), 400, `{"error": "mapper: validate policies: missing start port"}`},
		{"no end", "POST", policies, w.admin, port(`{"start":5}`), 400, `{"error": "mapper: validate policies: invalid port range 5-0, start must be less than or equal to end"}`},
		{"port 65536", "POST", remove, w.admin, body("a b udp 1 65536"), 400, `{"error": "mapper: validate policies: invalid end port 65536, must be in range 1-65535"}`},
		{"tag", "POST", policies, w.admin, `{"policies":[{"source":{"id":"a","tag":"0001"},"destination":{"id":"b","protocol":"tcp","ports":{"start":1,"end":1}}}]}`,
			400, `{"error": "mapper: validate policies: tags may not be specified"}`},
		{"v0 without port", "POST", "/networking/v0/external/policies", w.admin, good, 400, `{"error": "mapper: validate policies: missing port"}`},
		{"second policy bad", "POST", policies, w.admin, body("web db tcp 80 80", "web db tcp 0 0"), 400, `{"error": "mapper: validate policies: missing start port"}`},
		{"body over 10 MiB", "POST", policies, w.admin, huge, 400, `{"error": "failed reading request body"}`},
		{"delete over 10 MiB", "POST", remove, w.admin, huge, 400, `{"error": "invalid request body"}`},

		{"unknown path", "GET", "/networking/v1/external/destinations", w.admin, "", 404, "404 page not found\n"},
		{"trailing slash", "GET", policies + "/", w.admin, "", 404, "404 page not found\n"},
		{"doubled slash", "GET", "/" + policies, w.admin, "", 404, "404 page not found\n"},
		{"wrong method", "DELETE", policies, "", "", 405, "Method Not Allowed\n"},
		{"GET of delete", "GET", remove, w.admin, "", 405, "Method Not Allowed\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := w.call(c.method, c.path, c.token, c.body)
			if got.Status != c.status || got.Body != c.want {
				t.Errorf("%d %q\nwant %d %q", got.Status, got.Body, c.status, c.want)
			}
			if bearer := got.header.Get("WWW-Authenticate"); (bearer == "Bearer") != (c.status == 401) {
				t.Errorf("WWW-Authenticate %q with a %d", bearer, c.status)
			}
			if framed := got.header.Get("X-Frame-Options") != ""; framed == (c.status == 404 || c.status == 405) {
				t.Errorf("frame headers there: %v, with a %d", framed, c.status)
			}
		})
	}
	if got := w.call("HEAD", policies, w.admin, ""); got.Status != 405 || got.header.Get("Allow") != "POST, GET, OPTIONS" {
		t.Errorf("HEAD: %d, Allow %q", got.Status, got.header.Get("Allow"))
	}
	if w.expect("list afterwards", w.call("GET", policies, w.admin, ""), 200, body()); t.Failed() {
		return
	}
	if state, err := w.store.State(t.Context()); err != nil || state.Revision != 0 || len(state.Tags) != 0 {
		t.Errorf("after refusals only: %+v, %v", state, err)
	}
}

func TestNineMegabytesOfPaddingPass(t *testing.T) {
	w := start(t)
	padded := strings.TrimSuffix(body("a b tcp 1 1"), "}") + `,"padding":"` + strings.Repeat("x", 9<<20) + `"}`
	w.expect("create", w.call("POST", policies, w.admin, padded), 200, "{}")
	w.expect("list", w.call("GET", policies, w.admin, ""), 200, body("a b tcp 1 1"))
}

func TestHeaders(t *testing.T) {
	w := start(t, func(o *server.Options) { o.AllowedCORSDomains = []string{"https://ui.example", "*"} })
	got := w.call("GET", policies, w.admin, "", "X-VCAP-Request-ID: came", "Origin: https://ui.example")
	id := got.header.Get("X-VCAP-Request-ID")
	if !regexp.MustCompile(`^came::[0-9a-f-]{36}$`).MatchString(id) {
		t.Errorf("request id %q", id)
	}
	want := map[string]string{
		"X-Xss-Protection": "1; mode=block", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "deny",
		"Content-Security-Policy": "frame-ancestors 'none'", "Content-Type": "text/plain; charset=utf-8",
		"Access-Control-Allow-Origin": "https://ui.example", "Strict-Transport-Security": "",
	}
	have := map[string]string{}
	for name := range want {
		have[name] = got.header.Get(name)
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
	for path, methods := range map[string]string{
		policies: "POST,GET,OPTIONS", remove: "POST,OPTIONS", "/": "GET,OPTIONS", "/networking/v9/external/tags": "GET,OPTIONS",
	} {
		got := w.call("OPTIONS", path, "", "", "Origin: https://elsewhere.example")
		if got.Status != 200 || got.Body != "" || got.header.Get("Access-Control-Allow-Methods") != methods ||
			got.header.Get("Access-Control-Allow-Headers") != "authorization" || got.header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("OPTIONS %s: %d %q %v", path, got.Status, got.Body, got.header)
		}
	}
	none := start(t)
	if o := none.call("GET", "/", "", "", "Origin: https://ui.example").header.Get("Access-Control-Allow-Origin"); o != "" {
		t.Errorf("no domain is allowed, yet the origin %q", o)
	}
}

func TestQuota(t *testing.T) {
	w := start(t, func(o *server.Options) { o.MaxPolicies = 3 })
	const exceeded = `{"error": "policy quota exceeded"}`
	w.expect("up to the limit", w.call("POST", policies, w.write, body("a b tcp 1 1", "a b tcp 2 2", "a b tcp 3 3")), 200, "{}")
	w.expect("one more", w.call("POST", policies, w.write, body("a b udp 1 1")), 403, exceeded)
	w.expect("one more beside others", w.call("POST", policies, w.write, body("c b tcp 1 1", "a b tcp 1 1", "a b tcp 1 2")), 403, exceeded)
	w.expect("what is there already", w.call("POST", policies, w.write, body("a b tcp 1 1", "a b tcp 2 2")), 200, "{}")
	w.expect("one four times", w.call("POST", policies, w.write, body("c b tcp 1 1", "c b tcp 1 1", "c b tcp 1 1", "c b tcp 1 1")), 200, "{}")
	w.expect("a destination is no source", w.call("POST", policies, w.write, body("c b tcp 1 1", "c b tcp 2 2", "c b tcp 3 3")), 200, "{}")
	w.expect("too many at once", w.call("POST", policies, w.write, body("d b tcp 1 1", "d b tcp 2 2", "d b tcp 3 3", "d b tcp 4 4")), 403, exceeded)
	w.expect("admin has none", w.call("POST", policies, w.admin, body("a b tcp 4 4")), 200, "{}")
	w.expect("over the limit, what is there already", w.call("POST", policies, w.write, body("a b tcp 4 4", "c b tcp 1 1")), 200, "{}")
	w.expect("over the limit, as a destination", w.call("POST", policies, w.write, body("d a tcp 1 1")), 403, exceeded)
	w.expect("stored", w.call("GET", policies, w.admin, ""), 200, body("a b tcp 1 1", "a b tcp 2 2", "a b tcp 3 3", "a b tcp 4 4",
		"c b tcp 1 1", "c b tcp 2 2", "c b tcp 3 3"))
}

func TestRegistry(t *testing.T) {
	w := start(t)
	w.expect("no apps", w.call("GET", "/v1/apps", w.write, ""), 200, `{"apps":[]}`)
	w.expect("no cells", w.call("GET", "/v1/cells", w.write, ""), 200, `{"cells":[]}`)
	w.expect("no endpoints", w.call("GET", "/v1/endpoints", w.admin, ""), 200, `{"endpoints":[],"revision":0}`)
	w.expect("no token", w.call("GET", "/v1/apps", "", ""), 401, `{"error": "missing authorization header"}`)

	l, err := w.store.Lease(t.Context(), "cell-1", api.LeaseRequest{Underlay: netip.MustParseAddr("192.0.2.1"), Port: 4789, Mode: api.ModeVXLAN})
	w.must(err)
	address := l.Subnet.Addr().Next()
	set, err := w.store.SetEndpoints(t.Context(), "cell-1", api.EndpointsRequest{Generation: 1, Sequence: 1, Endpoints: []api.EndpointRegistration{
		{Container: "k", Address: address, App: api.AppRef{Org: "acme", Space: "prod", Name: "web"}, Instance: "0", Incarnation: 3}}})
	w.must(err)
	apps, err := w.store.Apps(t.Context())
	w.must(err)
	a := apps[0]
	w.expect("apps", w.call("GET", "/v1/apps", w.admin, ""), 200, fmt.Sprintf(
		`{"apps":[{"guid":"%s","name":"web","space":"prod","space_guid":"%s","org":"acme","org_guid":"%s","instances":1}]}`, a.GUID, a.SpaceGUID, a.OrgGUID))
	w.expect("endpoints", w.call("GET", "/v1/endpoints", w.admin, ""), 200, fmt.Sprintf(
		`{"endpoints":[{"cell":"cell-1","container":"k","address":"%s","app":"%s","instance":"0","generation":1,"incarnation":3}],"revision":%d}`,
		address, a.GUID, set.Revision))
	got := w.call("GET", "/v1/cells", w.admin, "")
	if !strings.HasPrefix(got.Body, fmt.Sprintf(`{"cells":[{"name":"cell-1","kind":"tulle","mode":"vxlan","underlay":"192.0.2.1","port":4789,"subnet":"%s","generation":1,"renewed":`, l.Subnet)) {
		t.Errorf("cells %s", got.Body)
	}
	if ct := got.header.Get("Content-Type"); ct != "application/json" {
		t.Errorf("Content-Type %q", ct)
	}
}

// broken is a store whose database answers with errors of its own.
type broken struct{ store.Store }

var errDisk = fmt.Errorf("disk on fire at /var/lib/secret")

func (broken) AddPolicies(context.Context, []policy.Policy) (api.Revision, error) { return 0, errDisk }
func (broken) RemovePolicies(context.Context, []policy.Policy) (api.Revision, error) {
	return 0, errDisk
}
func (broken) Policies(context.Context, store.Filter) ([]policy.Policy, error) { return nil, errDisk }
func (broken) Tags(context.Context) ([]api.AppTag, error)                      { return nil, errDisk }
func (broken) Apps(context.Context) ([]store.App, error)                       { return nil, errDisk }

// TestBrokenStore sees that a database that fails is stood in for by what the
// server remembers, that what cannot be is answered with the original's texts,
// and that the database's own words stay in the log.
func TestBrokenStore(t *testing.T) {
	var log bytes.Buffer
	w := start(t, func(o *server.Options) {
		o.Store = broken{o.Store}
		o.Log = slog.New(slog.NewTextHandler(&log, nil))
	})
	p := body("a b tcp 1 1")
	w.expect("create", w.call("POST", policies, w.admin, p), 500, `{"error": "database create failed"}`)
	w.expect("create, the quota from memory", w.call("POST", policies, w.write, p), 500, `{"error": "database create failed"}`)
	w.expect("delete", w.call("POST", remove, w.admin, p), 500, `{"error": "database delete failed"}`)
	w.expect("list", w.call("GET", policies, w.admin, ""), 200, `{"total_policies":0,"policies":[]}`)
	w.expect("tags", w.call("GET", "/networking/v1/external/tags", w.admin, ""), 200, `{"tags":[]}`)
	w.expect("apps, which nothing is remembered of", w.call("GET", "/v1/apps", w.admin, ""), 500, `{"error": "internal error"}`)
	w.expect("uptime needs no database", w.call("HEAD", "/", "", ""), 405, "")
	w.stop() // nobody writes to the log any more
	for _, told := range []string{"database create failed: " + errDisk.Error(), "answering from memory"} {
		if !strings.Contains(log.String(), told) {
			t.Errorf("the log does not say %q:\n%s", told, log.String())
		}
	}
}
