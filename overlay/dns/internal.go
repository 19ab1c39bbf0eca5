package dns

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"tulle/policy"
)

// Ports of SRV records. No name says which port its app listens on, so the asker
// does: "_8081._tcp.web.apps.internal", or a service's name.
const (
	appPort = 8080 // the platform's default, also of a name without a service
	tlsPort = 61443
)

// internal answers a question about an internal name, or about an address of the
// overlay; nil where it is neither. from is the container that asks.
func (r *Resolver) internal(from netip.Addr, ask *dns.Msg) *dns.Msg {
	q := ask.Question[0]
	if a, ok := reverse(q.Name); ok {
		if a.Is6() && r.network6.Contains(a) {
			a = name4(a)
		}
		if !r.overlay.Contains(a) {
			return nil
		}
		return r.pointer(ask, a)
	}
	name, err := policy.ParseHostname(q.Name)
	if err != nil {
		return r.unspeakable(ask)
	}
	if q.Qtype == dns.TypeSRV {
		if at, of, ok := service(name); ok {
			if domain := r.names.domain(of); domain != "" {
				return r.address(from, ask, of, domain, at)
			}
			return nil
		}
	}
	domain := r.names.domain(name)
	if domain == "" {
		return nil
	}
	return r.address(from, ask, name, domain, transport{"tcp", appPort})
}

// unspeakable answers for a name that can be nobody's, if it lies in an internal
// domain: what begins with an underscore or has other characters.
func (r *Resolver) unspeakable(ask *dns.Msg) *dns.Msg {
	lower := policy.Hostname(strings.ToLower(strings.TrimSuffix(ask.Question[0].Name, ".")))
	if domain := r.names.domain(lower); domain != "" {
		return r.unknown(ask, domain)
	}
	return nil
}

// address answers for an internal name.
func (r *Resolver) address(from netip.Addr, ask *dns.Msg, name, domain policy.Hostname, at transport) *dns.Msg {
	found, exists := r.names.lookup(name)
	if !exists && !r.aboveServices(name) {
		return r.unknown(ask, domain)
	}
	rand.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
	m := authoritative(ask)
	q := ask.Question[0]
	switch q.Qtype {
	case dns.TypeA, dns.TypeAAAA, dns.TypeANY:
		for _, i := range found {
			if q.Qtype != dns.TypeAAAA {
				m.Answer = append(m.Answer, addressRecord(q.Name, i.Address))
			}
			if twin := r.twin(i); twin.IsValid() && q.Qtype != dns.TypeA {
				m.Answer = append(m.Answer, addressRecord(q.Name, twin))
			}
		}
	case dns.TypeSRV:
		r.services(m, q.Name, name, found, at.port)
	case dns.TypeSOA:
		if name == domain {
			m.Answer = []dns.RR{soa(domain)}
		}
	}
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{soa(domain)}
	}
	if source, destination, yes := r.names.prohibited(from, found); yes {
		r.counters.prohibited.Add(1)
		explain(m, ask, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeProhibited, ExtraText: mend(source, destination, at)})
	}
	return m
}

// twin is an instance's IPv6 address. What was registered over NATS and is no
// container that is known here may be a silk cell's, which has none.
func (r *Resolver) twin(i Instance) netip.Addr {
	if !r.network6.IsValid() || i.App == "" || !i.Address.Is4() {
		return netip.Addr{}
	}
	b, a := r.network6.Addr().As16(), i.Address.As4()
	copy(b[12:], a[:])
	return netip.AddrFrom16(b)
}

// name4 is the address that a twin is of.
func name4(twin netip.Addr) netip.Addr {
	b := twin.As16()
	return netip.AddrFrom4([4]byte(b[12:]))
}

// mend is the command that lets source reach destination. A destination that a name
// alone does not find from the source's space has its own beside it; what a shell
// would not take as it stands is said by its GUID.
func mend(source, destination Instance, at transport) string {
	from, to := string(source.App), string(destination.App)
	var here, there Called
	if source.Called != nil {
		here = *source.Called
	}
	if destination.Called != nil {
		there = *destination.Called
	}
	if isPlain(here.Name) {
		from = here.Name
	}
	switch {
	case !isPlain(there.Name):
	case there.Space == here.Space && there.Org == here.Org:
		to = there.Name
	case isPlain(there.Space) && isPlain(there.Org):
		to = there.Name + " -s " + there.Space + " -o " + there.Org
	}
	return fmt.Sprintf("no policy lets this app reach it; allow it with: tulle add-network-policy %s %s --protocol %s --port %d", from, to, at.protocol, at.port)
}

// isPlain reports whether a shell takes s for one word, and nothing for a flag.
func isPlain(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_':
		case c == '-' || c == '.':
			if i == 0 {
				return false
			}
		default:
			return false
		}
	}
	return s != ""
}

