package server_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/lease"
	"tulle/policy/server"
)

// legacyRig is a server with both of its mutual-TLS sockets and a legacy root.
type legacyRig struct {
	*world
	pki            string // holds the directory pki
	roots          *ca.Roots
	legacy         *ca.Authority
	internal, silk string // URLs
}

func newLegacyRig(t *testing.T, change ...func(*server.Options)) *legacyRig {
	t.Helper()
	r := &legacyRig{pki: t.TempDir()}
	r.world = start(t, func(o *server.Options) {
		dir := filepath.Join(r.pki, "pki")
		var err error
		if r.roots, err = ca.Create(dir); err != nil {
			t.Fatal(err)
		}
		if r.legacy, err = ca.CreateLegacy(dir); err != nil {
			t.Fatal(err)
		}
		certificate, err := r.roots.Server.Certificates([]string{"127.0.0.1"})
		if err != nil {
			t.Fatal(err)
		}
		o.InternalTLS = ca.InternalTLS(r.roots.Cells, r.legacy, certificate)
		o.InternalOptions.Legacy = r.legacy
		o.LegacyAddress, o.LegacyTLS = "127.0.0.1:0", ca.LegacyTLS(r.legacy, certificate)
		for _, f := range change {
			f(o)
		}
	})
	a := r.server.Addresses()
	r.internal, r.silk = "https://"+a.Internal, "https://"+a.Legacy
	return r
}

// client is one that shows cred and calls from the address: on Linux all of
// 127.0.0.0/8 is the host's own.
func (r *legacyRig) client(cred *ca.Credential, from string) *http.Client {
	r.t.Helper()
	pair, err := cred.TLS()
	r.must(err)
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	// As the original's clients: TLS of crypto/tls's defaults, HTTP/1.1.
	tr := &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{
		RootCAs: r.roots.Server.Pool(), Certificates: []tls.Certificate{pair},
	}}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// daemon is a silk-daemon at an underlay address.
func (r *legacyRig) daemon(underlay string) *http.Client {
	r.t.Helper()
	cred, err := r.legacy.IssueLegacy("silk-daemon", 0)
	r.must(err)
	return r.client(cred, underlay)
}

func (r *legacyRig) do(c *http.Client, method, url, body string) (status int, text string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, url, bytes.NewReader([]byte(body)))
	r.must(err)
	resp, err := c.Do(req)
	r.must(err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	r.must(err)
	return resp.StatusCode, string(b)
}

func (r *legacyRig) want(what string, c *http.Client, method, url, body string, status int, text string) {
	r.t.Helper()
	if gotStatus, got := r.do(c, method, url, body); gotStatus != status || got != text {
		r.t.Errorf("%s: %d %q\nwant %d %q", what, gotStatus, got, status, text)
	}
}

// acquired is a lease that a daemon was given.
func (r *legacyRig) acquired(c *http.Client, underlay string, single bool) api.SilkLease {
	r.t.Helper()
	status, text := r.do(c, http.MethodPut, r.silk+"/leases/acquire",
		fmt.Sprintf(`{"underlay_ip":%q,"single_overlay_ip":%v}`, underlay, single))
	var l api.SilkLease
	if status != http.StatusOK || json.Unmarshal([]byte(text), &l) != nil {
		r.t.Fatalf("acquire of %s: %d %s", underlay, status, text)
	}
	return l
}

// alert connects and listens: with TLS 1.3 a refusal comes with the first read. A
// request under way could hide it.
func alert(t *testing.T, cred *ca.Credential, server *ca.Authority, url string) error {
	t.Helper()
	pair, err := cred.TLS()
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{
		RootCAs:              server.Pool(),
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil },
	})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1))
	return err
}

