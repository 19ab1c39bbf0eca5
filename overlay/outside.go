package overlay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"

	"tulle/overlay/control"
	"tulle/overlay/datapath"
	"tulle/overlay/dns"
	"tulle/overlay/egress"
	"tulle/overlay/egress/natlog"
	"tulle/overlay/egress/rules"
	"tulle/overlay/endpoint"
	"tulle/overlay/trafficlog"
	"tulle/overlay/whois"
	"tulle/policy"
	"tulle/policy/api"
)

// EgressConfig is what containers may reach outside the overlay beside their
// security groups, and what is written down about it. The zero value will do.
type EgressConfig struct {
	HostServices []egress.HostService
	// Networks that no rule opens: to anybody, to apps and tasks, to staging.
	DenyAlways, DenyRunning, DenyStaging []netip.Prefix
	Limits                               egress.Limits
	// Static: the rules that came with the attach hold, not the control plane's groups.
	Static bool
	// Log is the file of the traffic log; "": none. Logged is what is written to it at
	// first, beside what rules want logged.
	Log       string
	Logged    trafficlog.Switches
	LogDenied int // lines a second and container; 0: 1
	LogUDP    int // likewise of accepted datagram conversations; 0: 100
	// LogSwitch is a loopback address for the original's switch of what is allowed
	// between containers, over HTTP; the zero AddrPort: none.
	LogSwitch netip.AddrPort
	NATLog    int64 // bytes of the record of who had which source port; 0: 64 MiB
}

// outside is a life's way out of the overlay and into it.
type outside struct {
	l       *life
	e       *egress.Egress
	nat     *natlog.Log
	traffic traffic
	server  []netip.AddrPort // the policy server's internal API

	// Guarded by life.mu.
	groups map[string]policy.SecurityGroup
	order  []string        // GUIDs, sorted
	said   map[string]bool // bad rules that the log has
}

// openOutside makes what containers' packets leave by. The path is not there yet.
func (l *life) openOutside() (_ *outside, err error) {
	cfg := &l.d.cfg.Egress
	o := &outside{l: l, groups: map[string]policy.SecurityGroup{}, said: map[string]bool{}, server: l.serverAddresses()}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.closeFiles())
		}
	}()
	begun := strconv.FormatInt(l.d.cfg.Clock.Wall().UnixNano(), 36)
	if o.nat, err = natlog.Open(natlog.Options{Dir: l.d.cfg.StateDir, Bytes: cfg.NATLog}, begun); err != nil {
		return nil, err
	}
	opt := egress.Options{
		MTU: l.mtu, Overlay: l.lease.Network, Gateway: l.lease.Subnet.Addr(), Resolver: dns.Address.Addr(), Resolver6: dns.Address6.Addr(), IPv4Only: !l.ipv6(),
		Services: map[uint16]egress.Service{
			dns.Address.Port(): func(who egress.Identity, c net.Conn) { l.resolver.ServeConn(who.Address, c) },
			whois.Port:         func(who egress.Identity, c net.Conn) { l.answers.Serve(who.Address, c) },
		},
		Deliver: o.deliver, HostServices: cfg.HostServices, Limits: cfg.Limits, NAT: o.nat, Log: l.d.log,
	}
	if err := o.traffic.open(l); err != nil {
		return nil, err
	}
	opt.Traffic = o.traffic.log
	if o.e, err = egress.New(opt); err != nil {
		return nil, err
	}
	return o, nil
}

func (o *outside) deliver(to netip.Addr, incarnation uint64, pieces ...[]byte) error {
	if r := o.l.path.Deliver(to, incarnation, pieces...); r != datapath.Passed {
		return errors.New(r.Explain())
	}
	return nil
}

// close ends every conversation. The path is closed already, or will be.
func (o *outside) close() error {
	o.e.Close()
	return o.closeFiles()
}

func (o *outside) closeFiles() error {
	var err error
	if o.nat != nil {
		err = o.nat.Close()
	}
	return errors.Join(err, o.traffic.close())
}

// serverAddresses are where the control plane is now; no container may go there.
func (l *life) serverAddresses() (all []netip.AddrPort) {
	for _, server := range l.d.cfg.servers() {
		u, err := url.Parse(server)
		if err != nil {
			continue // refused at the start
		}
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil {
			port = 443
		}
		addrs, _ := net.DefaultResolver.LookupNetIP(context.Background(), "ip", u.Hostname())
		for _, a := range addrs {
			all = append(all, netip.AddrPortFrom(a.Unmap(), uint16(port)))
		}
	}
	return all
}

// enter makes a container known before its first packet is read. The caller holds
// life.mu.
func (o *outside) enter(e endpoint.Endpoint) {
	o.e.Attach(identityOf(e), incarnationUnder(o.l.lease, e), o.compileLocked(e))
}

func (o *outside) leave(e endpoint.Endpoint) {
	o.e.Detach(e.Address, incarnationUnder(o.l.lease, e))
	o.l.askers.forget(e.Address)
}

func identityOf(e endpoint.Endpoint) egress.Identity {
	return egress.Identity{Container: e.Container, Address: e.Address, App: string(e.AppID), AppName: e.App.Name, Space: e.App.Space, Org: e.App.Org}
}

