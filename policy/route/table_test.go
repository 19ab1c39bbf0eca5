package route

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tulle/policy"
)

var byValue = cmp.Options{cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()}

// to is a route from "name address".
func to(s string) policy.Route {
	name, at, _ := strings.Cut(s, " ")
	return policy.Route{Name: policy.Hostname(name), Address: netip.MustParseAddr(at)}
}

// emitted is what the route emitter of a cell sends of an instance.
const emitted = `{"host":"10.255.77.2","port":0,"uris":["Web.apps.internal","0.web.apps.internal"],
 "app":"11111111-0000","endpoint_updated_at_ns":1767225600000000000,
 "private_instance_index":"0","availability_zone":"z1","tags":{"component":"route-emitter"}}`

func TestDecodeMessage(t *testing.T) {
	for _, c := range []struct {
		name, data string
		want       []policy.Route
		bad        int
		err        string
	}{
		{"an emitter's", emitted, []policy.Route{to("web.apps.internal 10.255.77.2"), to("0.web.apps.internal 10.255.77.2")}, 0, ""},
		{"outside of any internal domain", `{"host":"10.255.77.2","uris":["web.example.com."]}`, []policy.Route{to("web.example.com 10.255.77.2")}, 0, ""},
		{"one bad name of two", `{"host":"10.255.77.2","uris":["*.apps.internal","web.apps.internal"]}`, []policy.Route{to("web.apps.internal 10.255.77.2")}, 1, ""},
		{"an IPv4 address written as IPv6", `{"host":"::ffff:10.255.77.2","uris":["web.apps.internal"]}`, []policy.Route{to("web.apps.internal 10.255.77.2")}, 0, ""},
		{"without a host", `{"uris":["web.apps.internal"]}`, nil, 0, ""},
		{"without uris", `{"host":"10.255.77.2"}`, nil, 0, "without uris"},
		{"no JSON", `{"host":`, nil, 0, "unexpected end"},
		{"another type", `{"host":1,"uris":["a"]}`, nil, 0, "cannot unmarshal"},
		{"a host that is a name", `{"host":"cell-1","uris":["a"]}`, nil, 0, `host "cell-1", which is no address`},
		{"a host with a zone", `{"host":"fe80::1%eth0","uris":["a"]}`, nil, 0, "no address"},
		{"the unspecified", `{"host":"0.0.0.0","uris":["a"]}`, nil, 0, "no address"},
		{"too many", `{"host":"10.255.77.2","uris":[` + strings.TrimSuffix(strings.Repeat(`"a",`, maxURIs+1), ",") + `]}`, nil, 0, "at most 1000"},
		{"too long", strings.Repeat(" ", maxMessage+1), nil, 0, "at most 1048576"},
	} {
		got, bad, err := DecodeMessage([]byte(c.data))
		if diff := cmp.Diff(c.want, got, byValue); diff != "" || len(bad) != c.bad || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, %v, %v", c.name, got, bad, err)
		}
	}
}

// FuzzDecodeMessage: what anybody on NATS sends is refused, or becomes routes that
// the store takes.
func FuzzDecodeMessage(f *testing.F) {
	f.Add([]byte(emitted))
	f.Add([]byte(`{"uris":["a"]}`))
	f.Add([]byte(`{"host":"::1","uris":["a.b",""]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		routes, bad, err := DecodeMessage(data)
		if err != nil && len(routes)+len(bad) > 0 {
			t.Fatalf("%v beside %v, %v", err, routes, bad)
		}
		for _, r := range routes {
			if err := r.Validate(); err != nil {
				t.Fatalf("%s: %v", data, err)
			}
		}
	})
}

// What is not registered again goes, but for the time that NATS is away and a
// while after it is back.
func TestTable(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	table := NewTable(180*time.Second, 60*time.Second)
	a, b, c := to("a.apps.internal 10.255.1.1"), to("b.apps.internal 10.255.1.2"), to("c.apps.internal 10.255.1.3")
	pass := func(d time.Duration) { now = now.Add(d) }
	pruned := func(what string, want ...policy.Route) {
		t.Helper()
		got := table.Prune(now)
		slices.SortFunc(got, func(x, y policy.Route) int { return strings.Compare(string(x.Name), string(y.Name)) })
		if diff := cmp.Diff(want, got, byValue); diff != "" {
			t.Errorf("%s: pruned (-want +got):\n%s", what, diff)
		}
	}
	set := func(routes ...policy.Route) map[policy.Route]struct{} {
		m := map[policy.Route]struct{}{}
		for _, r := range routes {
			m[r] = struct{}{}
		}
		return m
	}
	table.Adopt(set(c, policy.Route{Name: "x.apps.internal", App: "x"}), nil, now)
	if table.Len() != 1 {
		t.Errorf("%d routes were adopted; an app's is none", table.Len())
	}
	pass(time.Hour)
	pruned("never connected")
	table.Connected(now)
	if added := table.Register([]policy.Route{a, b, a}, now); len(added) != 2 {
		t.Errorf("added %v", added)
	}
	if added := table.Register([]policy.Route{a}, now); len(added) != 0 {
		t.Errorf("added again: %v", added)
	}
	pass(59 * time.Second)
	pruned("just connected")
	pass(time.Second)
	pruned("never registered here", c)
	table.Register([]policy.Route{a}, now)
	pass(120 * time.Second)
	pruned("at the threshold")
	pass(time.Second)
	pruned("behind it", b)
	if added := table.Register([]policy.Route{b}, now); len(added) != 1 {
		t.Errorf("back: %v", added)
	}
	table.Disconnected()
	table.Adopt(set(a, b), nil, now) // known: not heard of by that
	pass(time.Hour)
	pruned("NATS is away")
	table.Connected(now)
	pass(30 * time.Second)
	table.Connected(now) // told twice
	table.Register([]policy.Route{b}, now)
	pass(30 * time.Second)
	pruned("NATS is back for long enough", a)
	table.Adopt(set(), set(b), now)
	if added := table.Register([]policy.Route{b}, now); len(added) != 0 {
		t.Errorf("on its way to the store, and added again: %v", added)
	}
	table.Adopt(set(), nil, now)
	if added := table.Register([]policy.Route{b}, now); len(added) != 1 {
		t.Errorf("the store had lost it: added %v", added)
	}
	if gone := table.Unregister([]policy.Route{b, c}); len(gone) != 2 || table.Len() != 0 {
		t.Errorf("unregistered %v, left %d", gone, table.Len())
	}
}

func BenchmarkRegisterAgain(b *testing.B) {
	table := NewTable(180*time.Second, 60*time.Second)
	now := time.Now()
	var messages [][]byte
	for i := range 1000 {
		messages = append(messages, fmt.Appendf(nil, `{"host":"10.255.%d.%d","port":0,"uris":["app-%d.apps.internal","0.app-%d.apps.internal"]}`, i/250, i%250+1, i, i))
	}
	i := 0
	for b.Loop() {
		routes, _, err := DecodeMessage(messages[i%1000])
		if err != nil {
			b.Fatal(err)
		}
		table.Register(routes, now)
		i++
	}
}
