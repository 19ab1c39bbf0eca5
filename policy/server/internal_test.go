package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/server"
	"tulle/policy/store"
	"tulle/policy/store/sqlite"
)

// cellsRig is the internal API on a real socket, with the roots to make any kind
// of client for it.
type cellsRig struct {
	*testing.T
	store store.Store
	roots *ca.Roots
	url   string
}

func newCellsRig(t *testing.T, before ...func(store.Store, *ca.Roots)) *cellsRig {
	t.Helper()
	return newCellsRigBy(t, nil, before...)
}

// newCellsRigBy is newCellsRig with a store that has a clock of its own.
func newCellsRigBy(t *testing.T, now func() time.Time, before ...func(store.Store, *ca.Roots)) *cellsRig {
	t.Helper()
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "tulle.db"), sqlite.Options{Lease: store.LeaseConfig{
		Network: netip.MustParsePrefix("10.255.0.0/16"), Bits: 24, Lifetime: time.Hour,
	}, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	roots, err := ca.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	certs, err := roots.Server.Certificates([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range before {
		f(s, roots)
	}
	in, err := server.NewInternal(t.Context(), s, server.InternalOptions{Instances: roots.Instances, Issuer: roots.Cells})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- in.Run(ctx) }()
	t.Cleanup(func() { stop(); <-done })

	conf := ca.ServerTLS(roots.Cells, certs)
	cert, err := certs(nil)
	if err != nil {
		t.Fatal(err)
	}
	conf.Certificates = []tls.Certificate{*cert} // or httptest puts its own there
	srv := httptest.NewUnstartedServer(in)
	srv.Config = server.InternalServer(in, conf, slog.New(slog.DiscardHandler))
	srv.TLS, srv.EnableHTTP2 = conf, true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return &cellsRig{T: t, store: s, roots: roots, url: srv.URL}
}

// as is a client that shows cred.
func (r *cellsRig) as(cred *ca.Credential) *http.Client {
	r.Helper()
	pair, err := cred.TLS()
	if err != nil {
		r.Fatal(err)
	}
	tr := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{
		RootCAs:              r.roots.Server.Pool(),
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil },
	}}
	r.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// knock opens a connection with the credential, sends nothing and waits for what
// the server has to say. TLS 1.3 tells a client that it is unwelcome only after
// its own side of the handshake; an HTTP client that writes at once may find the
// connection broken before it reads why.
func (r *cellsRig) knock(cred *ca.Credential) error {
	r.Helper()
	pair, err := cred.TLS()
	if err != nil {
		r.Fatal(err)
	}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), &tls.Config{
		RootCAs: r.roots.Server.Pool(), NextProtos: []string{"h2"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil },
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Read(make([]byte, 1)) // the server's HTTP/2 settings, or its alert
	return err
}

func (r *cellsRig) cell(name string, spaces ...string) *http.Client {
	r.Helper()
	return r.as(r.credential(name, spaces...))
}

func (r *cellsRig) credential(name string, spaces ...string) *ca.Credential {
	r.Helper()
	var list []ca.Space
	for _, s := range spaces {
		space, err := ca.ParseSpace(s)
		if err != nil {
			r.Fatal(err)
		}
		list = append(list, space)
	}
	cred, err := r.roots.Cells.IssueCell(name, list, 0)
	if err != nil {
		r.Fatal(err)
	}
	return cred
}

func (r *cellsRig) do(c *http.Client, method, path string, body []byte) (*http.Response, string) {
	r.Helper()
	req, err := http.NewRequestWithContext(r.Context(), method, r.url+path, bytes.NewReader(body))
	if err != nil {
		r.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		r.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		r.Fatal(err)
	}
	agrees(r.T, method, path, resp.StatusCode, resp.Header, text)
	return resp, string(text)
}

func (r *cellsRig) put(c *http.Client, path string, in, out any) {
	r.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		r.Fatal(err)
	}
	resp, text := r.do(c, http.MethodPut, path, body)
	if resp.StatusCode != http.StatusOK {
		r.Fatalf("PUT %s: status %d: %s", path, resp.StatusCode, text)
	}
	if err := json.Unmarshal([]byte(text), out); err != nil {
		r.Fatal(err)
	}
}

const cellPath = "/networking/v1/internal/cells/"

var leaseRequest = api.LeaseRequest{Underlay: netip.MustParseAddr("192.0.2.1"), Port: 4789, Mode: api.ModeVXLAN}