func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// TestSilkDaemonLife is what a silk-daemon sends, in its order: acquire at its
// start, then renew and list at every poll; renew with what its device shows
// after a restart; release at its teardown.
func TestSilkDaemonLife(t *testing.T) {
	r := newLegacyRig(t)
	one, two := r.daemon("127.0.0.11"), r.daemon("127.0.0.12")
	r.want("no lease yet", one, "GET", r.silk+"/leases", "", 200, `{"leases":[]}`)
	l := r.acquired(one, "127.0.0.11", false)
	subnet, err := netip.ParsePrefix(l.OverlaySubnet)
	r.must(err)
	if l.UnderlayIP != "127.0.0.11" || subnet.Bits() != 24 || l.OverlayHardwareAddr != lease.Hardware(subnet) {
		t.Errorf("lease %+v", l)
	}
	if again := r.acquired(one, "127.0.0.11", true); again != l {
		t.Errorf("acquired again, as a single address: %+v, want the %+v it holds", again, l)
	}
	m := r.acquired(two, "127.0.0.12", true)
	if !strings.HasPrefix(m.OverlaySubnet, "10.255.0.") || !strings.HasSuffix(m.OverlaySubnet, "/32") {
		t.Errorf("single-IP lease %+v", m)
	}
	for range 2 { // two polls
		r.want("renew", one, "PUT", r.silk+"/leases/renew", text(l), 200, `{}`)
		r.want("list", one, "GET", r.silk+"/leases", "", 200, text(api.SilkLeases{Leases: []api.SilkLease{l, m}}))
	}
	other := l
	other.OverlaySubnet = "10.255.0.9/24" // what the single-IP host reads off its device
	r.want("renew of another", one, "PUT", r.silk+"/leases/renew", text(other), 409, `{"error": "renew-subnet-lease: lease mismatch"}`)
	r.want("release", one, "PUT", r.silk+"/leases/release", `{"underlay_ip":"127.0.0.11"}`, 200, `{}`)
	r.want("release again", one, "PUT", r.silk+"/leases/release", `{"underlay_ip":"127.0.0.11"}`, 200, `{}`)
	r.want("list", two, "GET", r.silk+"/leases", "", 200, text(api.SilkLeases{Leases: []api.SilkLease{m}}))
	// A daemon that held on to its lease brings it back.
	r.want("renew of what the server forgot", one, "PUT", r.silk+"/leases/renew", text(l), 200, `{}`)
	r.want("list", one, "GET", r.silk+"/leases", "", 200, text(api.SilkLeases{Leases: []api.SilkLease{l, m}}))
}

