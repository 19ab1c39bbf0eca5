package server_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tulle/policy"
)

const groups = "/v1/security-groups"

func TestSecurityGroupsAreManaged(t *testing.T) {
	w := start(t)
	w.expect("none", w.call("GET", groups, w.admin, ""), 200, `{"security_groups":[]}`)
	const put = `{"name":"db-net","rules":[{"protocol":"tcp","destination":"10.20.0.0/24","ports":"5432,6000-6010"},` +
		`{"protocol":"icmp","destination":"0.0.0.0/0","type":-1,"code":0,"log":true,"description":"ping"}],` +
		`"running_default":true,"staging_space_guids":["s1"]}`
	const stored = `{"guid":"g1","name":"db-net","rules":[` +
		`{"protocol":"tcp","destination":"10.20.0.0/24","ports":"5432,6000-6010","type":0,"code":0,"description":"","log":false},` +
		`{"protocol":"icmp","destination":"0.0.0.0/0","ports":"","type":-1,"code":0,"description":"ping","log":true}],` +
		`"staging_default":false,"running_default":true,"staging_space_guids":["s1"],"running_space_guids":[]}`
	w.expect("put", w.call("PUT", groups+"/g1", w.admin, put), 200, stored)
	got := w.call("GET", groups+"/g1", w.admin, "")
	w.expect("get", got, 200, stored)
	if kind := got.header.Get("Content-Type"); kind != "application/json" {
		t.Errorf("Content-Type %q", kind)
	}
	w.expect("what was got can be put", w.call("PUT", groups+"/g1", w.admin, stored), 200, stored)
	w.expect("list", w.call("GET", groups, w.admin, ""), 200, `{"security_groups":[`+stored+`]}`)
	w.expect("delete", w.call("DELETE", groups+"/g1", w.admin, ""), 204, "")
	for _, method := range []string{"GET", "DELETE"} {
		if got := w.call(method, groups+"/g1", w.admin, ""); got.Status != 404 || !strings.Contains(got.Body, `no security group \"g1\"`) {
			t.Errorf("%s of what is gone: %d %s", method, got.Status, got.Body)
		}
	}
	for _, c := range []struct{ method, path string }{{"GET", ""}, {"GET", "/g1"}, {"PUT", "/g1"}, {"DELETE", "/g1"}} {
		w.expect(c.method+" as no admin", w.call(c.method, groups+c.path, w.write, put), 403,
			`{"error": "provided scopes [network.write] do not include allowed scopes [network.admin]"}`)
		w.expect(c.method+" as nobody", w.call(c.method, groups+c.path, "", put), 401, `{"error": "missing authorization header"}`)
	}
}

func TestSecurityGroupRefusalsNameTheFault(t *testing.T) {
	w := start(t)
	const good = `{"protocol":"all","destination":"10.0.0.1"}`
	for _, tt := range []struct{ name, body, want string }{
		{"no JSON", `{`, "security group: unexpected EOF"},
		{"more behind it", `{"name":"a"}{}`, "security group: something follows the JSON value"},
		{"an unknown key", `{"name":"a","colour":1}`, `security group: json: unknown field "colour"`},
		{"an unknown key of a rule", `{"name":"a","rules":[{"proto":"tcp"}]}`, `security group: json: unknown field "proto"`},
		{"another guid", `{"name":"a","guid":"g2"}`, `guid "g2": is not the path's "g1"`},
		{"no name", `{}`, `name "": is empty or no text`},
		{"a name that is no text", `{"name":"a\u0000"}`, `name "a\x00": is empty or no text`},
		{"an empty space", `{"name":"a","running_space_guids":["s",""]}`, `running_space_guids[1]: "" is empty or no text`},
		{"an empty staging space", `{"name":"a","staging_space_guids":[""]}`, `staging_space_guids[0]: "" is empty or no text`},
		{"one bad rule of three", `{"name":"a","rules":[` + good + `,{"protocol":"udp","destination":"10.0.0.300","ports":"53"},` + good + `]}`,
			`rules[1]: destination "10.0.0.300": "10.0.0.300" is not an IPv4 or IPv6 address, a CIDR or a range, without blanks, zones and IPv4 mapped into IPv6`},
		{"icmp without a code", `{"name":"a","rules":[{"protocol":"icmp","destination":"10.0.0.1","type":8}]}`,
			"rules[0]: code: is missing, and protocol icmp needs it (-1 is any)"},
	} {
		got := w.call("PUT", groups+"/g1", w.admin, tt.body)
		var answer struct{ Error string }
		if err := json.Unmarshal([]byte(got.Body), &answer); err != nil || got.Status != 400 || answer.Error != tt.want {
			t.Errorf("%s: %d %s\nwant 400 %q", tt.name, got.Status, got.Body, tt.want)
		}
	}
	if got := w.call("PUT", groups+"/%ff", w.admin, `{"name":"a"}`); got.Status != 400 || !strings.Contains(got.Body, "is empty or no text") {
		t.Errorf("a path that is no text: %d %s", got.Status, got.Body)
	}
	w.expect("nothing was stored", w.call("GET", groups, w.admin, ""), 200, `{"security_groups":[]}`)
}