func TestInternalAPIKnowsWhoAsks(t *testing.T) {
	r := newCellsRig(t)
	lease, err := json.Marshal(leaseRequest)
	if err != nil {
		t.Fatal(err)
	}
	one := r.cell("one", "*")
	for _, request := range []struct{ method, path string }{
		{http.MethodPut, "two/lease"}, {http.MethodDelete, "two/lease"}, {http.MethodPut, "two/endpoints"}, {http.MethodPost, "two/ack"},
	} {
		resp, text := r.do(one, request.method, cellPath+request.path, lease)
		if resp.StatusCode != http.StatusForbidden || !strings.Contains(text, `"error": "the certificate is of cell one, not of two"`) {
			t.Errorf("%s %s as one: status %d: %s", request.method, request.path, resp.StatusCode, text)
		}
	}
	resp, text := r.do(one, http.MethodPut, cellPath+"one/lease", lease)
	if resp.StatusCode != http.StatusOK {
		t.Errorf("own lease: status %d: %s", resp.StatusCode, text)
	}
	if resp.ProtoMajor != 2 {
		t.Errorf("served over %s, want HTTP/2", resp.Proto)
	}
	if got := resp.Header.Get("Strict-Transport-Security"); got != "max-age=31536000" {
		t.Errorf("Strict-Transport-Security is %q", got)
	}

	// A container's certificate does not even get to the handlers.
	cred, err := r.roots.Instances.IssueInstance("web", "0", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.knock(cred); err == nil || !strings.Contains(err.Error(), "remote error: tls: ") {
		t.Errorf("an instance's certificate: %v, want a TLS alert", err)
	}
	if err := r.knock(r.credential("two", "*")); err != nil {
		t.Errorf("a cell's certificate: %v", err)
	}
	cells, err := r.store.Cells(t.Context())
	if err != nil || len(cells) != 1 || cells[0].Name != "one" {
		t.Errorf("stored: %+v, %v; want the lease of one alone", cells, err)
	}
}

func TestInternalAPIRefusesBadRequests(t *testing.T) {
	r := newCellsRig(t)
	one := r.cell("one", "*")
	ok, err := json.Marshal(leaseRequest)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, method, path, body string
		status                   int
	}{
		{"not JSON", "PUT", cellPath + "one/lease", "{", 400},
		{"something behind it", "PUT", cellPath + "one/lease", string(ok) + "{}", 400},
		{"wrong type", "PUT", cellPath + "one/lease", `{"port":"x"}`, 400},
		{"no underlay", "PUT", cellPath + "one/lease", `{"port":1,"mode":"vxlan"}`, 400},
		{"unspecified underlay", "PUT", cellPath + "one/lease", `{"underlay":"0.0.0.0","port":1,"mode":"vxlan"}`, 400},
		{"no port", "PUT", cellPath + "one/lease", `{"underlay":"192.0.2.1","mode":"vxlan"}`, 400},
		{"port out of range", "PUT", cellPath + "one/lease", `{"underlay":"192.0.2.1","port":65536,"mode":"vxlan"}`, 400},
		{"unknown mode", "PUT", cellPath + "one/lease", `{"underlay":"192.0.2.1","port":1,"mode":"ipip"}`, 400},
		{"a second key that is the first", "PUT", cellPath + "one/lease", `{"underlay":"192.0.2.1","port":1,"mode":"wireguard","wireguard_port":2,"key":"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","next_key":"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`, 400},
		{"a second key in plain", "PUT", cellPath + "one/lease", `{"underlay":"192.0.2.1","port":1,"mode":"vxlan","next_key":"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`, 400},
		{"an encapsulation key of another length", "PUT", cellPath + "one/lease", `{"underlay":"192.0.2.1","port":1,"mode":"wireguard","wireguard_port":2,"key":"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","encapsulation_key":"AAAA"}`, 400},
		{"a secret of two others", "PUT", cellPath + "one/secrets", `{"offers":[{"from":"three","to":"two","sequence":1}]}`, 409},
		{"a secret without a lease", "PUT", cellPath + "one/secrets", `{}`, 404},
		{"large secrets", "PUT", cellPath + "one/secrets", strings.Repeat(" ", 1<<20) + "{}", 413},
		{"large lease", "PUT", cellPath + "one/lease", strings.Repeat(" ", 65<<10) + string(ok), 413},
		{"large ack", "POST", cellPath + "one/ack", strings.Repeat(" ", 5<<10) + "{}", 413},
		{"large list", "PUT", cellPath + "one/endpoints", strings.Repeat(" ", 17<<20) + "{}", 413},
		{"endpoints without a lease", "PUT", cellPath + "one/endpoints", `{"generation":1,"sequence":1}`, 404},
		{"acknowledges another epoch", "POST", cellPath + "one/ack", `{"epoch":"x","revision":0}`, 409},
		{"revision is no number", "GET", api.PathWatch + "?revision=-1", "", 400},
		{"unknown path", "GET", "/networking/v1/internal/nothing", "", 404},
		{"wrong method", "GET", cellPath + "one/lease", "", 405},
	}
	for _, tt := range tests {
		resp, text := r.do(one, tt.method, tt.path, []byte(tt.body))
		if resp.StatusCode != tt.status {
			t.Errorf("%s: status %d, want %d: %s", tt.name, resp.StatusCode, tt.status, text)
		}
		if _, isError := api.ParseError([]byte(text)); !isError && tt.status != 404 && tt.status != 405 {
			t.Errorf("%s: body %q is no error body", tt.name, text)
		}
	}
	if cells, err := r.store.Cells(t.Context()); err != nil || len(cells) != 0 {
		t.Errorf("stored: %+v, %v; want nothing", cells, err)
	}
}