// compileLocked is what the container may reach now.
func (o *outside) compileLocked(e endpoint.Endpoint) *rules.Set {
	cfg := &o.l.d.cfg.Egress
	workload := e.Workload
	if workload == "" {
		workload = policy.WorkloadApp
	}
	deny := cfg.DenyAlways
	if workload == policy.WorkloadStaging {
		deny = slices.Concat(deny, cfg.DenyStaging)
	} else {
		deny = slices.Concat(deny, cfg.DenyRunning)
	}
	var list []rules.Group
	if cfg.Static {
		list = []rules.Group{{Name: "attach of " + e.Container, Rules: e.Rules}}
	} else {
		for _, guid := range o.order {
			if g := o.groups[guid]; g.HoldsFor(workload, e.App.Space, e.App.Org+"/"+e.App.Space) {
				list = append(list, rules.Group{Name: g.Name, Rules: g.Rules})
			}
		}
	}
	set, bad := rules.Compile(list, deny)
	for _, err := range bad {
		if text := err.Error(); !o.said[text] {
			o.said[text] = true
			o.l.d.log.Error("security group has a bad rule, the others stand", "err", err)
		}
	}
	return set
}

// take puts what changed of the security groups in force, for the containers it
// concerns.
func (o *outside) take(c *api.GroupChange) {
	l := o.l
	type due struct {
		e   endpoint.Endpoint
		set *rules.Set
	}
	var all []due
	l.mu.Lock()
	if c.Whole {
		clear(o.groups)
	}
	for _, guid := range c.Removed {
		delete(o.groups, guid)
	}
	for _, g := range c.Set {
		o.groups[g.GUID] = policy.SecurityGroup(g)
	}
	o.order = o.order[:0]
	for guid := range o.groups {
		o.order = append(o.order, guid)
	}
	slices.Sort(o.order)
	if !l.d.cfg.Egress.Static {
		for _, at := range l.attached {
			if !at.waiting {
				all = append(all, due{at.e, o.compileLocked(at.e)})
			}
		}
	}
	l.mu.Unlock()
	for _, d := range all {
		o.e.SetRules(d.e.Address, incarnationUnder(l.lease, d.e), d.set)
	}
	l.d.log.Info("security group rules were updated", "groups", len(o.order), "containers", len(all))
}

// GuardedPorts are never reached on a cell, nor listed as services of this host: the
// control plane's, the tunnels' and their metrics'.
var GuardedPorts = []uint16{4003, 4103, 4789, 51820, 9478, 9479, 9480}

// surroundLocked is where the cells and what must not be reached are now.
func (o *outside) surroundLocked() *egress.Surroundings {
	l := o.l
	s := &egress.Surroundings{Cells: map[netip.Addr]bool{l.d.cfg.Underlay: true}, Guarded: map[egress.HostService]bool{}, GuardedOnCells: map[uint16]bool{}}
	guard := func(a netip.Addr, port uint16, protocol string) {
		if port != 0 {
			s.Guarded[egress.HostService{Addr: netip.AddrPortFrom(a, port), Protocol: protocol}] = true
		}
	}
	for _, p := range GuardedPorts {
		s.GuardedOnCells[p] = true
	}
	if a, err := netip.ParseAddrPort(l.metricsAddr); err == nil {
		s.GuardedOnCells[a.Port()] = true
	}
	if at := l.d.cfg.Egress.LogSwitch; at.IsValid() {
		s.GuardedOnCells[at.Port()] = true
	}
	own := l.ports()
	for _, p := range []uint16{own.vxlan, own.wireguard} {
		if p != 0 {
			s.GuardedOnCells[p] = true
		}
	}
	for _, beside := range slices.Concat(l.sending, l.beside) {
		guard(beside.Local().Addr(), beside.Local().Port(), "udp")
	}
	for _, at := range o.server {
		guard(at.Addr(), at.Port(), "tcp")
	}
	for _, p := range l.world.peers {
		s.Cells[p.Underlay] = true
		guard(p.Underlay, p.Port, "udp")
		guard(p.Underlay, p.WireGuardPort, "udp")
		guard(p.Underlay, DefaultPort, "udp")
	}
	return s
}

// bindPorts binds the ports that came with an attach; with an error none is left.
func (o *outside) bindPorts(e endpoint.Endpoint) error {
	for i, p := range e.Ports {
		if err := o.e.AddForward(e.Address, forwardOf(p)); err != nil {
			for _, q := range e.Ports[:i] {
				f := forwardOf(q)
				o.e.RemoveForward(e.Container, f.Protocol, f.Host)
			}
			return portError(e.Container, err)
		}
	}
	return nil
}

func portError(container string, err error) error {
	switch {
	case errors.Is(err, egress.ErrTaken):
		return control.Errorf(control.CodePortTaken, "container %s: %v", container, err)
	case errors.Is(err, egress.ErrForward):
		return control.Errorf(control.CodeBadRequest, "container %s: %v", container, err)
	}
	return err
}

func forwardOf(p control.Port) egress.Forward {
	f := egress.Forward{Protocol: p.Protocol, Port: p.Port, TLS: p.TLS, Keep: p.Keep}
	if f.Protocol == "" {
		f.Protocol = "tcp"
	}
	host := p.HostIP.Unmap()
	if !host.IsValid() {
		host = netip.IPv4Unspecified()
	}
	f.Host = netip.AddrPortFrom(host, p.HostPort)
	return f
}
