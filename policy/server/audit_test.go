package server_test

import (
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tulle/policy/api"
	"tulle/policy/server"
)

// A user, a cell and the admin socket change something: the record has each
// under its name, and where it came from.
func TestAuditNamesWhoAsked(t *testing.T) {
	w := start(t)
	w.expect("create", w.call("POST", policies, w.write, body("web db tcp 80 80"), "X-Forwarded-For: 203.0.113.5"), 200, "{}")
	ask[api.Changed](w, "POST", "/v1/policies", w.admin, body("db web udp 53 53"))
	w.expect("delete", w.call("POST", remove, w.admin, body("web db tcp 80 80")), 200, "{}")
	w.expect("refused", w.call("POST", policies, "nobody", body("web db tcp 80 80")), 401, `{"error": "failed to verify token with uaa"}`)
	w.cell("one", "web")
	w.must(server.NewAdminClient(w.server.Addresses().Admin).AddPeer(t.Context(), api.Peer{Name: "silk",
		Underlay: netip.MustParseAddr("192.0.2.7"), Subnet: freeSubnet(w)}))

	got := ask[api.Audit](w, "GET", "/v1/audit", w.admin, "")
	var lines []string
	for _, e := range got.Entries {
		lines = append(lines, fmt.Sprintf("%d %s@%s %s %s", e.ID, e.Who, e.From, e.Action, e.Subject))
	}
	want := []string{
		fmt.Sprintf("6 uid %d@admin socket peer.add silk", os.Getuid()),
		"5 cell one@127.0.0.1 app.register web",
		"4 cell one@127.0.0.1 lease.grant one",
		"3 alice@127.0.0.1 policy.delete web -> db tcp 80",
		"2 alice@127.0.0.1 policy.create db -> web udp 53",
		"1 bob@127.0.0.1 policy.create web -> db tcp 80",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("the record (-want +got):\n%s", diff)
	}
	if e := got.Entries[3]; string(e.After) != "null" || string(e.Before) != `{"source":{"id":"web"},"destination":{"id":"db","protocol":"tcp","ports":{"start":80,"end":80}}}` {
		t.Errorf("the deletion: before %s, after %s", e.Before, e.After)
	}

	first := ask[api.Audit](w, "GET", "/v1/audit?limit=4", w.admin, "")
	if len(first.Entries) != 4 || first.Next != 3 {
		t.Errorf("a page of four: %d entries, next %d", len(first.Entries), first.Next)
	}
	rest := ask[api.Audit](w, "GET", fmt.Sprintf("/v1/audit?limit=4&before=%d", first.Next), w.admin, "")
	if diff := cmp.Diff(got.Entries, append(first.Entries, rest.Entries...)); diff != "" || rest.Next != 0 {
		t.Errorf("in two pages, next %d (-whole +pages):\n%s", rest.Next, diff)
	}
	w.expect("before all", w.call("GET", "/v1/audit?before=1", w.admin, ""), 200, `{"entries":[]}`)
}

// freeSubnet is one that no cell has.
func freeSubnet(w *world) netip.Prefix {
	w.t.Helper()
	cells, err := w.store.Cells(w.t.Context())
	w.must(err)
	for n := byte(1); ; n++ {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 255, n, 0}), 24)
		taken := false
		for _, c := range cells {
			taken = taken || c.Subnet == p
		}
		if !taken {
			return p
		}
	}
}

func TestAuditRefusals(t *testing.T) {
	w := start(t)
	for _, c := range []struct {
		query, token string
		status       int
		text         string
	}{
		{"", "", 401, "missing authorization header"},
		{"", w.write, 403, "provided scopes [network.write] do not include allowed scopes [network.admin]"},
		{"?limit=0", w.admin, 400, `limit "0" is not a number from 1 to 1000`},
		{"?limit=1001", w.admin, 400, `limit "1001" is not a number from 1 to 1000`},
		{"?limit=x", w.admin, 400, `limit "x" is not a number from 1 to 1000`},
		{"?before=0", w.admin, 400, `before "0" is not an entry's id`},
		{"?before=-1", w.admin, 400, `before "-1" is not an entry's id`},
	} {
		w.expect(c.query, w.call("GET", "/v1/audit"+c.query, c.token, ""), c.status, string(api.ErrorBody(c.text)))
	}
}
