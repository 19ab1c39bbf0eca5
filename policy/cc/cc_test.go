package cc_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tulle/policy"
	"tulle/policy/auth/uaa"
	"tulle/policy/auth/uaa/uaatest"
	"tulle/policy/cc"
	"tulle/policy/cc/cctest"
)

// rig is a foundation and a client of its Cloud Controller.
type rig struct {
	uaa    *uaatest.UAA
	cc     *cctest.CC
	client *cc.Client
}

func start(t *testing.T) *rig { return startIn(t, 20*time.Second) }

// startIn is start with a limit to each request.
func startIn(t *testing.T, limit time.Duration) *rig {
	u := uaatest.New(t)
	r := &rig{uaa: u, cc: cctest.New(t, u)}
	tokens := uaa.New(uaa.Options{URL: u.URL, ID: uaatest.ClientID, Secret: uaatest.ClientSecret, HTTP: u.HTTP(), Timeout: limit})
	r.client = cc.New(cc.Options{URL: r.cc.URL + "/", Tokens: tokens, HTTP: r.cc.HTTP(), Timeout: limit})
	return r
}

func TestApps(t *testing.T) {
	r := start(t)
	r.cc.App("a", "web", "blue")
	r.cc.App("b", "db", "green")
	r.cc.App("c", "other", "green")
	got, err := r.client.Apps(t.Context(), []policy.AppID{"b", "gone", "a", "b", "", "a,c", "with space", policy.AppID(strings.Repeat("x", 300))})
	if diff := cmp.Diff(map[policy.AppID]string{"a": "blue", "b": "green"}, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if diff := cmp.Diff([]string{"GET /v3/apps?guids=b%2Cgone%2Ca&per_page=3"}, r.cc.Requests()); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	r.cc.Reset()
	if got, err := r.client.Apps(t.Context(), []policy.AppID{""}); err != nil || len(got) != 0 || len(r.cc.Requests()) != 0 {
		t.Errorf("nothing to ask for: %v, %v, %q", got, err, r.cc.Requests())
	}
}

// TestAppsInChunks: a hundred a request, fewer where guids are long, each once.
func TestAppsInChunks(t *testing.T) {
	r := start(t)
	var ids []policy.AppID
	for i := range 250 {
		ids = append(ids, policy.AppID(fmt.Sprintf("app-%03d", i)))
		r.cc.App(string(ids[i]), "x", fmt.Sprint("space-", i%7))
	}
	got, err := r.client.Apps(t.Context(), append(slices.Clone(ids), ids...))
	if err != nil || len(got) != 250 || got["app-249"] != "space-4" {
		t.Errorf("%d apps, %v", len(got), err)
	}
	var sizes []string
	for _, request := range r.cc.Requests() {
		sizes = append(sizes, request[strings.LastIndex(request, "per_page="):])
	}
	if diff := cmp.Diff([]string{"per_page=100", "per_page=100", "per_page=50"}, sizes); diff != "" {
		t.Errorf("chunks (-want +got):\n%s", diff)
	}
	r.cc.Reset()
	long := make([]policy.AppID, 100)
	for i := range long {
		long[i] = policy.AppID(fmt.Sprintf("%03d", i) + strings.Repeat("ü", 100))
	}
	if _, err := r.client.Apps(t.Context(), long); err != nil {
		t.Error(err)
	}
	for _, request := range r.cc.Requests() {
		if len(request) > 6200 {
			t.Errorf("an address of %d bytes", len(request))
		}
	}
}

// TestPagesAreFollowed, to the Cloud Controller that was configured, whatever
// name it gives itself.
func TestPagesAreFollowed(t *testing.T) {
	r := start(t)
	want := map[policy.AppID]string{}
	var ids []policy.AppID
	for i := range 7 {
		id := policy.AppID(fmt.Sprint("app-", i))
		ids = append(ids, id)
		want[id] = "space"
		r.cc.App(string(id), "x", "space")
	}
	r.cc.Pages(3, "https://api.example.invalid")
	got, err := r.client.Apps(t.Context(), ids)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if n := len(r.cc.Requests()); n != 3 {
		t.Errorf("%d requests, want 3", n)
	}
}

func TestDeveloperSpaces(t *testing.T) {
	r := start(t)
	r.cc.Role("space_developer", "alice", "blue")
	r.cc.Role("space_developer", "alice", "green")
	r.cc.Role("space_auditor", "alice", "red")
	r.cc.Role("space_manager", "alice", "red")
	r.cc.Role("space_developer", "bob", "red")
	for _, c := range []struct {
		user string
		of   []string
		want map[string]bool
	}{
		{"alice", nil, map[string]bool{"blue": true, "green": true}},
		{"alice", []string{"blue", "red"}, map[string]bool{"blue": true}},
		{"alice", []string{"red"}, map[string]bool{}},
		{"alice", []string{}, map[string]bool{}},
		{"bob", nil, map[string]bool{"red": true}},
		{"nobody", nil, map[string]bool{}},
		{"", nil, map[string]bool{}},
		{"alice,bob", nil, map[string]bool{}},
	} {
		got, err := r.client.DeveloperSpaces(t.Context(), c.user, c.of)
		if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
			t.Errorf("%q of %q: %v (-want +got):\n%s", c.user, c.of, err, diff)
		}
	}
	want := []string{
		"GET /v3/roles?per_page=5000&types=space_developer&user_guids=alice",
		"GET /v3/roles?per_page=2&space_guids=blue%2Cred&types=space_developer&user_guids=alice",
	}
	if diff := cmp.Diff(want, r.cc.Requests()[:2]); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

// TestARefusedTokenIsReplaced, once a request.
func TestARefusedTokenIsReplaced(t *testing.T) {
	r := start(t)
	r.cc.App("a", "web", "blue")
	ask := func() error { _, err := r.client.Apps(t.Context(), []policy.AppID{"a"}); return err }
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	r.uaa.Sign(1, 1) // no token of the old key is good any more
	if err := ask(); err != nil {
		t.Errorf("with a token that is no good any more: %v", err)
	}
	if n := len(r.uaa.Requests("/oauth/token")); n != 2 {
		t.Errorf("%d tokens, want 2", n)
	}
	r.uaa.Sign(1, 2) // and now not even a new one is
	if err := ask(); err == nil || !strings.Contains(err.Error(), "/v3/apps with 401") {
		t.Errorf("refused for ever: %v", err)
	}
}

// TestOutages: neither server may be missing, and neither missing one is an
// answer.
func TestOutages(t *testing.T) {
	for name, mood := range map[string]uaatest.Mood{"failing": uaatest.Failing, "garbage": uaatest.Garbage, "slow": uaatest.Slow, "down": uaatest.Down, "halfway": uaatest.Halfway} {
		for of, temper := range map[string]func(*rig) *uaatest.Temper{
			"cloud controller": func(r *rig) *uaatest.Temper { return &r.cc.Temper },
			"uaa":              func(r *rig) *uaatest.Temper { return &r.uaa.Temper },
		} {
			t.Run(of+" "+name, func(t *testing.T) {
				r := startIn(t, time.Second)
				r.cc.App("a", "web", "blue")
				temper(r).Be(mood)
				begun := time.Now()
				if apps, err := r.client.Apps(t.Context(), []policy.AppID{"a"}); err == nil {
					t.Errorf("apps %v", apps)
				}
				if spaces, err := r.client.DeveloperSpaces(t.Context(), "alice", nil); err == nil {
					t.Errorf("spaces %v", spaces)
				}
				if took := time.Since(begun); took > 15*time.Second {
					t.Errorf("took %v", took)
				}
				temper(r).Release()
				if apps, err := r.client.Apps(t.Context(), []policy.AppID{"a"}); err != nil || len(apps) != 1 {
					t.Errorf("afterwards: %v, %v", apps, err)
				}
			})
		}
	}
}

// TestAnswersThatAreNotWhatWasAsked are errors.
func TestAnswersThatAreNotWhatWasAsked(t *testing.T) {
	r := start(t)
	r.cc.App("a", "web", "blue")
	r.cc.Role("space_developer", "alice", "blue")
	resource := func(page map[string]any) map[string]any { return page["resources"].([]map[string]any)[0] }
	related := func(page map[string]any, name, guid string) {
		resource(page)["relationships"].(map[string]any)[name] = map[string]any{"data": map[string]any{"guid": guid}}
	}
	for name, spoil := range map[string]func(page map[string]any){
		"no resources":        func(p map[string]any) { delete(p, "resources") },
		"resources are null":  func(p map[string]any) { p["resources"] = nil },
		"no pagination":       func(p map[string]any) { delete(p, "pagination") },
		"a resource is null":  func(p map[string]any) { p["resources"] = []any{nil} },
		"in no space":         func(p map[string]any) { delete(resource(p), "relationships"); delete(resource(p), "links") },
		"another kind":        func(p map[string]any) { resource(p)["type"] = "space_auditor"; resource(p)["guid"] = "" },
		"another user":        func(p map[string]any) { related(p, "user", "bob"); resource(p)["guid"] = "" },
		"followed by itself":  next("https://x/v3/roles?page=2"),
		"followed by no page": next("https://x/v3/roles"),
		"followed by no URL":  next("https://x/%zz?page=2"),
		"followed by nothing": next("https://x/v3/roles?page=2&%zz"),
	} {
		r.cc.Change(func(_ string, page map[string]any) { spoil(page) })
		if apps, err := r.client.Apps(t.Context(), []policy.AppID{"a"}); err == nil {
			t.Errorf("%s: apps %v", name, apps)
		}
		if spaces, err := r.client.DeveloperSpaces(t.Context(), "alice", nil); err == nil {
			t.Errorf("%s: spaces %v", name, spaces)
		}
	}
	r.cc.Change(func(kind string, page map[string]any) {
		if kind == "roles" {
			related(page, "space", "red")
		}
	})
	if spaces, err := r.client.DeveloperSpaces(t.Context(), "alice", []string{"blue"}); err == nil {
		t.Errorf("a role in a space that was not asked for: %v", spaces)
	}
	r.cc.Change(func(_ string, page map[string]any) { delete(resource(page), "relationships") })
	if apps, err := r.client.Apps(t.Context(), []policy.AppID{"a"}); err != nil || apps["a"] != "blue" {
		t.Errorf("the space as a link alone: %v, %v", apps, err)
	}
}

func next(href string) func(map[string]any) {
	return func(p map[string]any) {
		p["pagination"].(map[string]any)["next"] = map[string]any{"href": href}
	}
}

func TestSeesAll(t *testing.T) {
	for scopes, want := range map[string]bool{
		"uaa.resource cloud_controller.admin_read_only": true,
		"cloud_controller.admin":                        true,
		"cloud_controller.global_auditor uaa.resource":  true,
		"":                                      true, // nobody said
		"uaa.resource":                          false,
		"uaa.resource cloud_controller.read":    false,
		"cloud_controller.admin_read_only_else": false,
	} {
		r := start(t)
		r.uaa.GiveOwn(time.Hour, scopes)
		if err := r.client.SeesAll(t.Context()); (err == nil) != want {
			t.Errorf("%q: %v", scopes, err)
		}
	}
}