// polled is what the agent's client decodes: it unquotes the rules as a Go
// string literal.
type polled struct {
	Next   int `json:"next"`
	Groups []struct {
		GUID, Name    string
		Rules         json.RawMessage
		RunningSpaces []string `json:"running_space_guids"`
	} `json:"security_groups"`
}

// TestAgentPollsSecurityGroups is what the vxlan-policy-agent asks at each poll.
func TestAgentPollsSecurityGroups(t *testing.T) {
	r := newLegacyRig(t)
	agent := r.daemon("127.0.0.11")
	const path = "/networking/v1/internal/security_groups"
	r.want("none", agent, "GET", r.internal+path, "", 200, `{"next":0,"security_groups":[]}`)
	r.want("never updated", agent, "GET", r.internal+path+"_last_updated", "", 200, "0")
	rules := []policy.SecurityRule{{Protocol: "tcp", Destination: "10.20.0.0/24", Ports: "5432",
		Description: "a \"quoted\" </tag> & \\ \t 😀 \u2028 \u0001"}}
	var want []string
	for i := range 5 {
		g := policy.SecurityGroup{GUID: fmt.Sprint("g", i), Name: fmt.Sprint("n", i), Rules: rules, RunningSpaces: []string{"s1"}}
		r.must(r.store.PutSecurityGroup(t.Context(), g))
		want = append(want, g.GUID)
	}
	r.must(r.store.PutSecurityGroup(t.Context(), policy.SecurityGroup{GUID: "other", Name: "other", RunningSpaces: []string{"s2"}}))

	for _, size := range []string{"", "&per_page=5000", "&limit=2", "&per_page=2", "&limit=2&per_page=5000", "&limit=-1"} {
		var got []string
		for from, asked := 0, 0; from != 0 || asked == 0; asked++ {
			status, body := r.do(agent, "GET", fmt.Sprintf("%s%s?space_guids=s1,s9&from=%d%s", r.internal, path, from, size), "")
			var page polled
			if err := json.Unmarshal([]byte(body), &page); status != 200 || err != nil {
				t.Fatalf("%d %v %s", status, err, body)
			}
			for _, g := range page.Groups {
				got = append(got, g.GUID)
				text, err := strconv.Unquote(string(g.Rules))
				var back []policy.SecurityRule
				if err != nil || json.Unmarshal([]byte(text), &back) != nil {
					t.Fatalf("the agent cannot read %s: %v", g.Rules, err)
				}
				if diff := cmp.Diff(rules, back); diff != "" {
					t.Errorf("rules (-want +got):\n%s", diff)
				}
			}
			if strings.Contains(size, "2") && len(page.Groups) > 2 {
				t.Errorf("%s: a page of %d", size, len(page.Groups))
			}
			from = page.Next
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", size, diff)
		}
	}
	r.want("without rules and of another version", agent, "GET", r.internal+"/networking/banana/internal/security_groups?space_guids=s2", "", 200,
		`{"next":0,"security_groups":[{"guid":"other","name":"other","rules":"[]","staging_default":false,"running_default":false,`+
			`"staging_space_guids":[],"running_space_guids":["s2"]}]}`)
	for _, name := range []string{"from", "limit", "per_page"} {
		r.want("bad "+name, agent, "GET", r.internal+path+"?"+name+"=x", "", 500, `{"error": "invalid value for '`+name+`' parameter"}`)
	}
	at, err := r.store.SecurityGroupsUpdated(t.Context())
	r.must(err)
	r.want("updated", agent, "GET", r.internal+path+"_last_updated", "", 200, strconv.FormatInt(at.UnixNano(), 10))
	if status, _ := r.do(agent, "PUT", r.internal+path, "{}"); status != http.StatusMethodNotAllowed {
		t.Errorf("PUT: status %d", status)
	}
}

// TestAgentPolls is the rest of a poll: the time of the last change, and the
// policies when it moved, asked for by app and space GUIDs mixed.
func TestAgentPolls(t *testing.T) {
	r := newLegacyRig(t)
	agent := r.daemon("127.0.0.11")
	r.want("at its start", agent, "GET", r.internal+"/networking/v1/internal/policies", "", 200, `{"total_policies":0,"policies":[]}`)
	updated := func() int64 {
		t.Helper()
		status, text := r.do(agent, "GET", r.internal+"/networking/v1/internal/policies_last_updated", "")
		n, err := strconv.ParseInt(text, 10, 64)
		if status != 200 || err != nil {
			t.Fatalf("last updated: %d %q", status, text)
		}
		return n
	}
	before := updated()
	r.expect("create", r.call("POST", policies, r.admin, body("web db tcp 7000 7010")), 200, "{}")
	if after := updated(); after <= before {
		t.Errorf("last updated %d after %d", after, before)
	}
	r.want("of its apps and spaces", agent, "GET", r.internal+"/networking/v1/internal/policies?id=db,some-space", "", 200,
		`{"total_policies":1,"policies":[{"source":{"id":"web","tag":"0001"},"destination":{"id":"db","tag":"0002","protocol":"tcp","ports":{"start":7000,"end":7010}}}]}`)
}
