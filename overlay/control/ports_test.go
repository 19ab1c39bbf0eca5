package control

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tulle/policy"
)

// The daemon of this package's tests keeps no ports: it says back what it was asked.

func (d *daemon) AddPort(_ context.Context, p Peer, r PortAdd) error {
	return Errorf(CodePortTaken, "add %s %v:%d %d %s", r.Container, r.HostIP, r.HostPort, r.Port.Port, r.Protocol)
}

func (d *daemon) RemovePort(_ context.Context, p Peer, r PortRemove) error {
	return Errorf(CodeNotFound, "remove %s %v:%d", r.Container, r.HostIP, r.HostPort)
}

func (d *daemon) Ports(context.Context) ([]ListedPort, error) {
	return []ListedPort{{Container: "c1", Port: Port{HostPort: 80, TLS: true}}}, nil
}

func (d *daemon) NATWho(_ context.Context, q NATWho) ([]NATFound, error) {
	return []NATFound{{Source: q.Source, Begin: q.At, App: "web"}}, nil
}

func (d *daemon) AddRules(_ context.Context, _ Peer, r RulesAdd) (RulesAdded, error) {
	return RulesAdded{InForce: r.Container == "c1" && r.Rules[0].Ports == "443"}, r.Room(maxRules - 2)
}

func (d *daemon) TrafficLog(_ context.Context, p Peer, s TrafficLogSet) (TrafficLog, error) {
	if s.ContainersAllowed != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.loud = *s.ContainersAllowed
	}
	return TrafficLog{File: "f", ContainersAllowed: d.loud, Written: uint64(p.UID)}, nil
}

// TestTrafficLog: who may use the cell may ask, and only its operator may switch.
func TestTrafficLog(t *testing.T) {
	d := &daemon{}
	path, _ := serve(t, d, everyone())
	on := true
	got, err := dial(t, path).TrafficLog(t.Context(), TrafficLogSet{ContainersAllowed: &on})
	if err != nil || got != (TrafficLog{File: "f", ContainersAllowed: true, Written: uint64(os.Getuid())}) {
		t.Errorf("switched: %+v, %v", got, err)
	}
	self := uint32(os.Getuid())
	if self == 0 {
		return // root may everywhere
	}
	path, _ = serve(t, d, NewAuthorizer(self+1, []Grant{AnyApp(self)}))
	c := dial(t, path)
	if got, err := c.TrafficLog(t.Context(), TrafficLogSet{}); err != nil || !got.ContainersAllowed {
		t.Errorf("asked: %+v, %v", got, err)
	}
	if _, err := c.TrafficLog(t.Context(), TrafficLogSet{ContainersAllowed: new(bool)}); codeOf(err) != CodeNotAllowed || !d.loud {
		t.Errorf("switched by whoever: %v", err)
	}
}

