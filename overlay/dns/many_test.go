package dns

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/miekg/dns"

	"tulle/policy"
)

// many is a snapshot of n names as the watch brings it: strings that nobody shares.
func many(n int) Change {
	c := Change{DomainsSet: []policy.Hostname{policy.DefaultDomain}}
	for i := range n {
		guid := func() policy.AppID { return policy.AppID(fmt.Sprintf("%08x-0000-4000-8000-%012x", i, i)) }
		c.RoutesSet = append(c.RoutesSet, policy.Route{Name: policy.Hostname(fmt.Sprintf("app-%d.apps.internal", i)), App: guid()})
		c.InstancesSet = append(c.InstancesSet, Instance{App: guid(), Index: fmt.Sprint(i % 3),
			Address: netip.AddrFrom4([4]byte{10, byte(2 + i>>16), byte(i >> 8), byte(i)})})
	}
	return c
}

// heap is what is in use.
func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// An internal name among 100,000, from datagram to datagram.
func BenchmarkInternal(b *testing.B) {
	n := NewNames(netip.MustParsePrefix("10.1.0.0/24"))
	n.Replace(many(100_000))
	n.SetLocal(Instance{App: "front", Address: container})
	n.Allow("front", "00001267-0000-4000-8000-000000001267", 1) // app-4711's
	r := New(Options{Upstreams: []netip.AddrPort{}, Names: n, Workers: 1})
	defer r.Close()
	q := new(dns.Msg).SetQuestion("app-4711.apps.internal.", dns.TypeA)
	q.SetEdns0(1232, false)
	wire, err := q.Pack()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		r.Submit(container, wire, func(answer []byte) {
			if len(answer) < len(wire) {
				b.Fatal("no answer")
			}
		})
	}
}
