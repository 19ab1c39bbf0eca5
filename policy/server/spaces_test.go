package server_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/auth"
	"tulle/policy/hub"
	"tulle/policy/server"
)

// limited is a world with one more token, for apps of acme/prod.
func limited(t *testing.T, change ...func(*server.Options)) (w *world, token string) {
	t.Helper()
	w = start(t, append(change, func(o *server.Options) {
		path := filepath.Join(t.TempDir(), "tokens.yaml")
		var list []auth.Token
		for name, scope := range map[string]auth.Scope{"alice": auth.Admin, "bob": auth.Write} {
			_, entry := auth.NewToken(name, scope)
			list = append(list, entry)
		}
		var entry auth.Token
		token, entry = auth.NewToken("carol", auth.Write)
		entry.Spaces = []string{"acme/prod"}
		text, err := auth.EncodeTokens(append(list, entry))
		if err == nil {
			err = os.WriteFile(path, text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		tokens, err := auth.OpenTokens(path, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		o.Auth = both{o.Auth, tokens}
	})...)
	return w, token
}

// register enters an app and gives its GUID.
func (w *world) register(token, body string) string {
	w.t.Helper()
	got := w.call("POST", "/v1/apps", token, body)
	var r api.Registered
	if err := json.Unmarshal([]byte(got.Body), &r); got.Status != 200 || err != nil || r.GUID == "" {
		w.t.Fatalf("register %s: %d %s", body, got.Status, got.Body)
	}
	return string(r.GUID)
}

// TestTokenOfASpace is who may what with a token that is limited to a space.
func TestTokenOfASpace(t *testing.T) {
	w, carol := limited(t)
	const denied = `{"error": "one or more applications cannot be found or accessed"}`
	web := w.register(w.admin, `{"name":"web","space":"prod","org":"acme"}`)
	db := w.register(carol, `{"name":"db","space":"prod","org":"acme"}`)
	other := w.register(w.admin, `{"name":"web","space":"test","org":"acme"}`)
	if again := w.register(w.write, `{"name":"web","space":"prod","org":"acme"}`); again != web {
		t.Errorf("registered again: %s, was %s", again, web)
	}
	own, foreign, both := body(web+" "+db+" tcp 80 80"), body(other+" "+other+" tcp 80 80"), body(web+" "+other+" tcp 80 80")
	w.expect("between its apps", w.call("POST", policies, carol, own), 200, "{}")
	for what, c := range map[string]string{
		"another space": foreign, "both": both, "its own and another's": strings.TrimSuffix(own, "]}") + "," + strings.SplitAfterN(foreign, "[", 2)[1],
		"an app that nobody registered": body(web + " unknown tcp 80 80"),
	} {
		w.expect("create: "+what, w.call("POST", policies, carol, c), 403, denied)
		w.expect("delete: "+what, w.call("POST", remove, carol, c), 403, denied)
	}
	w.expect("the admin's", w.call("POST", policies, w.admin, both), 200, "{}")
	w.expect("an unlimited writer's", w.call("POST", policies, w.write, foreign), 200, "{}")
	var list api.Policies
	w.must(json.Unmarshal([]byte(w.call("GET", policies, carol, "").Body), &list))
	if list.Total != 1 || string(list.Policies[0].Destination.ID) != db {
		t.Errorf("its list: %+v", list)
	}
	var apps api.Apps
	w.must(json.Unmarshal([]byte(w.call("GET", "/v1/apps", carol, "").Body), &apps))
	var names []string
	for _, a := range apps.Apps {
		names = append(names, a.Org+"/"+a.Space+"/"+a.Name)
	}
	if diff := cmp.Diff([]string{"acme/prod/db", "acme/prod/web"}, names); diff != "" {
		t.Errorf("its apps (-want +got):\n%s", diff)
	}
	receipt := w.call("POST", "/v1/policies?wait=0s", carol, body(web+" "+web+" tcp 1 1"))
	receipt.Body = regexp.MustCompile(`"ms":\d+`).ReplaceAllString(receipt.Body, `"ms":0`)
	w.expect("a receipt", receipt, 200, `{"revision":4,"enforced":{"revision":4,"cells":"0/0","ms":0,"silent":[]}}`)
	w.expect("cells", w.call("GET", "/v1/cells", carol, ""), 403, `{"error": "a token that is limited to spaces may not see the cells"}`)
	w.expect("enforced", w.call("GET", "/v1/enforced", carol, ""), 403, `{"error": "a token that is limited to spaces may not see the cells"}`)
	w.expect("tags", w.call("GET", "/networking/v1/external/tags", carol, ""), 403,
		`{"error": "provided scopes [network.write] do not include allowed scopes [network.admin]"}`)
	w.expect("register elsewhere", w.call("POST", "/v1/apps", carol, `{"name":"x","space":"test","org":"acme"}`), 403,
		`{"error": "the token is not for apps of acme/test"}`)
	w.expect("register nowhere", w.call("POST", "/v1/apps", carol, `{"name":"x"}`), 403, `{"error": "the token is not for apps of default/default"}`)
	w.expect("claim a GUID", w.call("POST", "/v1/apps", carol, `{"name":"x","space":"prod","org":"acme","guid":"unknown"}`), 403,
		`{"error": "a token that is limited to spaces may not choose a GUID"}`)
}

// TestReceiptsNameNoCellsToSpaces: who may not see the cells is told how many there
// are to wait for, and not which.
func TestReceiptsNameNoCellsToSpaces(t *testing.T) {
	w, carol := limited(t, func(o *server.Options) { o.InternalOptions.Hub = hub.Options{SilentAfter: 2 * time.Second} })
	web := w.register(w.admin, `{"name":"web","space":"prod","org":"acme"}`)
	one, two := w.cell("one", policy.AppID(web)), w.cell("two", policy.AppID(web))
	tokens := map[string]string{"one": w.write, "a cell": carol}
	one.hold()
	for name, token := range tokens {
		got := ask[api.Changed](w, "POST", "/v1/policies?wait=0s", token, body(web+" "+web+" tcp 1 1"))
		if e := got.Enforced; e == nil || !slices.Contains(e.Late, name) {
			t.Errorf("one that is late: %+v, want %s named", e, name)
		}
	}
	one.release()
	two.stop()
	tokens["two"] = w.write
	delete(tokens, "one")
	for name, token := range tokens {
		got := ask[api.Changed](w, "POST", "/v1/policies?wait=1m", token, body(web+" "+web+" tcp 2 2"))
		if e := got.Enforced; e == nil || !slices.ContainsFunc(e.Silent, func(c api.SilentCell) bool { return c.Cell == name }) {
			t.Errorf("one that is silent: %+v, want %s named", e, name)
		}
	}
}

// TestAppsAreRegisteredAndForgotten is the registry by hand.
func TestAppsAreRegisteredAndForgotten(t *testing.T) {
	w := start(t)
	web := w.register(w.admin, `{"name":"web"}`)
	w.expect("under a GUID", w.call("POST", "/v1/apps", w.admin, `{"name":"db","guid":"db-guid"}`), 200, `{"guid":"db-guid"}`)
	for body, want := range map[string]answer{
		`{`:                              {400, `{"error": "request body: unexpected end of JSON input"}`, nil},
		`{"space":"s"}`:                  {400, `{"error": "name is missing"}`, nil},
		`{"name":"db","guid":"other"}`:   {409, `{"error": "register app: conflict: app db in default/default is db-guid, not other"}`, nil},
		`{"name":"dc","guid":"db-guid"}`: {409, `{"error": "register app: conflict: app db-guid has another name or space than dc in default/default"}`, nil},
	} {
		w.expect(body, w.call("POST", "/v1/apps", w.admin, body), want.Status, want.Body)
	}
	w.expect("a policy", w.call("POST", policies, w.admin, body(web+" db-guid tcp 80 80")), 200, "{}")
	w.expect("with a policy", w.call("DELETE", "/v1/apps/db-guid", w.admin, ""), 409, `{"error": "remove app db-guid: conflict: app db-guid has 1 policies"}`)
	w.expect("without", w.call("POST", remove, w.admin, body(web+" db-guid tcp 80 80")), 200, "{}")
	w.expect("forget", w.call("DELETE", "/v1/apps/db-guid", w.admin, ""), 204, "")
	w.expect("again", w.call("DELETE", "/v1/apps/db-guid", w.admin, ""), 404, `{"error": "remove app db-guid: not found: no app \"db-guid\""}`)
	l, err := w.store.Lease(t.Context(), "cell-1", api.LeaseRequest{Underlay: netip.MustParseAddr("192.0.2.1"), Port: 4789, Mode: api.ModeVXLAN})
	w.must(err)
	_, err = w.store.SetEndpoints(t.Context(), "cell-1", api.EndpointsRequest{Generation: l.Generation, Sequence: 1,
		Endpoints: []api.EndpointRegistration{{Container: "k", Address: l.Subnet.Addr().Next(), App: api.AppRef{Name: "web"}, Incarnation: 1}}})
	w.must(err)
	w.expect("with a container, of the app that was entered by hand", w.call("DELETE", "/v1/apps/"+web, w.admin, ""), 409,
		`{"error": "remove app `+web+`: conflict: app `+web+` has 1 containers"}`)
	// A GUID is whatever text was entered, and a client escapes it.
	for _, guid := range []string{"team/web", "/", "..", "a b", "50%", "two\nlines"} {
		app, err := json.Marshal(api.AppRef{GUID: policy.AppID(guid), Name: "named"})
		w.must(err)
		if got := w.call("POST", "/v1/apps", w.admin, string(app)); got.Status != 200 {
			t.Errorf("register %q: %d %s", guid, got.Status, got.Body)
		}
		w.expect("forget "+guid, w.call("DELETE", "/v1/apps/"+url.PathEscape(guid), w.admin, ""), 204, "")
	}
	var audit api.Audit
	w.must(json.Unmarshal([]byte(w.call("GET", "/v1/audit?limit=1000", w.admin, "").Body), &audit))
	var did []string
	for _, e := range audit.Entries {
		if e.Subject == "db-guid" {
			did = append(did, string(e.Action)+" by "+e.Who)
		}
	}
	if diff := cmp.Diff([]string{"app.remove by alice", "app.register by alice"}, did); diff != "" {
		t.Errorf("audit (-want +got):\n%s", diff)
	}
}

// both asks two authenticators.
type both [2]auth.Authenticator

func (b both) Authenticate(ctx context.Context, token string) (auth.Identity, error) {
	if who, err := b[0].Authenticate(ctx, token); err == nil {
		return who, nil
	}
	return b[1].Authenticate(ctx, token)
}
