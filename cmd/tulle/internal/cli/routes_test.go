package cli

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/auth"
	"tulle/policy/ca"
	policyserver "tulle/policy/server"
	"tulle/policy/store"
	"tulle/policy/store/sqlite"
)

// named is a real policy server that knows two apps, web and blue, of the space
// prod in the org acme.
type named struct {
	*testing.T
	store store.Store
	env   map[string]string
}

func newNamed(t *testing.T) *named {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	token, entry := auth.NewToken("ops", auth.Admin)
	text, err := auth.EncodeTokens([]auth.Token{entry})
	must(err)
	must(os.WriteFile(filepath.Join(dir, "tokens"), text, 0o600))
	tokens, err := auth.OpenTokens(filepath.Join(dir, "tokens"), slog.New(slog.DiscardHandler))
	must(err)
	roots, err := ca.Create(filepath.Join(dir, "pki"))
	must(err)
	certificate, err := roots.Server.Certificates([]string{"127.0.0.1"})
	must(err)
	s, err := sqlite.Open(t.Context(), filepath.Join(dir, "policy.db"), sqlite.Options{
		Lease: store.LeaseConfig{Network: netip.MustParsePrefix("10.255.0.0/16"), Bits: 24, Lifetime: time.Hour}})
	must(err)
	lease, err := s.Lease(t.Context(), "one", api.LeaseRequest{Underlay: netip.MustParseAddr("127.0.0.1"), Port: 4789, Mode: api.ModeVXLAN})
	must(err)
	a := lease.Subnet.Addr().Next()
	_, err = s.SetEndpoints(t.Context(), "one", api.EndpointsRequest{Generation: lease.Generation, Sequence: 1, Endpoints: []api.EndpointRegistration{
		{Container: "c1", Address: a, App: api.AppRef{GUID: web, Name: "web", Space: "prod", Org: "acme"}, Incarnation: 1},
		{Container: "c2", Address: a.Next(), App: api.AppRef{GUID: db, Name: "blue", Space: "prod", Org: "acme"}, Incarnation: 2},
	}})
	must(err)
	srv, err := policyserver.New(t.Context(), policyserver.Options{Store: s, Auth: tokens, Log: slog.New(slog.DiscardHandler),
		ExternalAddress: "127.0.0.1:0", InternalAddress: "127.0.0.1:0", InternalTLS: ca.ServerTLS(roots.Cells, certificate)})
	must(err)
	done := make(chan error, 1)
	go func() { done <- srv.Run(t.Context()) }()
	t.Cleanup(func() {
		must(<-done)
		must(s.Close())
	})
	return &named{t, s, map[string]string{"TULLE_SERVER": "http://" + srv.Addresses().External, "TULLE_TOKEN": token}}
}

func (n *named) run(line string, status int, want string) {
	n.Helper()
	var out strings.Builder
	root := New(func(k string) string { return n.env[k] }, strings.NewReader(""), &out, &out)
	root.SetArgs(strings.Fields(line))
	if got := Report(root, root.ExecuteContext(n.Context())); got != status {
		n.Errorf("%s: status %d, want %d", line, got, status)
	}
	if got := out.String(); got != want && (status == 0 || !strings.HasPrefix(got, want)) {
		n.Errorf("%s:\n%swant:\n%s", line, got, want)
	}
}

func TestRouteCommands(t *testing.T) {
	n := newNamed(t)
	n.run("map-route web apps.internal --hostname Web", 0, "Mapping route web.apps.internal to app web in org acme / space prod as ops...\nOK\n")
	n.run("map-route web apps.internal -n web", 0, "Mapping route web.apps.internal to app web in org acme / space prod as ops...\n"+
		"App 'web' is already mapped to route 'web.apps.internal'. Nothing has been updated.\nOK\n")
	n.run("map-route blue apps.internal. --hostname web --wait 100ms", 0, "Mapping route web.apps.internal to app blue in org acme / space prod as ops...\nOn 0/1 cells.\nOK\n")
	n.run("create-domain Acme.Internal", 0, "Creating internal domain acme.internal...\nOK\n")
	n.run("domains", 0, "name\nacme.internal\napps.internal\n")
	n.run("map-route "+web+" acme.internal --hostname www --output json", 0,
		"{\n  \"route\": {\n    \"name\": \"www.acme.internal\",\n    \"app\": \""+web+"\"\n  },\n  \"revision\": 6\n}\n")
	if _, err := n.store.AddRoutes(t.Context(), []policy.Route{{Name: "x.apps.internal", Address: netip.MustParseAddr("10.255.3.4")}}, nil); err != nil {
		t.Fatal(err)
	}
	n.run("routes", 0, `name                app    space   org    instances
web.apps.internal   web    prod    acme   1
web.apps.internal   blue   prod    acme   1
www.acme.internal   web    prod    acme   1
x.apps.internal                           10.255.3.4
`)
	n.run("delete-domain acme.internal", 1, "Deleting internal domain acme.internal...\nremove domain: conflict: acme.internal has routes, www.acme.internal -> "+web+" is one\nFAILED\n")
	n.run("unmap-route web acme.internal --hostname www", 0, "Removing route www.acme.internal from app web in org acme / space prod as ops...\nOK\n")
	n.run("unmap-route web acme.internal --hostname www", 0, "Removing route www.acme.internal from app web in org acme / space prod as ops...\n"+
		"Route to be unmapped is not currently mapped to the application.\nOK\n")
	n.run("delete-domain acme.internal", 0, "Deleting internal domain acme.internal...\nOK\n")
}

func TestRouteCommandsRefuse(t *testing.T) {
	n := newNamed(t)
	for line, want := range map[string]string{
		"map-route web --hostname web":                                   "Incorrect Usage: the required argument `DOMAIN` was not provided",
		"map-route web apps.internal":                                    "Incorrect Usage: the required flag `--hostname' was not specified",
		"map-route web apps.internal --hostname *":                       `"*.apps.internal": Wildcard hosts are not supported for internal domains.`,
		"map-route web apps.internal --hostname a.b":                     `hostname "a.b": must have no dot`,
		"map-route web apps.internal --hostname web --path /x":           "Paths are not supported for internal domains.",
		"map-route web apps.internal --hostname web --port 80":           "internal domains have no ports",
		"map-route web apps.internal --hostname web --wait 1h":           "Incorrect Usage: --wait must be from 0s to 10m0s",
		"map-route nobody apps.internal --hostname web":                  "App 'nobody' not found",
		"map-route web example.com --hostname web":                       "Mapping route web.example.com to app web in org acme / space prod as ops...\nadd routes: not found: example.com is no internal domain\n",
		"unmap-route web apps.internal --hostname web --space elsewhere": "App 'web' not found",
		"create-domain 10.in-addr.arpa":                                  `"10.in-addr.arpa": addresses are looked up there`,
		"routes more":                                                    `Incorrect Usage: unexpected argument "more"`,
	} {
		n.run(line, 1, want)
	}
}