func TestLeaseAPIRefusals(t *testing.T) {
	r := newLegacyRig(t)
	c := r.daemon("127.0.0.11")
	const foreign = `{"error": "the connection comes from 127.0.0.11 and may lease for that address alone, not for 127.0.0.12"}`
	for _, tt := range []struct {
		name, method, path, body string
		status                   int
		want                     string
	}{
		{"acquire, no JSON", "PUT", "acquire", `{`, 400, `{"error": "unmarshal-request: unexpected end of JSON input"}`},
		{"acquire, more behind it", "PUT", "acquire", `{}{}`, 400, `{"error": "unmarshal-request: invalid character '{' after top-level value"}`},
		{"acquire, quotes in the text", "PUT", "acquire", `{"underlay_ip":7}`, 400,
			`{"error": "unmarshal-request: json: cannot unmarshal number into Go struct field SilkAcquire.underlay_ip of type string"}`},
		{"acquire, no address", "PUT", "acquire", `{"underlay_ip":"abc"}`, 500, `{"error": "invalid ipv4 address: abc"}`},
		{"acquire, IPv6", "PUT", "acquire", `{"underlay_ip":"::1"}`, 500, `{"error": "invalid ipv4 address: ::1"}`},
		{"acquire for another host", "PUT", "acquire", `{"underlay_ip":"127.0.0.12"}`, 403, foreign},
		{"renew, no JSON", "PUT", "renew", `[]`, 400, `{"error": "unmarshal-request: json: cannot unmarshal array into Go value of type api.SilkLease"}`},
		{"renew, no address", "PUT", "renew", `{"underlay_ip":"x"}`, 409, `{"error": "renew-subnet-lease: invalid ipv4 address: x"}`},
		{"renew, no subnet", "PUT", "renew", `{"underlay_ip":"127.0.0.11","overlay_subnet":"10.255.9.0"}`, 409,
			`{"error": "renew-subnet-lease: invalid CIDR address: 10.255.9.0"}`},
		{"renew, no hardware address", "PUT", "renew", `{"underlay_ip":"127.0.0.11","overlay_subnet":"10.255.9.0/24","overlay_hardware_addr":"x"}`, 409,
			`{"error": "renew-subnet-lease: invalid MAC address: x"}`},
		{"renew, another's hardware address", "PUT", "renew", text(api.SilkLease{UnderlayIP: "127.0.0.11", OverlaySubnet: "10.255.9.0/24", OverlayHardwareAddr: "ee:ee:0a:ff:08:00"}), 409,
			`{"error": "renew-subnet-lease: lease mismatch"}`},
		{"renew of what is no lease", "PUT", "renew", text(api.SilkLease{UnderlayIP: "127.0.0.11", OverlaySubnet: "10.9.9.0/24", OverlayHardwareAddr: "ee:ee:0a:09:09:00"}), 409,
			`{"error": "renew-subnet-lease: overlay subnet not in pool"}`},
		{"renew for another host", "PUT", "renew", text(api.SilkLease{UnderlayIP: "127.0.0.12", OverlaySubnet: "10.255.9.0/24", OverlayHardwareAddr: "ee:ee:0a:ff:09:00"}), 403, foreign},
		{"release, no JSON", "PUT", "release", ``, 400, `{"error": "unmarshal-request: unexpected end of JSON input"}`},
		{"release of nonsense", "PUT", "release", `{"underlay_ip":"banana"}`, 200, `{}`},
		{"release for another host", "PUT", "release", `{"underlay_ip":"127.0.0.12"}`, 403, foreign},
		{"too large", "PUT", "acquire", strings.Repeat(" ", 65<<10), 400, `{"error": "read-body: http: request body too large"}`},
		{"wrong method", "POST", "acquire", `{}`, 405, "Method Not Allowed\n"},
		{"unknown path", "GET", "nothing", "", 404, "404 page not found\n"},
	} {
		r.want(tt.name, c, tt.method, r.silk+"/leases/"+tt.path, tt.body, tt.status, tt.want)
	}
	r.want("nothing was leased", c, "GET", r.silk+"/leases", "", 200, `{"leases":[]}`)
}

func TestNoLeaseAvailable(t *testing.T) {
	r := newLegacyRig(t)
	for i := range 255 {
		_, err := r.store.AcquireSilk(t.Context(), netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), false)
		r.must(err)
	}
	r.want("a full pool", r.daemon("127.0.0.11"), "PUT", r.silk+"/leases/acquire", `{"underlay_ip":"127.0.0.11"}`, 409, `{"error": "no lease available"}`)
}

