package storetest

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// appTests: the registry by hand; what cells register is in endpointTests.
var appTests = map[string]func(*testing.T, Open){
	"an app is entered once": func(t *testing.T, open Open) {
		f := start(t, open)
		web, err := f.RegisterApp(t.Context(), api.AppRef{Name: "web", Space: "prod", Org: "acme"})
		f.must(err)
		again, err := f.RegisterApp(t.Context(), api.AppRef{Name: "web", Space: "prod", Org: "acme"})
		f.must(err)
		other, err := f.RegisterApp(t.Context(), api.AppRef{Name: "web", Space: "test", Org: "acme"})
		f.must(err)
		if web != again || web == other || web == "" {
			t.Errorf("web %s, again %s, in another space %s", web, again, other)
		}
		if _, err := f.RegisterApp(t.Context(), api.AppRef{Name: "web", Space: "prod", Org: "acme", GUID: other}); !errors.Is(err, store.ErrConflict) {
			t.Errorf("under another's GUID: %v", err)
		}
		if _, err := f.RegisterApp(t.Context(), api.AppRef{}); !errors.Is(err, store.ErrConflict) {
			t.Errorf("without a name: %v", err)
		}
		if got := f.state().Revision; got != 0 {
			t.Errorf("revision %d: cells were told of the registry", got)
		}
	},
	"an app that is used is not forgotten": func(t *testing.T, open Open) {
		f := start(t, open)
		for _, guid := range []policy.AppID{"free", "source", "destination", "named"} {
			_, err := f.RegisterApp(t.Context(), api.AppRef{Name: string(guid), GUID: guid})
			f.must(err)
		}
		f.add(allow("source", "destination", policy.TCP, 1))
		_, err := f.AddRoutes(t.Context(), []policy.Route{{Name: "named.apps.internal", App: "named"}}, nil)
		f.must(err)
		for guid, want := range map[policy.AppID]string{"source": "1 policies", "destination": "1 policies", "named": "1 routes"} {
			if err := f.RemoveApp(t.Context(), guid); !errors.Is(err, store.ErrConflict) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v; want a conflict that says %q", guid, err, want)
			}
		}
		f.must(f.RemoveApp(t.Context(), "free"))
		for _, guid := range []policy.AppID{"free", "never", "a\x00b"} {
			if err := f.RemoveApp(t.Context(), guid); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%q: %v, want %v", guid, err, store.ErrNotFound)
			}
		}
		apps, err := f.Apps(t.Context())
		f.must(err)
		for _, want := range apps {
			got, err := f.App(t.Context(), want.GUID)
			f.must(err)
			want.Instances = 0
			if got != want {
				t.Errorf("app %s is %+v, in the list %+v", want.GUID, got, want)
			}
		}
		if _, err := f.App(t.Context(), "free"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("an app that is gone: %v", err)
		}
		var left []policy.AppID
		for _, a := range apps {
			left = append(left, a.GUID)
		}
		if diff := cmp.Diff([]policy.AppID{"destination", "named", "source"}, left); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	},
}
