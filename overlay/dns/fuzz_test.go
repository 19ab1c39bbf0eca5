package dns

import (
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// FuzzQuery: whatever a container sends, the answer, if there is one, decodes,
// has the query's id, is a response, and is no longer than the container takes;
// and never is a datagram that is itself a response answered. Nobody is asked:
// there is no resolver of the host's.
func FuzzQuery(f *testing.F) {
	seed := func(change func(*dns.Msg)) {
		m := new(dns.Msg).SetQuestion("web.apps.internal.", dns.TypeA)
		change(m)
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	seed(func(*dns.Msg) {})
	seed(func(m *dns.Msg) { m.SetEdns0(4096, true) })
	seed(func(m *dns.Msg) { m.Question[0].Name = "example.com." })
	seed(func(m *dns.Msg) { m.Response = true })
	seed(func(m *dns.Msg) { m.Question = nil })
	seed(func(m *dns.Msg) { m.SetQuestion("_8081._tcp.web.apps.internal.", dns.TypeSRV).SetEdns0(4096, false) })
	seed(func(m *dns.Msg) { m.SetQuestion("4.3.255.10.in-addr.arpa.", dns.TypePTR) })
	seed(func(m *dns.Msg) { m.SetQuestion("1.web.apps.internal.", dns.TypeANY) })
	f.Add([]byte{0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xC0, 12, 0, 1, 0, 1})
	resolver := New(Options{Upstreams: []netip.AddrPort{}, Workers: 1, Overlay: overlay, Names: acme()})
	f.Cleanup(func() { resolver.Close() })
	f.Fuzz(func(t *testing.T, b []byte) {
		q := query{from: container, message: b, deadline: time.Now().Add(time.Minute)}
		got, ask := resolver.immediate(q)
		if ask != nil {
			got = resolver.outside(q, ask)
		}
		if got == nil {
			return
		}
		if b[2]&0x80 != 0 {
			t.Fatalf("a response was answered: %x", b)
		}
		if len(got) > maxUDP || got[0] != b[0] || got[1] != b[1] || got[2]&0x80 == 0 {
			t.Fatalf("%x was answered with %x", b, got)
		}
		if err := new(dns.Msg).Unpack(got); err != nil {
			t.Fatalf("%x was answered with %x: %v", b, got, err)
		}
	})
}

// FuzzAnswer: whatever comes back from a resolver's address is either not the
// answer, or truncated, or repeats the question that was asked.
func FuzzAnswer(f *testing.F) {
	ask := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
	ask.Id = 0x1234
	seed := func(m *dns.Msg) {
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	seed(reply(ask, "192.0.2.1"))
	seed(new(dns.Msg).SetRcode(ask, dns.RcodeServerFailure))
	cut := reply(ask)
	cut.Truncated = true
	seed(cut)
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeAnswer(b, ask)
		if err != nil || got == nil {
			return
		}
		if got.Id != ask.Id || !got.Response || got.Truncated {
			t.Fatalf("%x was taken for the answer", b)
		}
		if len(got.Question) == 0 && settles(got.Rcode) {
			t.Fatalf("%x, without the question, was taken for the answer", b)
		}
		if wire := pack(restore(got, ask), ask, 0); wire != nil && len(wire) > dns.MinMsgSize {
			t.Fatalf("%d bytes for an asker that takes %d", len(wire), dns.MinMsgSize)
		}
	})
}
