package overlay

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"testing"

	"tulle/overlay/datapath"
	"tulle/overlay/dns"
	"tulle/overlay/fib"
	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/table"
)

// FuzzEvent: a line of the watch stream, from the policy server or from whoever
// holds its key. Nothing makes the cell crash; what is refused changes nothing;
// what is taken in leaves rules only between apps that have a tag, and a
// snapshot after it counts alone.
func FuzzEvent(f *testing.F) {
	const known = `{"snapshot":{"epoch":"e","revision":1,"policies":[{"source":{"id":"web"},"destination":{"id":"db","protocol":"tcp","ports":{"start":5432,"end":5432}}}],` +
		`"tags":[{"app":"web","tag":1},{"app":"db","tag":2}],` +
		`"peers":[{"name":"two","kind":"tulle","mode":"vxlan","underlay":"192.0.2.2","port":4789,"subnet":"10.250.2.0/24","generation":1}],` +
		`"endpoints":[{"cell":"two","container":"c","address":"10.250.2.1","app":"db","generation":1,"incarnation":1}]}}`
	f.Add([]byte(known))
	f.Add([]byte(`{"delta":{"revision":2,"policies_removed":[{"source":{"id":"web"},"destination":{"id":"db","protocol":"tcp","ports":{"start":5432,"end":5432}}}],"tags_removed":["web","db"]}}`))
	f.Add([]byte(`{"delta":{"revision":2,"tags_set":[{"app":"web","tag":2},{"app":"db","tag":1},{"app":"","tag":0}],"policies_added":[{"source":{"id":"db"},"destination":{"id":"db","protocol":"udp","ports":{"start":1,"end":65535}}}]}}`))
	f.Add([]byte(`{"delta":{"revision":2,"peers_removed":["two","self",""],"endpoints_removed":[{"cell":"two","container":"c","address":"10.250.2.1","generation":1,"incarnation":1}]}}`))
	f.Add([]byte(`{"delta":{"peers_set":[{"name":"two","kind":"silk","mode":"wireguard","underlay":"::1","subnet":"0.0.0.0/0"},{"name":"three","subnet":"10.250.2.0/25"},{"name":"four"}],"endpoints_set":[{"cell":"three","address":"10.250.2.1"},{"cell":"self","address":"10.250.1.1"},{"address":""}]}}`))
	f.Add([]byte(`{"heartbeat":{"revision":18446744073709551615,"floor":1},"snapshot":{}}`))
	f.Add([]byte(`{"delta":{"policies_added":[{"source":{"id":"web"},"destination":{"id":"db","protocol":"icmp","ports":{"start":9,"end":1}}}]}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		fibTable, err := fib.New(network, mustPrefix("10.250.1.0/24"))
		if err != nil {
			t.Fatal(err)
		}
		w := newWorld("self", fibTable, table.New(), table.New(), noCuts{}, newTunnels(slog.New(slog.DiscardHandler)), dns.NewNames(netip.Prefix{}))
		var first, e api.Event
		if err := json.Unmarshal([]byte(known), &first); err != nil {
			t.Fatal(err)
		}
		if err := w.take(first); err != nil {
			t.Fatal(err)
		}
		if json.Unmarshal(line, &e) != nil {
			return
		}
		rules, revision := w.policies.Len(), w.revision
		if err := w.take(e); err != nil && (w.policies.Len() != rules || w.revision != revision) {
			t.Errorf("%s is refused (%v) and changed something", line, err)
		}
		tagged := map[table.Rule]bool{}
		for p, rule := range w.known {
			src, dst := w.tags[p.Source], w.tags[p.Destination]
			if (rule != table.Rule{}) != (src != policy.NoTag && dst != policy.NoTag) {
				t.Errorf("%v has rule %v, its ends have tags %v and %v", p, rule, src, dst)
			}
			if (rule != table.Rule{}) {
				tagged[rule] = true
				if !w.policies.Lookup(src, dst, p.Protocol, p.Ports.End) {
					t.Errorf("%v does not allow its own port", p)
				}
			}
		}
		if got := w.policies.Len(); got > len(tagged) {
			t.Errorf("%d rules of %d policies", got, len(tagged))
		}
		if err := w.take(api.Event{Snapshot: &api.Snapshot{Epoch: "f", Revision: 1}}); err != nil {
			t.Fatal(err)
		}
		if peers, _, remotes := w.fib.Load().Len(); peers+remotes+w.policies.Len()+w.reach.Len() != 0 {
			t.Errorf("after an empty snapshot: %d peers, %d endpoints, %d rules, %d of reach", peers, remotes, w.policies.Len(), w.reach.Len())
		}
	})
}

// noCuts is a cutter without flows.
type noCuts struct{}

func (noCuts) Cut([]datapath.Pair) int            { return 0 }
func (noCuts) CutEndpoint(netip.Addr, uint64) int { return 0 }
func (noCuts) CutPeer(uint32) int                 { return 0 }
