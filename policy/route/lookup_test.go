package route

import (
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"tulle/policy"
)

type directory map[policy.Hostname][]netip.Addr

func (d directory) Addresses(name policy.Hostname) []netip.Addr { return d[name] }

func (d directory) Names() (names []policy.Hostname) {
	for n := range d {
		names = append(names, n)
	}
	return names
}

func TestLookup(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	d := directory{
		"web.apps.internal": {netip.MustParseAddr("10.255.77.2"), netip.MustParseAddr("10.255.80.9")},
		"idle.example.com":  nil,
	}
	h := Lookup(d, now.Add(time.Minute), func() time.Time { return now })
	get := func(method, path string, status int, want string) {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		if w.Code != status || w.Body.String() != want {
			t.Errorf("%s %s: %d %s\nwant %d %s", method, path, w.Code, w.Body, status, want)
		}
	}
	const all = `{"addresses":[{"hostname":"idle.example.com.","ips":[]},{"hostname":"web.apps.internal.","ips":["10.255.77.2","10.255.80.9"]}]}`
	const none = `{"hosts":[],"env":"","service":""}`
	const web = `{"hosts":[` +
		`{"ip_address":"10.255.77.2","last_check_in":"","port":0,"revision":"","service":"","service_repo_name":"","tags":{}},` +
		`{"ip_address":"10.255.80.9","last_check_in":"","port":0,"revision":"","service":"","service_repo_name":"","tags":{}}],"env":"","service":""}`
	get("GET", "/v1/registration/web.apps.internal", 500, "address table is not warm\n")
	get("GET", "/routes", 200, all)
	now = now.Add(time.Minute)
	get("GET", "/v1/registration/web.apps.internal", 200, web)
	get("POST", "/v1/registration/WEB.apps.internal.", 200, web)
	get("GET", "/v1/registration/idle.example.com", 200, none)
	get("GET", "/v1/registration/no.apps.internal", 200, none)
	get("GET", "/v1/registration/a..b", 200, none)
	get("GET", "/routes", 200, all)
	get("GET", "/v1", 404, "404 page not found\n")
}
