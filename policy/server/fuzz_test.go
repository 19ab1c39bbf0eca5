package server_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tulle/policy/api"
	"tulle/policy/auth"
	"tulle/policy/ca"
	"tulle/policy/server"
	"tulle/policy/store"
	"tulle/policy/store/sqlite"
)

// everybody lets every token in, as an admin.
type everybody struct{}

func (everybody) Authenticate(context.Context, string) (auth.Identity, error) {
	return auth.Identity{Name: "fuzz", Scopes: []auth.Scope{auth.Admin}}, nil
}

// patient is a recorder on which deadlines can be set.
type patient struct{ *httptest.ResponseRecorder }

func (patient) SetReadDeadline(time.Time) error  { return nil }
func (patient) SetWriteDeadline(time.Time) error { return nil }

// target is one operation that reads something of its caller's.
type target struct {
	internal     bool
	method, path string // NAME stands for a text of the caller's
}

var targets = []target{
	{false, "POST", "/networking/v1/external/policies"},
	{false, "POST", "/networking/v0/external/policies"},
	{false, "POST", "/networking/v1/external/policies/delete"},
	{false, "GET", "/networking/v1/external/policies"},
	{false, "GET", "/networking/NAME/external/tags"},
	{false, "POST", "/v1/policies"},
	{false, "POST", "/v1/policies/delete"},
	{false, "GET", "/v1/enforced"},
	{false, "GET", "/v1/audit"},
	{false, "POST", "/v1/apps"},
	{false, "DELETE", "/v1/apps/NAME"},
	{false, "PUT", "/v1/security-groups/NAME"},
	{false, "DELETE", "/v1/security-groups/NAME"},
	{false, "GET", "/v1/routes"},
	{false, "POST", "/v1/routes"},
	{false, "POST", "/v1/routes/delete"},
	{false, "PUT", "/v1/routes/domains/NAME"},
	{false, "DELETE", "/v1/routes/domains/NAME"},
	{true, "PUT", cellPath + "cell-1/lease"},
	{true, "PUT", cellPath + "NAME/lease"},
	{true, "PUT", cellPath + "cell-1/endpoints"},
	{true, "POST", cellPath + "cell-1/ack"},
	{true, "POST", cellPath + "cell-1/credential"},
	{true, "POST", api.PathJoin},
	{true, "POST", strings.Replace(api.PathCertificates, "{name}", "cell-1", 1)},
	{true, "GET", "/networking/v1/internal/watch"},
	{true, "GET", "/networking/NAME/internal/policies"},
	{true, "GET", "/networking/v1/internal/security_groups"},
	{true, "PUT", "/networking/v1/internal/tags"},
}

