package dataplane

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"tulle/cmd/tulle-bench/internal/bench"
	"tulle/cmd/tulle-bench/internal/netlab"
	"tulle/cmd/tulle-bench/internal/traffic"
	"tulle/policy/api"
)

// kernelPeer is what most scenarios are held against.
const kernelPeer = "kernel VXLAN-GBP, iptables rules as silk's"

// rig is Tulle and a peer, each on an underlay of its own, with a pair of
// generators each.
type rig struct {
	tulle  *tulle
	kernel *netlab.Kernel
	ours   *pair
	peer   *pair
	closes []io.Closer // in this order backwards
}

// Close ends all of it.
func (r *rig) Close() error {
	var errs []error
	for _, c := range slices.Backward(r.closes) {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

func (r *rig) keep(c io.Closer) { r.closes = append(r.closes, c) }

// underlay is one of two hosts, with or without what saves work per packet.
func (r *rig) underlay(plain bool) (*netlab.Underlay, error) {
	u, err := netlab.NewUnderlay()
	if err != nil {
		return nil, err
	}
	r.keep(u)
	if plain {
		err = u.PlainNIC()
	}
	return u, err
}

// setOurs starts Tulle with a pair of containers.
func (r *rig) setOurs(ctx context.Context, plain bool, cells int, mode api.TunnelMode) error {
	u, err := r.underlay(plain)
	if err != nil {
		return err
	}
	if r.tulle, err = newTulle(ctx, u, cells, mode); err != nil {
		return err
	}
	r.keep(r.tulle)
	if r.ours, err = r.tulle.pair(ctx); err != nil {
		return err
	}
	r.keep(r.ours)
	return nil
}

// setKernel does the same with the kernel's cells and one policy.
func (r *rig) setKernel(ctx context.Context, plain bool, cells int) error {
	u, err := r.underlay(plain)
	if err != nil {
		return err
	}
	cell := netlab.NewKernel
	if cells == 1 {
		cell = netlab.NewKernelPair
	}
	if r.kernel, err = cell(u); err != nil {
		return err
	}
	r.keep(r.kernel)
	if err := r.kernel.Policies(1, 0); err != nil {
		return err
	}
	r.peer, err = newPair(ctx, r.kernel.Containers[0], r.kernel.Containers[1], r.kernel.Addrs[1])
	if err != nil {
		return err
	}
	r.keep(r.peer)
	return nil
}

// besideKernel runs f with Tulle and the kernel's cells set up.
func besideKernel(ctx context.Context, run *bench.Run, plain bool, cells int, f func(*rig) error) (err error) {
	r := &rig{}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := r.setOurs(ctx, plain, cells, api.ModeVXLAN); err != nil {
		return err
	}
	if err := r.setKernel(ctx, plain, cells); err != nil {
		return err
	}
	run.Note("MTU of the endpoints %d, of the underlay %d; TCP by %s; the peer's rules are those of %s", r.tulle.mtu, netlab.MTU, traffic.Congestion(), r.kernel.Filter)
	return f(r)
}

// Lengths of one run.
const (
	fullRun  = 3 * time.Second
	quickRun = 600 * time.Millisecond
)

func length(r *bench.Run) time.Duration {
	return r.Time(fullRun, quickRun)
}
