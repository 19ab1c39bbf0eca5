package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"

	"tulle/overlay/control"
	"tulle/overlay/datapath"
	"tulle/overlay/dns"
	"tulle/overlay/egress"
	"tulle/overlay/endpoint"
	"tulle/overlay/fib"
	"tulle/overlay/netcfg"
	"tulle/overlay/udp"
	"tulle/overlay/whois"
	"tulle/overlay/wireguard"
	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/table"
)

// life is what a Daemon has under one lease.
type life struct {
	d         *Daemon
	lease     endpoint.Lease
	mtu       int
	socket    *udp.Socket
	sending   []*udp.Socket     // that plain VXLAN goes from as well
	inside    *udp.Socket       // WireGuard's; nil in mode vxlan
	beside    []*udp.Socket     // that it sends from as well
	tunnel    *wireguard.Tunnel // nil in mode vxlan
	resumed   bool              // the lease is a former life's, at the same ports
	path      *datapath.Path
	resolver  *dns.Resolver
	names     *dns.Names
	rotation  *rotation // nil in mode vxlan
	answers   *whois.Server
	registrar *registrar
	terminals *terminals
	renew     chan struct{} // capacity 1: renew the lease now
	fail      context.CancelCauseFunc
	wg        sync.WaitGroup
	lines     sync.WaitGroup // those who watch lifelines

	outside     *outside
	askers      askers   // of whois
	appNames    appNames // of callers
	metricsAddr string   // as bound; "": none

	locks keyed // one attach or detach at a time a container

	mu       sync.Mutex // guards the fields below; before Path's own lock
	world    *world
	started  bool          // the first table of this life is published
	changed  chan struct{} // closed and replaced with every event
	attached map[string]*attachment
	hosted   map[policy.AppID]api.Revision // apps registered here, and since which revision
	hostedAt api.Epoch
}

// live builds a life, runs it until ctx ends (nil) or it cannot go on, and
// closes all of it.
func (d *Daemon) live(ctx context.Context, metrics string) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l := &life{d: d, renew: make(chan struct{}, 1), fail: cancel, changed: make(chan struct{}), metricsAddr: metrics,
		attached: map[string]*attachment{}, hosted: map[policy.AppID]api.Revision{}}
	if l.mtu = d.cfg.MTU; l.mtu == 0 {
		if l.mtu, err = mtuOver(d.cfg.Underlay, d.cfg.Mode); err != nil {
			return err
		}
	}
	if err := l.bind(); err != nil {
		return err
	}
	defer l.unbind()
	held, there := d.ledger.Lease()
	l.resumed = there && d.alive(held) && l.ports() == ports{held.Port, held.WireGuard}
	if l.lease, err = d.leaseFor(ctx, l.ports()); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if err := l.clashes(); err != nil {
		return err
	}
	if err := l.build(); err != nil {
		return err
	}
	// After the path, whose readers hand it packets and whose devices it writes.
	defer func() { err = errors.Join(err, l.outside.close()) }()
	defer func() { err = errors.Join(err, l.path.Close()) }()
	if l.tunnel != nil {
		defer func() { err = errors.Join(err, l.tunnel.Close()) }()
		l.rotation = newRotation(l)
	}
	defer l.resolver.Close()
	defer l.answers.Close()
	defer func() {
		cancel(nil)
		l.wg.Wait() // with the last handler, so that no lifeline is added any more
		l.closeLifelines()
		l.lines.Wait()
	}()
	l.terminals = newTerminals(d)
	defer l.terminals.close()
	if err := l.restore(ctx); err != nil {
		return err
	}
	listener, err := control.Listen(d.cfg.Socket, 0o660)
	if err != nil {
		return err
	}
	d.life.Store(l)
	defer d.life.Store(nil)
	server := &control.Server{Handler: l, TLS: l, Keys: l, Authorizer: d.auth, Log: d.log}
	l.run(func() error { return server.Serve(ctx, listener) })
	l.run(func() error { return l.registrar.run(ctx) })
	l.run(func() error { return l.keepLease(ctx) })
	if l.rotation != nil {
		l.run(func() error { return l.rotation.run(ctx) })
		l.run(func() error { return l.keepSecrets(ctx) })
	}
	l.run(func() error { l.outside.traffic.gather(ctx); return nil })
	l.run(func() error { return l.outside.traffic.serveSwitch(ctx) })
	l.run(func() error {
		if err := d.client.Watch(ctx, l.take); ctx.Err() == nil {
			return err
		}
		return nil
	})
	d.log.Info("cell is up", "lease", l.lease.Subnet, "generation", l.lease.Generation, "underlay", l.socket.Local(), "mode", d.cfg.Mode, "mtu", l.mtu, "socket", d.cfg.Socket)
	ready := Ready{Ready: true, Cell: d.client.Cell(), Underlay: l.socket.Local().String(), Mode: string(d.cfg.Mode), Lease: l.lease.Subnet.String(),
		Socket: d.cfg.Socket, Metrics: metrics, MTU: l.mtu, PID: os.Getpid()}
	if l.tunnel != nil {
		ready.WireGuard, ready.Key, ready.Tunnel = l.tunnel.Local().String(), l.tunnel.Public().String(), l.tunnel.Address().String()
		d.log.Info("tunnels are encrypted", "wireguard", ready.WireGuard, "key", ready.Key, "tunnel", ready.Tunnel)
	}
	d.cfg.Ready(ready)
	<-ctx.Done()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return nil
}

