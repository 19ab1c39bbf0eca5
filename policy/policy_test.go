package policy

import (
	"strings"
	"testing"
)

// ports reads "80" or "50-60".
func ports(t *testing.T, s string) PortRange {
	t.Helper()
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	parse := func(s string) (n uint16) {
		for _, c := range s {
			n = n*10 + uint16(c-'0')
		}
		return n
	}
	return PortRange{Start: parse(first), End: parse(last)}
}

// rule reads "web -> db tcp 80-90".
func rule(t *testing.T, s string) Policy {
	t.Helper()
	f := strings.Fields(s)
	proto, err := ParseProtocol(f[3])
	if err != nil {
		t.Fatal(err)
	}
	return Policy{Source: AppID(f[0]), Destination: AppID(f[2]), Protocol: proto, Ports: ports(t, f[4])}
}

func TestAllowed(t *testing.T) {
	world := []Policy{
		rule(t, "web -> db tcp 5432"),
		rule(t, "web -> log udp 5140-5150"),
		rule(t, "web -> log udp 5145-5200"),
		rule(t, "job -> job tcp 7000"),
	}
	for _, c := range []struct {
		flow string
		want bool
	}{
		{"web -> db tcp 5432", true},
		{"web -> db tcp 5433", false},
		{"web -> db udp 5432", false},
		{"db -> web tcp 5432", false}, // a policy has one direction
		{"web -> log udp 5139", false},
		{"web -> log udp 5140", true},
		{"web -> log udp 5150", true},
		{"web -> log udp 5151", true}, // the second of two overlapping ranges
		{"web -> log udp 5200", true},
		{"web -> log udp 5201", false},
		{"job -> job tcp 7000", true},
		{"web -> web tcp 7000", false}, // nobody may reach even itself without a policy
		{"nobody -> db tcp 5432", false},
	} {
		f := rule(t, c.flow)
		if got := Allowed(world, f.Source, f.Destination, f.Protocol, f.Ports.Start); got != c.want {
			t.Errorf("%s: allowed %v, want %v", c.flow, got, c.want)
		}
	}
	if Allowed(nil, "web", "db", TCP, 5432) {
		t.Error("no policy at all allows a flow")
	}
}

func TestValidate(t *testing.T) {
	good := rule(t, "web -> db tcp 80-90")
	for _, c := range []struct {
		name   string
		change func(*Policy)
		want   string
	}{
		{"whole", func(*Policy) {}, ""},
		{"to itself", func(p *Policy) { p.Destination = p.Source }, ""},
		{"all ports", func(p *Policy) { p.Ports = PortRange{1, 65535} }, ""},
		{"no source", func(p *Policy) { p.Source = "" }, "missing source id"},
		{"no destination", func(p *Policy) { p.Destination = "" }, "missing destination id"},
		{"icmp", func(p *Policy) { p.Protocol = 1 }, "invalid destination protocol, specify either udp or tcp"},
		{"no protocol", func(p *Policy) { p.Protocol = 0 }, "invalid destination protocol, specify either udp or tcp"},
		{"no ports", func(p *Policy) { p.Ports = PortRange{} }, "missing start port"},
		{"from port 0", func(p *Policy) { p.Ports = PortRange{0, 80} }, "missing start port"},
		{"backwards", func(p *Policy) { p.Ports = PortRange{90, 80} }, "invalid port range 90-80, start must be less than or equal to end"},
	} {
		p := good
		c.change(&p)
		got := ""
		if err := p.Validate(); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestTagText(t *testing.T) {
	for text, tag := range map[string]Tag{"0001": 1, "002A": 42, "FFFF": MaxTag, "0000": NoTag} {
		if got := tag.String(); got != text {
			t.Errorf("tag %d is written %q, want %q", tag, got, text)
		}
		if got, err := ParseTag(text); err != nil || got != tag {
			t.Errorf("tag %q is read as %d, %v, want %d", text, got, err, tag)
		}
	}
	for _, bad := range []string{"", "x", "-1", "100000000", "0x1", "1 "} {
		if got, err := ParseTag(bad); err == nil {
			t.Errorf("tag %q is read as %d, want an error", bad, got)
		}
	}
}

func TestWords(t *testing.T) {
	for p, want := range map[string]string{"a -> b tcp 80": "a -> b tcp 80", "a -> b udp 80-81": "a -> b udp 80-81"} {
		if got := rule(t, p).String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := Protocol(1).String(); got != "1" {
		t.Errorf("an unnamed protocol is %q, want its number", got)
	}
	for _, bad := range []string{"TCP", "icmp", "all", "", "6"} {
		if got, err := ParseProtocol(bad); err != ErrProtocol {
			t.Errorf("protocol %q is read as %v, %v", bad, got, err)
		}
	}
}

// FuzzParseTag: what is read is written back to a text that reads the same. The
// text comes from the policy server.
func FuzzParseTag(f *testing.F) {
	for _, s := range []string{"0001", "ffff", "FFFFFFFF", "", "+1", "g"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tag, err := ParseTag(s)
		if err != nil {
			return
		}
		if again, err := ParseTag(tag.String()); err != nil || again != tag {
			t.Errorf("%q is %d, written %q, then %d, %v", s, tag, tag.String(), again, err)
		}
	})
}
