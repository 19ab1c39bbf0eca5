package control

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
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

func second[T any](_ T, err error) error { return err }