// A Tulle cell and a silk cell learn of each other: the one on its watch, the
// other in the list of leases.
func TestTulleAndSilkCellsMeet(t *testing.T) {
	r := newLegacyRig(t)
	cred, err := r.roots.Cells.IssueCell("cell-1", []ca.Space{ca.AnySpace}, 0)
	r.must(err)
	cell := r.client(cred, "127.0.0.1")
	status, answer := r.do(cell, "PUT", r.internal+cellPath+"cell-1/lease", text(leaseRequest))
	var own api.Lease
	if status != 200 || json.Unmarshal([]byte(answer), &own) != nil {
		t.Fatalf("lease: %d %s", status, answer)
	}
	watch, err := cell.Get(r.internal + api.PathWatch)
	r.must(err)
	defer watch.Body.Close()
	events := json.NewDecoder(watch.Body)
	var event api.Event
	r.must(events.Decode(&event))
	if event.Snapshot == nil || len(event.Snapshot.Peers) != 0 {
		t.Fatalf("first event %+v, want a snapshot without peers", event)
	}

	daemon := r.daemon("127.0.0.11")
	l := r.acquired(daemon, "127.0.0.11", false)
	r.want("leases", daemon, "GET", r.silk+"/leases", "", 200, text(api.SilkLeases{Leases: []api.SilkLease{
		{UnderlayIP: "192.0.2.1", OverlaySubnet: own.Subnet.String(), OverlayHardwareAddr: lease.Hardware(own.Subnet)}, l}}))
	delta := func() *api.Delta {
		for {
			event = api.Event{}
			r.must(events.Decode(&event))
			if d := event.Delta; d != nil && len(d.PeersSet)+len(d.PeersRemoved) > 0 { // not its own lease's
				return d
			}
		}
	}
	d := delta()
	want := api.Peer{Name: "silk:127.0.0.11", Kind: api.KindSilk, Mode: api.ModeVXLAN, Port: 4789, Generation: 1,
		Underlay: netip.MustParseAddr("127.0.0.11"), Subnet: netip.MustParsePrefix(l.OverlaySubnet)}
	if len(d.PeersSet) != 1 || d.PeersSet[0] != want || d.Revision != 2 {
		t.Errorf("the cell was told %+v, want %+v at revision 2", d, want)
	}
	r.want("release", daemon, "PUT", r.silk+"/leases/release", `{"underlay_ip":"127.0.0.11"}`, 200, `{}`)
	if d := delta(); len(d.PeersRemoved) != 1 || d.PeersRemoved[0] != want.Name {
		t.Errorf("the cell was told %+v, want the removal of %s", d, want.Name)
	}
	r.want("the cell's underlay", r.daemon("127.0.0.13"), "PUT", r.silk+"/leases/acquire", `{"underlay_ip":"192.0.2.1"}`, 403,
		`{"error": "the connection comes from 127.0.0.13 and may lease for that address alone, not for 192.0.2.1"}`)
}

// Each root opens its own door: a legacy certificate reads policies and asks for
// tags, and may do nothing that is a cell's; a cell's or an instance's does not
// get to the lease API.
func TestLegacyRootMayReadAlone(t *testing.T) {
	r := newLegacyRig(t)
	agent := r.daemon("127.0.0.11")
	// The names in a certificate of the legacy root mean nothing.
	for _, path := range []struct{ method, path string }{
		{"PUT", cellPath + "silk-daemon/lease"}, {"DELETE", cellPath + "silk-daemon/lease"},
		{"PUT", cellPath + "silk-daemon/endpoints"}, {"POST", cellPath + "silk-daemon/ack"}, {"GET", api.PathWatch},
	} {
		r.want(path.method+" "+path.path, agent, path.method, r.internal+path.path, text(leaseRequest), 403,
			`{"error": "a certificate of the legacy root may only read policies and security groups, and ask for tags"}`)
	}
	status, _ := r.do(agent, "GET", r.internal+"/networking/v1/internal/policies", "")
	if status != 200 {
		t.Errorf("policies: status %d", status)
	}
	cell, err := r.roots.Cells.IssueCell("cell-1", []ca.Space{ca.AnySpace}, 0)
	r.must(err)
	instance, err := r.roots.Instances.IssueInstance("web", "0", 0)
	r.must(err)
	expired, err := r.legacy.IssueLegacy("late", -1)
	r.must(err)
	for name, cred := range map[string]*ca.Credential{"a cell": cell, "an instance": instance, "an expired agent": expired} {
		if err := alert(t, cred, r.roots.Server, r.silk); err == nil || !strings.Contains(err.Error(), "tls: ") {
			t.Errorf("%s at the lease API: %v, want a TLS alert", name, err)
		}
	}
}

// A root brought from elsewhere may have signed a certificate that names a cell;
// it is a legacy client's all the same.
func TestACellsNameUnderTheLegacyRootIsNoCell(t *testing.T) {
	r := newLegacyRig(t)
	cred, err := r.legacy.IssueLegacy("cell-1", 0)
	r.must(err)
	status, text := r.do(r.client(cred, "127.0.0.1"), "PUT", r.internal+cellPath+"cell-1/lease", text(leaseRequest))
	if status != 403 {
		t.Errorf("a lease for a name of the legacy root: %d %s", status, text)
	}
	cells, err := r.store.Cells(t.Context())
	if err != nil || len(cells) != 0 {
		t.Errorf("stored: %+v, %v", cells, err)
	}
}