// TestRules reach the handler whole, or not at all.
func TestRules(t *testing.T) {
	path, _ := serve(t, &daemon{}, everyone())
	c := dial(t, path)
	rule := policy.SecurityRule{Protocol: "tcp", Destination: "192.0.2.1", Ports: "443"}
	if got, err := c.AddRules(t.Context(), RulesAdd{"c1", []policy.SecurityRule{rule, rule}}); err != nil || !got.InForce {
		t.Errorf("added: %+v, %v", got, err)
	}
	bad := rule
	bad.Ports = "443,0"
	for name, r := range map[string]RulesAdd{
		"container: container \"\"":          {"", []policy.SecurityRule{rule}},
		"a bad one: rule 2: ports \"443,0\"": {"c1", []policy.SecurityRule{rule, bad}},
		"no room: container c1 has 4094":     {"c1", []policy.SecurityRule{rule, rule, rule}},
	} {
		_, says, _ := strings.Cut(name, ": ")
		var e *Error
		if _, err := c.AddRules(t.Context(), r); !errors.As(err, &e) || e.Code != CodeBadRequest || !strings.HasPrefix(e.Message, says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// More rules than a container may have are refused before any is looked at.
func TestRulesAreBounded(t *testing.T) {
	err := RulesAdd{"c1", make([]policy.SecurityRule, maxRules+1)}.check()
	if codeOf(err) != CodeBadRequest || !strings.Contains(err.Error(), "4097 rules, at most 4096") {
		t.Errorf("%d rules: %v", maxRules+1, err)
	}
}

func TestPortsAndNAT(t *testing.T) {
	path, _ := serve(t, &daemon{}, everyone())
	c := dial(t, path)
	ctx := t.Context()
	p := Port{HostIP: netip.MustParseAddr("192.0.2.1"), HostPort: 8080, Port: 80, Protocol: "udp"}
	var e *Error
	if err := c.AddPort(ctx, PortAdd{"c1", p}); !errors.As(err, &e) || e.Code != CodePortTaken || e.Message != "add c1 192.0.2.1:8080 80 udp" {
		t.Errorf("add: %v", err)
	}
	if err := c.RemovePort(ctx, PortRemove{"c1", p}); !errors.As(err, &e) || e.Code != CodeNotFound || e.Message != "remove c1 192.0.2.1:8080" {
		t.Errorf("remove: %v", err)
	}
	ports, err := c.Ports(ctx)
	if diff := cmp.Diff([]ListedPort{{Container: "c1", Port: Port{HostPort: 80, TLS: true}}}, ports, cmpopts.EquateComparable(netip.Addr{})); diff != "" || err != nil {
		t.Errorf("ports: %v (-want +got):\n%s", err, diff)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	source := netip.MustParseAddrPort("192.0.2.1:40000")
	found, err := c.NATWho(ctx, NATWho{source, at})
	if err != nil || len(found) != 1 || found[0].Source != source || !found[0].Begin.Equal(at) || found[0].App != "web" {
		t.Errorf("found %+v, %v", found, err)
	}
	for name, err := range map[string]error{
		"no container":  c.AddPort(ctx, PortAdd{"", p}),
		"no host port":  c.AddPort(ctx, PortAdd{"c1", Port{Port: 80}}),
		"protocol":      c.RemovePort(ctx, PortRemove{"c1", Port{HostPort: 1, Protocol: "sctp"}}),
		"no source":     second(c.NATWho(ctx, NATWho{})),
		"portless":      second(c.NATWho(ctx, NATWho{Source: netip.MustParseAddrPort("192.0.2.1:0")})),
		"attach's work": Attach{Container: "c", App: attach("c", LifelineNone).App, Device: "eth0", Lifeline: LifelineNone, Workload: "job"}.check(1),
		"attach's port": Attach{Container: "c", App: attach("c", LifelineNone).App, Device: "eth0", Lifeline: LifelineNone, Ports: []Port{{Port: 80}}}.check(1),
	} {
		if !errors.As(err, &e) || e.Code != CodeBadRequest {
			t.Errorf("%s: %v, want a bad request", name, err)
		}
	}
}

// TestPortAskedForTwice: the second would take the first one's place unseen.
func TestPortAskedForTwice(t *testing.T) {
	any4, one := netip.IPv4Unspecified(), netip.MustParseAddr("192.0.2.1")
	mapped := netip.MustParseAddr("::ffff:192.0.2.1")
	for _, c := range []struct {
		name  string
		a, b  Port
		twice bool
	}{
		{"to two ports", Port{HostPort: 80, Port: 8080}, Port{HostPort: 80, Port: 9090}, true},
		{"spelled otherwise", Port{HostPort: 80, Port: 8080}, Port{HostPort: 80, HostIP: any4, Protocol: "tcp", Port: 9090}, true},
		{"of one address", Port{HostPort: 80, HostIP: one, Port: 1}, Port{HostPort: 80, HostIP: mapped, Port: 2}, true},
		{"of each protocol", Port{HostPort: 80, Port: 1}, Port{HostPort: 80, Protocol: "udp", Port: 1}, false},
		{"of each family", Port{HostPort: 80, Port: 1}, Port{HostPort: 80, HostIP: netip.IPv6Unspecified(), Port: 1}, false},
		{"two to one", Port{HostPort: 80, Port: 1}, Port{HostPort: 81, Port: 1}, false},
	} {
		err := Attach{Container: "c", App: attach("c", LifelineNone).App, Device: "eth0", Lifeline: LifelineNone, Ports: []Port{c.a, c.b}}.check(1)
		var e *Error
		if twice := errors.As(err, &e) && e.Code == CodeBadRequest && strings.Contains(e.Message, "80/tcp is asked for twice"); twice != c.twice || err != nil != c.twice {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }
