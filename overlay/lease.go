package overlay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/endpoint"
	"tulle/policy/api"
)

const (
	// skew is how far wall clocks of cells and servers may lie apart; it counts
	// where a lease is judged by wall time, after a boot without a server.
	skew = 5 * time.Minute
	// margin is what a lease ends early by on this host's own clock: a fence that
	// is checked once a second, and packets on their way.
	margin        = 5 * time.Second
	fenceEvery    = time.Second
	renewAtMost   = 10 * time.Minute
	leasePatience = 5 * time.Second
)

var (
	errLeaseChanged = errors.New("the policy server gave another lease")
	errFenced       = errors.New("the lease has run out")
)

type bootClock struct{}

func (bootClock) Boot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("clock_gettime(CLOCK_BOOTTIME): " + err.Error()) // since Linux 2.6.39 it cannot fail
	}
	return time.Duration(ts.Nano())
}

func (bootClock) BootID() (string, error) { return readBootID() }
func (bootClock) Wall() time.Time         { return time.Now() }

// alive reports whether a journalled lease still holds.
func (d *Daemon) alive(l endpoint.Lease) bool {
	if l.BootID == d.bootID {
		return d.cfg.Clock.Boot() < l.Expires-margin
	}
	return d.cfg.Clock.Wall().Before(l.Wall.Add(-skew))
}

// ports are where a life listens.
type ports struct{ vxlan, wireguard uint16 }

// obtain is ask where the time of publication does not matter.
func (d *Daemon) obtain(ctx context.Context, at ports) (endpoint.Lease, error) {
	l, _, err := d.ask(ctx, at)
	return l, err
}

// known is the revision at which others know what a lease was asked with.
type known struct {
	epoch    api.Epoch
	revision api.Revision
}

// ask asks the server once. Time counts from before the request.
func (d *Daemon) ask(ctx context.Context, at ports) (endpoint.Lease, known, error) {
	d.leasing.Lock()
	defer d.leasing.Unlock()
	held, _ := d.ledger.Lease()
	boot, wall := d.cfg.Clock.Boot(), d.cfg.Clock.Wall()
	request := api.LeaseRequest{
		Underlay: d.cfg.Underlay, Port: at.vxlan, Mode: d.cfg.Mode,
		Subnet: held.Subnet, Generation: held.Generation,
	}
	if d.cfg.Mode == api.ModeWireGuard {
		request.WireGuardPort = at.wireguard
		request.Key, request.NextKey = d.published()
		request.EncapsulationKey = d.secrets.published()
	}
	got, err := d.client.Lease(ctx, request)
	if err != nil {
		return endpoint.Lease{}, known{}, err
	}
	life := time.Duration(got.Seconds) * time.Second
	if !got.Network.Contains(got.Subnet.Addr()) || life <= 0 || got.Generation == 0 || got.Generation>>32 != 0 {
		return endpoint.Lease{}, known{}, fmt.Errorf("the policy server's lease makes no sense: %+v", got)
	}
	k := known{got.Epoch, got.Revision}
	got.Epoch, got.Revision = "", 0 // of the answer, not of the lease
	l := endpoint.Lease{Lease: got, BootID: d.bootID, Expires: boot + life, Wall: wall.Add(life), Port: at.vxlan, WireGuard: at.wireguard}
	return l, k, nil
}

// leaseFor is the lease for a new life: the journalled one if it holds, else what
// the server gives, for which it waits.
func (d *Daemon) leaseFor(ctx context.Context, at ports) (endpoint.Lease, error) {
	if l := d.nextLease; l != nil {
		d.nextLease = nil
		return *l, d.adopt(*l)
	}
	if l, ok := d.ledger.Lease(); ok && d.alive(l) {
		return l, nil
	}
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, leasePatience) {
		l, err := d.obtain(ctx, at)
		if err == nil {
			return l, d.adopt(l)
		}
		if ctx.Err() != nil {
			return endpoint.Lease{}, ctx.Err()
		}
		d.log.Warn("no lease yet", "err", err, "retry_in", pause)
		if !sleep(ctx, pause/2+rand.N(pause/2)) {
			return endpoint.Lease{}, ctx.Err()
		}
	}
}

// moved asks, after a clash of the journalled lease's network, whether that is still
// the overlay network: it may have been changed for this very clash. If so, the next
// life begins with a lease of the new one.
func (d *Daemon) moved(ctx context.Context) bool {
	held, ok := d.ledger.Lease()
	if !ok {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, leasePatience)
	defer cancel()
	got, err := d.obtain(ctx, ports{held.Port, held.WireGuard})
	if err != nil || got.Network == held.Network {
		return false
	}
	d.nextLease = &got
	return true
}

// adopt journals a lease. Endpoints of another subnet have lost their addresses.
func (d *Daemon) adopt(l endpoint.Lease) error {
	if old, ok := d.ledger.Lease(); ok && old.Subnet != l.Subnet.Masked() {
		for _, e := range d.ledger.List() {
			d.log.Error("endpoint ends: the cell's lease is another", "container", e.Container, "address", e.Address, "lease", l.Subnet)
			if err := d.forget(e.Container); err != nil {
				return err
			}
		}
	}
	return d.ledger.SetLease(l)
}

// keepLease renews at a third of the lease's time and ends with errFenced or
// errLeaseChanged. The port is published by the first renewal.
func (l *life) keepLease(ctx context.Context) error {
	fence := time.NewTicker(fenceEvery)
	defer fence.Stop()
	renewed := make(chan error, 1)
	next := l.d.cfg.Clock.Boot() // at once: the server must know this port
	busy, again := false, false  // again: what is to be published changed while the server was being told
	failures := 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.renew:
			next, again = 0, busy
		case err := <-renewed:
			busy = false
			switch {
			case errors.Is(err, errLeaseChanged):
				return err
			case err != nil:
				failures++
				l.d.log.Warn("lease not renewed", "err", err)
				next = l.d.cfg.Clock.Boot() + min(leasePatience*time.Duration(failures), time.Minute)
			default:
				failures = 0
				held, _ := l.d.ledger.Lease()
				next = l.d.cfg.Clock.Boot() + min(time.Duration(held.Seconds)*time.Second/3, l.d.cfg.renewAtMost())
				if again {
					next, again = 0, false
				}
			}
		case <-fence.C:
		}
		if held, _ := l.d.ledger.Lease(); !l.d.alive(held) {
			return errFenced
		}
		if !busy && l.d.cfg.Clock.Boot() >= next {
			busy = true
			l.wg.Go(func() { renewed <- l.renewLease(ctx) })
		}
	}
}

// renewNow has the lease renewed without waiting for its time.
func (l *life) renewNow() {
	select {
	case l.renew <- struct{}{}:
	default:
	}
}

// same reports whether a lease is this life's.
func (l *life) same(got endpoint.Lease) bool {
	return got.Network == l.lease.Network && got.Subnet == l.lease.Subnet && got.Generation == l.lease.Generation
}

func (l *life) renewLease(ctx context.Context) error {
	got, err := l.d.obtain(ctx, l.ports())
	if err != nil {
		return err
	}
	if !l.same(got) {
		// For the next life: this one's endpoints must be closed before their
		// addresses go.
		l.d.nextLease = &got
		return fmt.Errorf("%w: %s generation %d, it was %s generation %d", errLeaseChanged, got.Subnet, got.Generation, l.lease.Subnet, l.lease.Generation)
	}
	return l.d.ledger.SetLease(got)
}

func sleep(ctx context.Context, t time.Duration) bool {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