// run starts one of the life's goroutines; its error ends the life.
func (l *life) run(f func() error) {
	l.wg.Go(func() {
		if err := f(); err != nil {
			l.fail(err)
		}
	})
}

// clashes refuses an overlay network that holds what this host is or needs.
func (l *life) clashes() error {
	things, err := netcfg.HostNetworks()
	if err != nil {
		return err
	}
	things = append(things, netcfg.Address("the underlay address", l.d.cfg.Underlay))
	for _, r := range l.d.cfg.Resolvers {
		things = append(things, netcfg.Address("a resolver", r.Addr()))
	}
	if len(l.d.cfg.Resolvers) == 0 {
		for _, a := range hostResolvers(cmp.Or(l.d.cfg.ResolvConf, dns.DefaultResolvConf)) {
			things = append(things, netcfg.Address("a resolver", a))
		}
	}
	for _, server := range l.d.cfg.servers() {
		u, err := url.Parse(server)
		if err != nil {
			continue // refused at the start
		}
		// A name that does not resolve now clashes with nothing yet.
		addrs, _ := net.DefaultResolver.LookupNetIP(context.Background(), "ip", u.Hostname())
		for _, a := range addrs {
			things = append(things, netcfg.Address("the policy server", a))
		}
	}
	err = netcfg.Clashes(l.lease.Network, things...)
	if l.ipv6() {
		err = errors.Join(err, netcfg.Clashes(fib.TwinPrefix(l.lease.Network), things...))
	}
	return err
}

// minMTU6 is what IPv6 needs of a device (RFC 8200 section 5).
const minMTU6 = 1280

// ipv6 says whether containers have IPv6 addresses: the twins of their IPv4 ones.
func (l *life) ipv6() bool { return !l.d.cfg.IPv4Only && l.mtu >= minMTU6 }

// address6 is an endpoint's, the zero Prefix if it has none.
func (l *life) address6(e endpoint.Endpoint) netip.Prefix {
	if !l.ipv6() {
		return netip.Prefix{}
	}
	return single(fib.Twin(e.Address))
}

// hostResolvers are the nameserver lines of resolv.conf(5).
func hostResolvers(path string) []netip.Addr {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil // the resolver says what is missing
	}
	var all []netip.Addr
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			all = append(all, a)
		}
	}
	return all
}