// services adds an SRV record for each instance, and their addresses.
func (r *Resolver) services(m *dns.Msg, owner string, name policy.Hostname, found []Instance, port uint16) {
	there := make(map[string]bool)
	first, _ := name.Split()
	for _, i := range found {
		target := instanceLabel(i) + "." + string(name) + "."
		if isInstanceLabel(first) { // it is an instance's name itself
			target = string(name) + "."
		}
		if !there[target] {
			there[target] = true
			m.Answer = append(m.Answer, &dns.SRV{
				Hdr:    dns.RR_Header{Name: owner, Rrtype: dns.TypeSRV, Class: dns.ClassINET},
				Weight: 1, Port: port, Target: target,
			})
		}
		m.Extra = append(m.Extra, addressRecord(target, i.Address))
		if twin := r.twin(i); twin.IsValid() {
			m.Extra = append(m.Extra, addressRecord(target, twin))
		}
	}
}

// transport is what an app is reached by.
type transport struct {
	protocol string
	port     uint16
}

// service reads "_8081._tcp.NAME".
func service(name policy.Hostname) (at transport, of policy.Hostname, ok bool) {
	what, rest := name.Split()
	proto, of := rest.Split()
	if proto != "_tcp" && proto != "_udp" || len(what) < 2 || what[0] != '_' {
		return transport{}, "", false
	}
	at.protocol = proto[1:]
	switch what[1:] {
	case "http":
		at.port = appPort
	case "https":
		at.port = tlsPort
	default:
		n, err := strconv.ParseUint(what[1:], 10, 16)
		if err != nil || n == 0 {
			return transport{}, "", false
		}
		at.port = uint16(n)
	}
	return at, of, true
}

// aboveServices reports whether SRV records are at or below the name, so that it exists,
// whatever else is asked of it (RFC 8020).
func (r *Resolver) aboveServices(name policy.Hostname) bool {
	_, of, ok := service(name)
	if !ok {
		var proto string
		if proto, of = name.Split(); proto != "_tcp" && proto != "_udp" {
			return false
		}
	}
	_, exists := r.names.lookup(of)
	return exists
}

// pointer answers for an address of the overlay, of which nobody else knows.
func (r *Resolver) pointer(ask *dns.Msg, a netip.Addr) *dns.Msg {
	names := r.names.pointers(a)
	_, zone, _ := strings.Cut(strings.ToLower(ask.Question[0].Name), ".")
	at := policy.Hostname(strings.TrimSuffix(zone, "."))
	if len(names) == 0 {
		return r.unknown(ask, at)
	}
	m := authoritative(ask)
	if t := ask.Question[0].Qtype; t == dns.TypePTR || t == dns.TypeANY {
		for _, name := range names {
			m.Answer = append(m.Answer, &dns.PTR{
				Hdr: dns.RR_Header{Name: ask.Question[0].Name, Rrtype: dns.TypePTR, Class: dns.ClassINET}, Ptr: string(name) + "."})
		}
		return m
	}
	m.Ns = []dns.RR{soa(at)}
	return m
}

// unknown answers for a name that nobody has.
func (r *Resolver) unknown(ask *dns.Msg, domain policy.Hostname) *dns.Msg {
	m := authoritative(ask)
	if r.empty {
		return m
	}
	m.Rcode = dns.RcodeNameError
	m.Ns = []dns.RR{soa(domain)}
	return m
}

func authoritative(ask *dns.Msg) *dns.Msg {
	m := refusal(ask, dns.RcodeSuccess, nil)
	m.Authoritative = true
	return m
}

// soa has no time to live, so that nobody keeps what does not exist yet.
func soa(domain policy.Hostname) dns.RR {
	d := string(domain) + "."
	return &dns.SOA{Hdr: dns.RR_Header{Name: d, Rrtype: dns.TypeSOA, Class: dns.ClassINET},
		Ns: "ns." + d, Mbox: "hostmaster." + d, Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400}
}

func addressRecord(name string, a netip.Addr) dns.RR {
	if a.Is4() {
		return &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: a.AsSlice()}
	}
	return &dns.AAAA{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeAAAA, Class: dns.ClassINET}, AAAA: a.AsSlice()}
}

// reverse is the address that a name of in-addr.arpa or ip6.arpa is of; whole
// addresses only.
func reverse(name string) (netip.Addr, bool) {
	name = strings.ToLower(name)
	if labels, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		parts := strings.Split(labels, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return a, err == nil
	}
	nibbles, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok || len(nibbles) != 63 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range 32 {
		n, err := strconv.ParseUint(nibbles[2*i:2*i+1], 16, 8)
		if err != nil || i < 31 && nibbles[2*i+1] != '.' {
			return netip.Addr{}, false
		}
		b[15-i/2] |= byte(n) << (4 * (i % 2))
	}
	return netip.AddrFrom16(b), true
}

// explain adds an extended error for those who can read it (RFC 8914).
func explain(m, ask *dns.Msg, why *dns.EDNS0_EDE) {
	if ask.IsEdns0() == nil {
		return
	}
	own := m.IsEdns0()
	own.Option = append(own.Option, why)
}
