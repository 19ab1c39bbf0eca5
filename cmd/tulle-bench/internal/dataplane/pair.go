package dataplane

import (
	"context"
	"errors"
	"net/netip"
	"os/exec"
	"time"

	"tulle/cmd/tulle-bench/internal/bench"
	"tulle/cmd/tulle-bench/internal/netlab"
	"tulle/cmd/tulle-bench/internal/traffic"
)

// pair is a generator in the client's container and one in the server's.
type pair struct {
	client, server *traffic.Generator
	to             netip.Addr // the server's
}

// reachPatience is how long a first connection may take: policies take effect in
// their time.
const reachPatience = 15 * time.Second

func newPair(ctx context.Context, client, server *netlab.Namespace, to netip.Addr) (p *pair, err error) {
	p = &pair{to: to}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	in := func(n *netlab.Namespace) func(*exec.Cmd) error {
		return func(cmd *exec.Cmd) error { return n.Do(cmd.Start) }
	}
	if p.server, err = traffic.Start(ctx, in(server)); err != nil {
		return p, err
	}
	if p.client, err = traffic.Start(ctx, in(client)); err != nil {
		return p, err
	}
	_, err = p.client.Do(traffic.Order{Do: "reach", To: to, Time: reachPatience})
	return p, err
}

// Close ends both.
func (p *pair) Close() error {
	var errs []error
	for _, g := range []*traffic.Generator{p.client, p.server} {
		if g != nil {
			errs = append(errs, g.Close())
		}
	}
	return errors.Join(errs...)
}

// pin keeps the client on the first processor, the server on the second.
func (p *pair) pin() error {
	return errors.Join(netlab.Pin(p.client.PID(), 0), netlab.Pin(p.server.PID(), 1))
}

// throughput is that of one TCP stream, in Gbit/s.
func (p *pair) throughput(d time.Duration) bench.Measure {
	return p.measure(traffic.Order{Do: "stream", Time: d}, 1e9)
}

// rate is that of round trips on one connection.
func (p *pair) rate(d time.Duration) bench.Measure {
	return p.measure(traffic.Order{Do: "rr", Time: d}, 1)
}

// connections is how many are made a second, by 16 clients.
func (p *pair) connections(d time.Duration) bench.Measure {
	return p.measure(traffic.Order{Do: "crr", Time: d, Clients: 16}, 1)
}

func (p *pair) measure(o traffic.Order, unit float64) bench.Measure {
	o.To = p.to
	return func(context.Context) (float64, error) {
		r, err := p.client.Do(o)
		return r.PerSecond / unit, err
	}
}

// datagrams is how many arrive a second, of a size, when as many are sent as go.
func (p *pair) datagrams(size int, d time.Duration) bench.Measure {
	return func(ctx context.Context) (float64, error) {
		if _, err := p.server.Do(traffic.Order{Do: "count"}); err != nil {
			return 0, err
		}
		if _, err := p.client.Do(traffic.Order{Do: "udp", To: p.to, Time: d, Size: size}); err != nil {
			return 0, err
		}
		if err := pause(ctx); err != nil { // what is on its way arrives
			return 0, err
		}
		r, err := p.server.Do(traffic.Order{Do: "count"})
		return r.PerSecond, err
	}
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(50 * time.Millisecond):
		return nil
	}
}