// FuzzRequests sends anything to every operation of both APIs, as an admin and as
// a cell. Whatever comes, the server answers: a success, or a refusal in the
// original's shape; never a fault of its own, but for the parameters of which the
// original makes one.
func FuzzRequests(f *testing.F) {
	db, err := sqlite.Open(f.Context(), filepath.Join(f.TempDir(), "fuzz.db"), sqlite.Options{MaxTag: 1000, Audit: 100, History: 100,
		Lease: store.LeaseConfig{Network: netip.MustParsePrefix("10.255.0.0/16"), Bits: 24, Lifetime: time.Hour}})
	if err != nil {
		f.Fatal(err)
	}
	roots, err := ca.Create(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	certificate, err := roots.Server.Certificates([]string{"127.0.0.1"})
	if err != nil {
		f.Fatal(err)
	}
	srv, err := server.New(f.Context(), server.Options{Store: db, Auth: everybody{}, Log: slog.New(slog.DiscardHandler),
		ExternalAddress: "127.0.0.1:0", InternalAddress: "127.0.0.1:0", InternalTLS: ca.ServerTLS(roots.Cells, certificate),
		InternalOptions: server.InternalOptions{Issuer: roots.Cells, Instances: roots.Instances}})
	if err != nil {
		f.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	f.Cleanup(func() {
		stop()
		<-done
		db.Close()
	})
	cred, err := roots.Cells.IssueCell("cell-1", []ca.Space{{Org: "acme", Space: "prod"}}, time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	leaf, err := cred.Certificate()
	if err != nil {
		f.Fatal(err)
	}
	_, request, err := ca.NewRequest()
	if err != nil {
		f.Fatal(err)
	}
	routers := server.Routers(srv)

	escaped := strings.ReplaceAll(string(request), "\n", `\n`)
	for n := range targets {
		for _, seed := range []struct{ name, query, body string }{
			{"v1", "id=a,b&source_id=a&dest_id=b", body("a b tcp 1 2")},
			{"", "wait=1ms&revision=1&limit=5&before=9", `{"policies":[{"source":{"id":"a"},"destination":{"id":"b","protocol":"udp","port":7}}]}`},
			{"a b/%", "wait=-1s&revision=x&limit=-5&from=-1", `{"name":"n","rules":[{"protocol":"tcp","destination":"10.0.0.1","ports":"1-2"}],"guid":"g"}`},
			{"cell-1", "epoch=e&revision=18446744073709551615", `{"underlay":"192.0.2.1","port":4789,"mode":"vxlan","subnet":"10.255.7.0/24","generation":4294967296}`},
			{"apps.internal", "from=3&per_page=2&space_guids=s", `{"routes":[{"name":"web.apps.internal","app":"web"}]}`},
			{"\x00", "%zz&id", `{"generation":1,"sequence":1,"endpoints":[{"container":"k","address":"10.255.7.1","app":{"name":"web","space":"prod","org":"acme"},"incarnation":1}]}`},
			{"é", "id=%00", `{"secret":"s","request":"` + escaped + `"}`},
			{"x", "", `{"ID":"INGRESS_ROUTER","Type":"router"}`},
			{"x", "", `{"epoch":"e","revision":99999999999999999999}`},
			{"x", "", "{\"name\":\"\xff\u0000\"}"},
		} {
			f.Add(uint8(n), seed.name, seed.query, seed.body)
		}
	}
	f.Fuzz(func(t *testing.T, n uint8, name, query, body string) {
		op := targets[int(n)%len(targets)]
		// What comes over a socket is a path that the URL's rules allow.
		path := strings.ReplaceAll(op.path, "NAME", url.PathEscape(name))
		u, err := url.ParseRequestURI(path)
		if err != nil {
			return
		}
		u.RawQuery = strings.Map(func(r rune) rune {
			if r <= ' ' || r == 0x7f || r == '#' {
				return -1
			}
			return r
		}, query)
		limited, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if strings.HasSuffix(op.path, "/watch") {
			cancel() // a stream that is open has no end of its own
		}
		if wait := u.Query().Get("wait"); wait != "" {
			if d, err := time.ParseDuration(wait); err == nil && d > time.Second {
				return // it would wait for a cell that watches nothing
			}
		}
		r := httptest.NewRequestWithContext(limited, op.method, "http://server/", strings.NewReader(body))
		r.URL = u
		r.Header.Set("Authorization", "Bearer x")
		router := routers[0]
		if op.internal {
			router = routers[1]
			r.TLS = &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{leaf}}
		}
		w := patient{httptest.NewRecorder()}
		router.ServeHTTP(w, r)
		status, text := w.Code, w.Body.String()
		known := status == http.StatusInternalServerError && (strings.HasPrefix(text, `{"error": "invalid value for '`) ||
			strings.HasPrefix(text, `{"error": "database create failed`)) // an id that is of another type, a text that cannot be stored
		if status >= 500 && !known && limited.Err() == nil {
			t.Fatalf("%s %s %q: %d %s", op.method, u, body, status, text)
		}
		if status >= 400 && status != http.StatusNotFound && status != http.StatusMethodNotAllowed && limited.Err() == nil {
			if _, ok := api.ParseError(w.Body.Bytes()); !ok {
				t.Fatalf("%s %s %q: %d %q is not an error's shape", op.method, u, body, status, text)
			}
		}
	})
}
