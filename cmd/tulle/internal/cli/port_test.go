package cli

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tulle/overlay/control"
)

func (cell) AddPort(_ context.Context, _ control.Peer, r control.PortAdd) error {
	return control.Errorf(control.CodePortTaken, "%s: %v %d %s to %d tls=%t keep=%t is another's", r.Container, r.HostIP, r.HostPort, r.Protocol, r.Port.Port, r.TLS, r.Keep)
}

func (cell) RemovePort(context.Context, control.Peer, control.PortRemove) error { return nil }

func (cell) Ports(context.Context) ([]control.ListedPort, error) {
	return []control.ListedPort{
		{Port: control.Port{HostIP: netip.MustParseAddr("192.0.2.1"), HostPort: 443, Protocol: "tcp", Port: 61443, TLS: true}, Container: "c1", App: web, AppName: "web"},
		{Port: control.Port{HostIP: netip.IPv4Unspecified(), HostPort: 53, Protocol: "udp", Port: 5353, Keep: true}, Container: "c2", App: db, Waiting: true},
	}, nil
}

func (cell) TrafficLog(context.Context, control.Peer, control.TrafficLogSet) (control.TrafficLog, error) {
	return control.TrafficLog{}, nil
}

func (cell) AddRules(context.Context, control.Peer, control.RulesAdd) (control.RulesAdded, error) {
	return control.RulesAdded{}, nil
}

func (cell) NATWho(_ context.Context, q control.NATWho) ([]control.NATFound, error) {
	if q.Source.Port() == 1 {
		return nil, nil
	}
	return []control.NATFound{{Protocol: "tcp", Source: q.Source, Remote: netip.MustParseAddrPort("203.0.113.1:443"), Begin: q.At, Container: "c1", AppName: "web", Space: "dev", Org: "acme"}}, nil
}

func TestPort(t *testing.T) {
	s := newServer(t)
	socket := " --socket " + serveCell(t, control.Status{})
	for args, want := range map[string]string{
		"8080:80":            "c1: invalid IP 8080  to 80 tls=false keep=false",
		"192.0.2.1:8080:80":  "c1: 192.0.2.1 8080  to 80 tls=false keep=false",
		"[::1]:8080:80/tcp":  "c1: ::1 8080 tcp to 80 tls=false keep=false",
		"53:5353/udp --keep": "c1: invalid IP 53 udp to 5353 tls=false keep=true",
		"443:tls":            "c1: invalid IP 443  to 0 tls=true keep=false",
	} {
		if got := s.tulle("port add c1 " + args + socket); got.status != 1 || !strings.Contains(got.err, want) {
			t.Errorf("add %s: %+v, want %q", args, got, want)
		}
	}
	for _, args := range []string{"add c1 8080", "add c1 0:80", "add c1 8080:70000", "add c1 host:8080:80", "add c1 8080:80/sctp", "add c1", "remove c1 x", "remove c1 80/icmp"} {
		if got := s.tulle("port " + args + socket); got.status == 0 || !strings.Contains(got.err+got.out, "Incorrect Usage") {
			t.Errorf("%s: %+v, want a word on the usage", args, got)
		}
	}
	if got := s.tulle("port remove c1 192.0.2.1:80/udp" + socket); got.status != 0 || !strings.Contains(got.out, "OK") {
		t.Errorf("remove: %+v", got)
	}
	got := s.tulle("port list" + socket)
	for _, want := range []string{"192.0.2.1:443", "tls", "c1", "web", "0.0.0.0:53", "5353", "waits for its container"} {
		if !strings.Contains(got.out, want) {
			t.Errorf("list does not say %q:\n%s", want, got.out)
		}
	}
}

func TestNATWho(t *testing.T) {
	s := newServer(t)
	socket := " --socket " + serveCell(t, control.Status{})
	got := s.tulle("nat who 192.0.2.1:40000 --at 2026-03-01T12:00:00Z" + socket)
	for _, want := range []string{"2026-03-01T12:00:00Z", "now", "203.0.113.1:443", "c1", "web", "dev", "acme"} {
		if !strings.Contains(got.out, want) {
			t.Errorf("the answer does not say %q:\n%s", want, got.out)
		}
	}
	if got := s.tulle("nat who 192.0.2.1:1" + socket); !strings.Contains(got.out, "Nobody") {
		t.Errorf("nobody: %+v", got)
	}
	for _, args := range []string{"", "192.0.2.1", "192.0.2.1:0", "192.0.2.1:5 --at yesterday"} {
		if got := s.tulle("nat who " + args + socket); got.status == 0 || !strings.Contains(got.err+got.out, "Incorrect Usage") {
			t.Errorf("%q: %+v, want a word on the usage", args, got)
		}
	}
}

func TestParseTime(t *testing.T) {
	zone := time.FixedZone("here", 3600)
	now := time.Date(2026, 3, 1, 18, 0, 0, 0, zone)
	got, err := parseTime("15:04:05", now)
	if err != nil || !got.Equal(time.Date(2026, 3, 1, 15, 4, 5, 0, zone)) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := parseTime("noon", now); err == nil {
		t.Error("noon is no time")
	}
}