// build makes tables, fib, resolver and Path over the lease. Nothing is judged
// before Path.Start.
func (l *life) build() error {
	f, err := fib.New(l.lease.Network, l.lease.Subnet)
	if err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	tunnels, err := l.startTunnel()
	if err != nil {
		return err
	}
	if l.outside, err = l.openOutside(); err != nil {
		if l.tunnel != nil {
			err = errors.Join(err, l.tunnel.Close())
		}
		return err
	}
	policies, reach := table.New(), table.New()
	var network6 netip.Prefix
	var resolver6 netip.Addr
	if l.ipv6() {
		network6, resolver6 = fib.Network6, dns.Address6.Addr()
	}
	l.names = dns.NewNames(l.lease.Subnet)
	l.resolver = dns.New(dns.Options{Upstreams: l.d.cfg.Resolvers, ResolvConf: l.d.cfg.ResolvConf, Overlay: l.lease.Network, Network6: network6,
		Names: l.names, EmptyUnknown: l.d.cfg.EmptyUnknown, Log: l.d.log})
	o := datapath.Options{
		MTU: l.mtu, IPv4Only: !l.ipv6(), Conn: l.socket, FIB: f, Policies: policies, Reach: reach,
		Resolver:     l.resolve,
		ResolverAddr: dns.Address.Addr(), ResolverAddr6: resolver6,
		Outside: l.outside.e, Processors: l.d.cfg.Processors,
		Log: l.d.log,
	}
	for _, s := range l.sending {
		o.Beside = append(o.Beside, s)
	}
	if l.tunnel != nil {
		o.Tunnel = l.tunnel
	}
	l.answers = whois.New(l.whois, l.d.log)
	if l.path, err = datapath.New(o); err != nil {
		if l.tunnel != nil {
			err = errors.Join(err, l.tunnel.Close())
		}
		return errors.Join(err, l.answers.Close(), l.resolver.Close(), l.outside.close())
	}
	l.world = newWorld(l.d.client.Cell(), f, policies, reach, l.path, tunnels, l.names)
	l.registrar = newRegistrar(l)
	return nil
}

// resolve is called by the data path's readers.
func (l *life) resolve(ep *fib.Local, src netip.AddrPort, query []byte) {
	at := dns.Address
	if src.Addr().Is6() {
		at = dns.Address6
	}
	l.resolver.Submit(ep.Addr, query, func(answer []byte) { l.path.Reply(src, at, answer) })
}

// take puts an event of the watch in force; its return is the acknowledgement.
func (l *life) take(_ context.Context, e api.Event) error {
	if e.Groups != nil {
		l.outside.take(e.Groups)
		return nil
	}
	if err := l.checkPeers(&e); err != nil {
		l.fail(err)
		return err
	}
	begun := l.d.cfg.Clock.Boot()
	l.mu.Lock()
	before := l.world.epoch
	if err := l.world.take(e); err != nil {
		l.mu.Unlock()
		l.d.log.Error("the policy server's word cannot be taken in", "err", err)
		return err
	}
	first := !l.started
	l.started = true
	l.world.tunnels.begin = false
	epoch, revision, floor := l.world.epoch, l.world.revision, l.world.floor
	var around *egress.Surroundings
	if e.Snapshot != nil || e.Delta != nil && len(e.Delta.PeersSet)+len(e.Delta.PeersRemoved) > 0 {
		around = l.outside.surroundLocked()
	}
	close(l.changed)
	l.changed = make(chan struct{})
	l.mu.Unlock()
	if around != nil {
		l.outside.e.SetSurroundings(around)
	}
	if first {
		l.path.Start()
		l.d.log.Info("first table is in force", "epoch", epoch, "revision", revision)
	}
	l.renamed(e)
	l.d.ledger.Floor(floor)
	if before != epoch {
		// A restored or another store may not know our endpoints.
		l.registrar.changed()
	} else if !l.d.client.Connected() {
		l.registrar.wake() // the first event of a stream: the server is there again
	}
	if e.Heartbeat == nil {
		l.d.metrics.update.Observe((l.d.cfg.Clock.Boot() - begun).Seconds())
	}
	return nil
}

// checkPeers holds peers against the overlay network: at the start a clash is a
// reason not to; later one bad peer must not end the cell, and is left out.
func (l *life) checkPeers(e *api.Event) error {
	var peers *[]api.Peer
	switch {
	case e.Snapshot != nil:
		peers = &e.Snapshot.Peers
	case e.Delta != nil:
		peers = &e.Delta.PeersSet
	default:
		return nil
	}
	l.mu.Lock()
	started := l.started
	l.mu.Unlock()
	good := make([]api.Peer, 0, len(*peers))
	var all []error
	for _, p := range *peers {
		where := netcfg.Address("the underlay address of peer "+p.Name, p.Underlay)
		err := errors.Join(netcfg.Clashes(l.lease.Network, where), netcfg.Clashes(fib.TwinPrefix(l.lease.Network), where))
		if err == nil {
			good = append(good, p)
			continue
		}
		all = append(all, err)
		if started {
			l.d.log.Error("peer is left out", "peer", p.Name, "err", err)
		}
	}
	if !started && len(all) > 0 {
		return errors.Join(all...)
	}
	*peers = good
	return nil
}
