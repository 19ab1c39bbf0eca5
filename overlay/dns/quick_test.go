package dns

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// theSame holds the quick way against the long one: where it answers, the other
// would have said the same, but for the order of the addresses.
func theSame(t *testing.T, r *Resolver, b []byte, limit int) (quick bool) {
	t.Helper()
	got := r.quick(container, b, limit)
	if got == nil {
		return false
	}
	q := query{from: container, message: b, limit: limit, deadline: time.Now().Add(time.Minute)}
	long, ask := r.byRecords(q)
	if ask != nil {
		t.Fatalf("%x is answered quickly, and is one for the outside", b)
	}
	var fast, slow dns.Msg
	if err := fast.Unpack(got); err != nil {
		t.Fatalf("%x for %x: %v", got, b, err)
	}
	if err := slow.Unpack(long); err != nil {
		t.Fatalf("%x for %x: %v", long, b, err)
	}
	opt := func(m *dns.Msg) string {
		if o := m.IsEdns0(); o != nil {
			return o.String()
		}
		return ""
	}
	if fast.MsgHdr != slow.MsgHdr || !cmp.Equal(fast.Question, slow.Question) || !cmp.Equal(records(fast.Answer), records(slow.Answer)) ||
		len(fast.Ns)+len(slow.Ns) > 0 || opt(&fast) != opt(&slow) || len(fast.Extra) != len(slow.Extra) {
		t.Fatalf("%x\nquickly: %v\nat length: %v", b, &fast, &slow)
	}
	return true
}

func TestQuickAnswersAreTheLongOnes(t *testing.T) {
	n := acme()
	n.Allow("front", "web", 1)
	r := start(t, Options{Upstreams: []netip.AddrPort{}, Overlay: overlay, Names: n})
	for _, c := range []struct {
		name   string
		change func(*dns.Msg)
		quick  bool
	}{
		{"web.apps.internal.", func(*dns.Msg) {}, true},
		{"WEB.apps.Internal.", func(*dns.Msg) {}, true},
		{"0.web.apps.internal.", func(*dns.Msg) {}, true},
		{"nats.apps.internal.", func(*dns.Msg) {}, true},
		{"web.apps.internal.", func(m *dns.Msg) { m.RecursionDesired = false }, true},
		{"web.apps.internal.", func(m *dns.Msg) { m.CheckingDisabled, m.AuthenticatedData = true, true }, true},
		{"web.apps.internal.", func(m *dns.Msg) { m.SetEdns0(4096, true) }, true},
		{"web.apps.internal.", func(m *dns.Msg) { m.SetEdns0(1, false) }, true},
		{"web.apps.internal.", func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }, false},
		{"web.apps.internal.", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }, false},
		{"web.apps.internal.", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, false},
		{"web.apps.internal.", func(m *dns.Msg) { m.Response = true }, false},
		{"web.apps.internal.", func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, false},
		{"no.apps.internal.", func(*dns.Msg) {}, false},
		{"down.apps.internal.", func(*dns.Msg) {}, false},
		{"solo.apps.internal.", func(*dns.Msg) {}, false}, // prohibited, which is worth a word
		{"www.example.com.", func(*dns.Msg) {}, false},
		{".", func(*dns.Msg) {}, false},
	} {
		m := new(dns.Msg).SetQuestion(c.name, dns.TypeA)
		c.change(m)
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		for _, limit := range []int{0, dns.MaxMsgSize} {
			if got := theSame(t, r, b, limit); got != c.quick {
				t.Errorf("%v: quick %v, want %v", m, got, c.quick)
			}
		}
	}
	for i := range 60 {
		n.SetLocal(Instance{App: "web", Address: netip.AddrFrom4([4]byte{10, 255, 1, byte(100 + i)})})
	}
	b, err := new(dns.Msg).SetQuestion("web.apps.internal.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	if theSame(t, r, b, 0) || !theSame(t, r, b, dns.MaxMsgSize) {
		t.Error("what does not fit a datagram goes the long way, what fits a connection does not")
	}
}

// FuzzQuick: whatever a container sends, the two ways say the same.
func FuzzQuick(f *testing.F) {
	for _, name := range []string{"web.apps.internal.", "0.web.apps.internal.", "no.apps.internal.", "."} {
		for _, edns := range []bool{false, true} {
			m := new(dns.Msg).SetQuestion(name, dns.TypeA)
			if edns {
				m.SetEdns0(1232, true)
			}
			b, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	n := acme()
	n.Allow("front", "web", 1)
	r := New(Options{Upstreams: []netip.AddrPort{}, Workers: 1, Overlay: overlay, Names: n})
	f.Cleanup(func() { r.Close() })
	f.Fuzz(func(t *testing.T, b []byte) { theSame(t, r, b, 0) })
}
