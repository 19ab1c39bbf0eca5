package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tulle/cmd/internal/conf"
	"tulle/overlay"
	"tulle/overlay/egress"
	"tulle/overlay/trafficlog"
)

// egressConfig is what containers may reach outside the overlay beside what their
// security groups say, and what is written down about it.
type egressConfig struct {
	HostServices []hostService `yaml:"host_services"` // IP:PORT/tcp or udp of this host that containers may reach
	DenyNetworks struct {
		Always  []network `yaml:"always"`  // that no rule opens
		Running []network `yaml:"running"` // likewise, to apps and tasks
		Staging []network `yaml:"staging"` // likewise, to staging
	} `yaml:"deny_networks"`
	Connections struct {
		Rate           int  `yaml:"rate"`            // new TCP connections a second of a container to one address and port; 0: any number
		Burst          int  `yaml:"burst"`           // so many at once; 0: ten seconds' worth
		DryRun         bool `yaml:"dry_run"`         // log what is over the rate, and allow it
		PerDestination int  `yaml:"per_destination"` // open at one time, of a container with one address and port; 0: as open
		Open           int  `yaml:"open"`            // open at one time, of a container; 0: 15000
	} `yaml:"connections"`
	Static      bool     `yaml:"static"`          // the rules that came with the attach hold, not the policy server's groups
	Log         string   `yaml:"log"`             // file of the traffic log; "": none
	LogAll      bool     `yaml:"log_all"`         // all that is allowed, not only what rules want logged
	LogRefused  bool     `yaml:"log_refused"`     // what is refused
	LogC2C      bool     `yaml:"log_c2c"`         // what policies allow between containers
	LogC2CNo    bool     `yaml:"log_c2c_refused"` // what is refused between containers
	LogDenied   int      `yaml:"log_denied"`      // refusals a second of a container that are logged; 0: 1
	LogUDP      int      `yaml:"log_udp"`         // likewise accepted UDP conversations; 0: 100
	LogSwitch   loopback `yaml:"log_switch"`      // HTTP on a loopback address, where the original's /iptables-c2c-logging is; "": none
	NATLogBytes int64    `yaml:"nat_log_bytes"`   // of the record of who had which source port; 0: 64 MiB
}

// hostService is an address of this host.
type hostService struct{ egress.HostService }

func (h *hostService) UnmarshalText(b []byte) error {
	at, protocol, _ := strings.Cut(string(b), "/")
	a, err := netip.ParseAddrPort(at)
	if err != nil || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().Zone() != "" || protocol != "tcp" && protocol != "udp" {
		return errors.New("must be one address, port and protocol, like 192.0.2.1:5432/tcp or [2001:db8::1]:5432/tcp")
	}
	h.HostService = egress.HostService{Addr: netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), Protocol: protocol}
	return nil
}

// loopback is an address of this host that it alone reaches.
type loopback struct{ netip.AddrPort }

func (l *loopback) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	a, err := netip.ParseAddrPort(string(b))
	if err != nil || a.Port() == 0 || !a.Addr().IsLoopback() {
		return errors.New("must be a loopback address and a port, like 127.0.0.1:8721")
	}
	l.AddrPort = a
	return nil
}

// network is a CIDR, or one address.
type network struct{ netip.Prefix }

func (n *network) UnmarshalText(b []byte) error {
	if a, err := netip.ParseAddr(string(b)); err == nil && a.Zone() == "" {
		n.Prefix = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())
		return nil
	}
	p, err := netip.ParsePrefix(string(b))
	if err != nil {
		return errors.New("must be a network like 10.0.0.0/8, or an address")
	}
	n.Prefix = p.Masked()
	return nil
}

// checkEgress names what is wrong.
func (c *config) checkEgress() []error {
	var errs []error
	guarded := append(slices.Clone(overlay.GuardedPorts), c.Port, c.WireGuard)
	if _, port, err := net.SplitHostPort(c.Metrics); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err == nil {
			guarded = append(guarded, uint16(n))
		}
	}
	if at := c.Egress.LogSwitch; at.IsValid() {
		guarded = append(guarded, at.Port())
		if c.Egress.Log == "" {
			errs = append(errs, conf.Bad("egress.log_switch", "is of no use without a log"))
		}
	}
	for i, s := range c.Egress.HostServices {
		if slices.Contains(guarded, s.Addr.Port()) {
			errs = append(errs, conf.Bad(fmt.Sprintf("egress.host_services[%d]", i), "is a tunnel's, control or metrics port (%d), which no container may reach", s.Addr.Port()))
		}
	}
	n := c.Egress.Connections
	for _, f := range []struct {
		key   string
		value int64
	}{
		{"connections.rate", int64(n.Rate)}, {"connections.burst", int64(n.Burst)}, {"connections.per_destination", int64(n.PerDestination)}, {"connections.open", int64(n.Open)},
		{"log_denied", int64(c.Egress.LogDenied)}, {"log_udp", int64(c.Egress.LogUDP)}, {"nat_log_bytes", c.Egress.NATLogBytes},
	} {
		if f.value < 0 {
			errs = append(errs, conf.Bad("egress."+f.key, "must not be negative"))
		}
	}
	if n.DryRun && n.Rate == 0 {
		errs = append(errs, conf.Bad("egress.connections.dry_run", "is of no use without a rate"))
	}
	return errs
}

func (e *egressConfig) daemon() overlay.EgressConfig {
	o := overlay.EgressConfig{
		Static: e.Static, Log: e.Log, LogDenied: e.LogDenied, LogUDP: e.LogUDP, LogSwitch: e.LogSwitch.AddrPort, NATLog: e.NATLogBytes,
		Logged:     trafficlog.Switches{Allowed: e.LogAll, Denied: e.LogRefused, ContainersAllowed: e.LogC2C, ContainersDenied: e.LogC2CNo},
		DenyAlways: prefixes(e.DenyNetworks.Always), DenyRunning: prefixes(e.DenyNetworks.Running), DenyStaging: prefixes(e.DenyNetworks.Staging),
		Limits: egress.Limits{Rate: e.Connections.Rate, Burst: e.Connections.Burst, DryRun: e.Connections.DryRun,
			PerDestination: e.Connections.PerDestination, Open: e.Connections.Open},
	}
	for _, s := range e.HostServices {
		o.HostServices = append(o.HostServices, s.HostService)
	}
	return o
}

func prefixes(list []network) []netip.Prefix {
	var out []netip.Prefix
	for _, n := range list {
		out = append(out, n.Prefix)
	}
	return out
}