// Without a legacy root its certificates end in a TLS alert.
func TestLegacyIsOffByDefault(t *testing.T) {
	r := newCellsRig(t)
	legacy, err := ca.CreateLegacy(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cred, err := legacy.IssueLegacy("agent", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := alert(t, cred, r.roots.Server, r.url); err == nil || !strings.Contains(err.Error(), "tls: ") {
		t.Errorf("at the internal API: %v, want a TLS alert", err)
	}
	w := start(t)
	if got := w.server.Addresses().Legacy; got != "" {
		t.Errorf("the lease API is served at %s", got)
	}
}

// TestRequestsOfAgentsHaveIDs: an answer names its request, as the external API's
// does, whether it went well or not.
func TestRequestsOfAgentsHaveIDs(t *testing.T) {
	r := newLegacyRig(t)
	agent := r.daemon("127.0.0.11")
	for _, url := range []string{
		r.internal + "/networking/v1/internal/policies", r.internal + "/networking/v1/internal/security_groups?limit=x",
		r.silk + "/leases",
	} {
		for came, want := range map[string]string{"": `^[0-9a-f-]{36}$`, "came": `^came::[0-9a-f-]{36}$`} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
			r.must(err)
			if came != "" {
				req.Header.Set("X-VCAP-Request-ID", came)
			}
			got, err := agent.Do(req)
			r.must(err)
			got.Body.Close()
			if id := got.Header.Get("X-VCAP-Request-ID"); !regexp.MustCompile(want).MatchString(id) {
				t.Errorf("GET %s with the id %q: answered with %q", url, came, id)
			}
		}
	}
}

// TestBootstrapAsksForItsTag is the silk-daemon's bootstrap on a host with a
// single address: its client sends keys of Go's own spelling.
func TestBootstrapAsksForItsTag(t *testing.T) {
	r := newLegacyRig(t)
	agent := r.daemon("127.0.0.11")
	tags := r.internal + "/networking/v1/internal/tags"
	w := r.world
	w.expect("create", w.call("POST", policies, w.admin, body("web db tcp 80 80")), 200, "{}")
	for range 2 {
		r.want("the router's tag", agent, "PUT", tags, `{"ID":"INGRESS_ROUTER","Type":"router"}`, 200,
			`{"id":"INGRESS_ROUTER","tag":"0003","type":"router"}`)
	}
	r.want("an app's tag", agent, "PUT", tags, `{"id":"db","type":"app"}`, 200, `{"id":"db","tag":"0002","type":"app"}`)
	r.want("another type", agent, "PUT", tags, `{"id":"INGRESS_ROUTER","type":"app"}`, 500, `{"error": "database create failed"}`)
	r.want("no JSON", agent, "PUT", tags, `{`, 400, `{"error": "failed parsing request body"}`)
	r.want("too large", agent, "PUT", tags, strings.Repeat(" ", 65<<10), 400, `{"error": "failed reading request body"}`)
	w.expect("external tags", w.call("GET", "/networking/v1/external/tags", w.admin, ""), 200,
		`{"tags":[{"id":"web","tag":"0001","type":"app"},{"id":"db","tag":"0002","type":"app"},{"id":"INGRESS_ROUTER","tag":"0003","type":"router"}]}`)
	// The version counts on this path alone.
	if status, _ := r.do(agent, "PUT", r.internal+"/networking/v2/internal/tags", `{"id":"x","type":"y"}`); status != 404 {
		t.Errorf("version v2: status %d, want 404", status)
	}
	for spaces, status := range map[ca.Space]int{ca.AnySpace: 200, {Org: "acme", Space: "prod"}: 403} {
		cred, err := r.roots.Cells.IssueCell("cell-1", []ca.Space{spaces}, 0)
		r.must(err)
		if got, text := r.do(r.client(cred, "127.0.0.1"), "PUT", tags, `{"id":"INGRESS_ROUTER","type":"router"}`); got != status {
			t.Errorf("a cell for %s: %d %s, want %d", spaces, got, text, status)
		}
	}
}
