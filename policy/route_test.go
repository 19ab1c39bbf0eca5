package policy

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseHostname(t *testing.T) {
	for in, want := range map[string]Hostname{
		"web.apps.internal":        "web.apps.internal",
		"Web.Apps.INTERNAL.":       "web.apps.internal",
		"0.my_app-2.apps.internal": "0.my_app-2.apps.internal",
		"x":                        "x",
		strings.Repeat("a", 63):    Hostname(strings.Repeat("a", 63)),
	} {
		if got, err := ParseHostname(in); err != nil || got != want {
			t.Errorf("%q is read as %q, %v, want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"":                              "missing",
		".":                             "missing",
		"a..b":                          "nothing between",
		".a":                            "nothing between",
		"*.apps.internal":               "Wildcard hosts are not supported for internal domains.",
		"-a.b":                          "hyphen",
		"a-.b":                          "hyphen",
		"a b":                           "only letters",
		"a/b":                           "only letters",
		"ü.apps.internal":               "only letters",
		"a\x00":                         "only letters",
		strings.Repeat("a", 64):         "more than 63",
		strings.Repeat("a.", 120) + "b": "at most 240",
	} {
		if got, err := ParseHostname(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.50q is read as %q, %v, want an error with %q", in, got, err, want)
		}
	}
}

func TestParseDomain(t *testing.T) {
	for _, bad := range []string{"arpa", "in-addr.arpa", "10.in-addr.arpa", "IP6.ARPA.", "", "a b"} {
		if got, err := ParseDomain(bad); err == nil {
			t.Errorf("%q is read as the domain %q", bad, got)
		}
	}
	if got, err := ParseDomain("Apps.Internal."); err != nil || got != DefaultDomain {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestHostnameParts(t *testing.T) {
	for _, c := range []struct {
		name, domain Hostname
		want         bool
	}{
		{"web.apps.internal", "apps.internal", true},
		{"apps.internal", "apps.internal", true},
		{"0.web.apps.internal", "apps.internal", true},
		{"snapps.internal", "apps.internal", false},
		{"internal", "apps.internal", false},
	} {
		if got := c.name.In(c.domain); got != c.want {
			t.Errorf("%s in %s: %v, want %v", c.name, c.domain, got, c.want)
		}
	}
	for _, c := range []struct {
		in    Hostname
		index string
		name  Hostname
		ok    bool
	}{
		{"0.web.apps.internal", "0", "web.apps.internal", true},
		{"12.web.apps.internal", "12", "web.apps.internal", true},
		{"web.apps.internal", "", "", false},
		{"-1.apps.internal", "", "", false},
		{"+1.apps.internal", "", "", false},
		{"7", "", "", false},
	} {
		if index, name, ok := c.in.Instance(); index != c.index || name != c.name || ok != c.ok {
			t.Errorf("%s: instance %q of %q, %v", c.in, index, name, ok)
		}
	}
}

func TestRouteValidate(t *testing.T) {
	a := netip.MustParseAddr("10.255.1.2")
	for _, c := range []struct {
		route Route
		want  string
	}{
		{Route{Name: "web.apps.internal", App: "web"}, ""},
		{Route{Name: "web.apps.internal", Address: a}, ""},
		{Route{Name: "web", Address: a}, ""},
		{Route{Name: "web.apps.internal"}, "needs an app or an address"},
		{Route{Name: "web.apps.internal", App: "web", Address: a}, "and not both"},
		{Route{Name: "Web.apps.internal", App: "web"}, `is not written as "web.apps.internal"`},
		{Route{Name: "web", App: "web"}, "lies in no domain"},
		{Route{Name: "web.apps.internal", Address: netip.MustParseAddr("fe80::1%eth0")}, "zone"},
		{Route{App: "web"}, "missing"},
	} {
		err := c.route.Validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.route, err, c.want)
		}
	}
}

// FuzzParseHostname: what is read is written so that it reads the same. The name
// comes from users, from NATS and from DNS questions.
func FuzzParseHostname(f *testing.F) {
	for _, s := range []string{"web.apps.internal.", "0.A", "*", "", "a..b", "\x00", "ſ.K"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := ParseHostname(s)
		if err != nil {
			return
		}
		if again, err := ParseHostname(string(name)); err != nil || again != name || len(name) > maxHostname {
			t.Errorf("%q is %q, then %q, %v", s, name, again, err)
		}
	})
}