// A cell hosts what its certificate names; the others of its list stand.
func TestEndpointsOutsideTheCellsSpaces(t *testing.T) {
	r := newCellsRig(t)
	anything := r.cell("any", "*")
	var lease api.Lease
	r.put(anything, cellPath+"any/lease", leaseRequest, &lease)
	list := func(lease api.Lease, refs ...api.AppRef) api.EndpointsRequest {
		req := api.EndpointsRequest{Generation: lease.Generation, Sequence: 1}
		addr := lease.Subnet.Addr()
		for _, ref := range refs {
			addr = addr.Next()
			req.Endpoints = append(req.Endpoints, api.EndpointRegistration{
				Container: addr.String(), Address: addr, App: ref, Incarnation: 1,
			})
		}
		return req
	}
	var answer api.EndpointsResponse
	r.put(anything, cellPath+"any/endpoints", list(lease,
		api.AppRef{Name: "web", Org: "acme", Space: "prod"},
		api.AppRef{Name: "db", Org: "acme", Space: "dev"},
		api.AppRef{GUID: "nobody-named-it"},
	), &answer)
	if len(answer.Refused) != 0 || len(answer.Apps) != 3 {
		t.Fatalf("a cell for everything: %+v", answer)
	}
	var web, db policy.AppID
	var devSpace string
	apps, err := r.store.Apps(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range apps {
		switch a.Name {
		case "web":
			web = a.GUID
		case "db":
			db, devSpace = a.GUID, a.SpaceGUID
		}
	}
	refs := []api.AppRef{
		{GUID: web},
		{Name: "web", Org: "acme", Space: "prod"},
		{Name: "new", Org: "acme", Space: "prod"},
		{GUID: db},
		{Name: "db", Org: "acme", Space: "dev"},
		{GUID: db, Name: "mine", Org: "acme", Space: "prod"}, // another's app under a name of ours
		{GUID: "nobody-named-it"},
		{Name: "web"}, // default/default
		{GUID: "in-policies-only", Name: "claimed", Org: "acme", Space: "prod"},
		{GUID: "nobody-named-it", Name: "claimed", Org: "acme", Space: "dev"},
	}
	for i, tt := range []struct {
		spaces []string
		want   []bool
	}{
		{[]string{"acme/prod"}, []bool{true, true, true, false, false, false, false, false, false, false}},
		{[]string{devSpace}, []bool{false, false, false, true, true, false, false, false, false, false}},
		{[]string{"default/default", "acme/dev"}, []bool{false, false, false, true, true, false, false, true, false, false}},
		{nil, make([]bool, 10)},
	} {
		name := string(rune('a' + i))
		c := r.cell(name, tt.spaces...)
		req := leaseRequest
		req.Port += uint16(1 + i)
		var lease api.Lease
		r.put(c, cellPath+name+"/lease", req, &lease)
		list := list(lease, refs...)
		var answer api.EndpointsResponse
		r.put(c, cellPath+name+"/endpoints", list, &answer)
		var got []bool
		for _, e := range list.Endpoints {
			_, stands := answer.Apps[e.Container]
			_, refused := answer.Refused[e.Container]
			if stands == refused {
				t.Errorf("spaces %v, %+v: stands %v, refused %v", tt.spaces, e.App, stands, refused)
			}
			got = append(got, stands)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("spaces %v (-want +got):\n%s\nrefused: %v", tt.spaces, diff, answer.Refused)
		}
	}
}

func TestPolling(t *testing.T) {
	r := newCellsRig(t)
	c := r.cell("one", "*")
	get := func(path string) string {
		resp, text := r.do(c, http.MethodGet, path, nil)
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("GET %s: status %d: %s", path, resp.StatusCode, text)
		}
		return text
	}
	if got, want := get("/networking/v1/internal/policies"), `{"total_policies":0,"policies":[]}`; got != want {
		t.Errorf("no policies: %s, want %s", got, want)
	}
	if _, err := r.store.AddPolicies(t.Context(), []policy.Policy{
		{Source: "web", Destination: "db", Protocol: policy.TCP, Ports: policy.PortRange{Start: 7000, End: 7010}},
	}); err != nil {
		t.Fatal(err)
	}
	want := `{"total_policies":1,"policies":[{"source":{"id":"web","tag":"0001"},` +
		`"destination":{"id":"db","tag":"0002","protocol":"tcp","ports":{"start":7000,"end":7010}}}]}`
	for _, query := range []string{"", "?id=web", "?id=db", "?id=some-space,db", "?id=" + strings.Repeat("x,", 100_000) + "web"} {
		if got := get("/networking/v1/internal/policies" + query); got != want {
			t.Errorf("%.40s: %s, want %s", query, got, want)
		}
	}
	for _, query := range []string{"?id=", "?id=other"} {
		if got, want := get("/networking/v7/internal/policies"+query), `{"total_policies":0,"policies":[]}`; got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
	at, err := r.store.LastUpdated(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var nanos int64
	if err := json.Unmarshal([]byte(get("/networking/v1/internal/policies_last_updated")), &nanos); err != nil || nanos != at.UnixNano() {
		t.Errorf("last updated is %d, %v; want %d", nanos, err, at.UnixNano())
	}
}
