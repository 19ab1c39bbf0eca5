package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"tulle/cmd/tulle-bench/internal/bench"
	"tulle/policy/api"
)

// peerCounts are how many cells the measured ones know besides each other.
var peerCounts = []int{10, 100, 1000}

func peers() bench.Scenario {
	const alone = "ourselves, two cells alone"
	var metrics []bench.Metric
	for i, n := range peerCounts {
		for _, m := range []bench.Metric{{Name: "throughput", Unit: "Gbit/s"}, {Name: "rate", Unit: "1/s"}, {Name: "crr", Unit: "1/s"}} {
			metrics = append(metrics, bench.Metric{Name: fmt.Sprintf("%s-%d", m.Name, n), Unit: m.Unit, Peer: alone, Long: i > 0})
		}
	}
	return bench.Scenario{
		Name:    "peers",
		Summary: "one pair across cells that know 10, 100 and 1,000 other cells",
		Metrics: metrics,
		Run:     measurePeers,
	}
}

func measurePeers(ctx context.Context, run *bench.Run) (err error) {
	many, alone := &rig{}, &rig{}
	defer func() { err = errors.Join(err, many.Close(), alone.Close()) }()
	for _, r := range []*rig{many, alone} {
		if err := r.setOurs(ctx, false, 2, api.ModeVXLAN); err != nil {
			return err
		}
	}
	run.Note("MTU of the endpoints %d; the further cells are entered at the policy server and send nothing", many.tulle.mtu)
	d := length(run)
	for _, n := range peerCounts {
		name := func(metric string) string { return fmt.Sprintf("%s-%d", metric, n) }
		if !run.Wants(name("throughput"), name("rate"), name("crr")) {
			continue
		}
		if err := many.tulle.knowPeers(ctx, run.Count(n)); err != nil {
			return err
		}
		if err := run.Pairs(ctx, name("throughput"), many.ours.throughput(d), alone.ours.throughput(d)); err != nil {
			return err
		}
		if err := run.Pairs(ctx, name("rate"), many.ours.rate(d), alone.ours.rate(d)); err != nil {
			return err
		}
		if err := run.Pairs(ctx, name("crr"), many.ours.connections(d), alone.ours.connections(d)); err != nil {
			return err
		}
	}
	return nil
}

// knowPeers enters cells that are nowhere, with leases of 32 addresses each, until
// there are n, and waits until every cell knows them.
func (t *tulle) knowPeers(ctx context.Context, n int) error {
	var own []netip.Prefix
	for _, c := range t.cells {
		s, err := c.Status(ctx)
		if err != nil {
			return err
		}
		own = append(own, s.Lease)
	}
	network := t.world.Network.Addr().As4()
	for ; t.peers < n; t.far++ {
		subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{network[0], network[1], byte(t.far >> 3), byte(t.far << 5)}), 27)
		if slices.ContainsFunc(own, subnet.Overlaps) {
			continue
		}
		underlay := netip.AddrFrom4([4]byte{198, 18, byte(t.far >> 8), byte(t.far)})
		if err := t.world.AddPeer(ctx, fmt.Sprintf("far-%d", t.far), underlay, subnet); err != nil {
			return err
		}
		t.peers++
	}
	for _, c := range t.cells {
		for {
			s, err := c.Status(ctx)
			if err != nil {
				return err
			}
			if len(s.Peers) >= n+len(t.cells)-1 {
				break
			}
			if err := pause(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}
