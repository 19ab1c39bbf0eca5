package main

import (
	"cmp"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"

	"tulle/cmd/internal/conf"
	"tulle/overlay"
	"tulle/overlay/control"
	"tulle/policy/api"
)

// config is the daemon's configuration. Paths are relative to the file's
// directory.
type config struct {
	Name        string         `yaml:"name"`         // the cell's, as in its credential
	Server      string         `yaml:"server"`       // https://host:port of the policy server's internal API
	Credentials string         `yaml:"credentials"`  // directory with cell.pem, cell-key.pem, server-ca.pem
	Foundation  *foundationOf  `yaml:"foundation"`   // in the place of the two: a Cloud Foundry's policy server and silk-controller
	StateDir    string         `yaml:"state_dir"`    // journal and holder; never shared with another daemon
	Socket      string         `yaml:"socket"`       // of the local API; default $XDG_RUNTIME_DIR/tulle/celld.sock
	Underlay    netip.Addr     `yaml:"underlay"`     // this host's address that other cells send to
	Port        uint16         `yaml:"port"`         // UDP port of VXLAN; 0: a free one
	Mode        api.TunnelMode `yaml:"mode"`         // wireguard (default) with the peers that have it too, or vxlan, in plain with all; of a foundation vxlan
	WireGuard   uint16         `yaml:"wireguard"`    // UDP port of mode wireguard; 0: a free one
	PostQuantum string         `yaml:"post_quantum"` // off (default), on or required: a post-quantum secret with each peer, of mode wireguard
	IPv4Only    bool           `yaml:"ipv4_only"`    // containers have no IPv6 address
	MTU         int            `yaml:"mtu"`          // of the containers' devices; 0: the underlay's less 110, less 50 in mode vxlan
	Metrics     string         `yaml:"metrics"`      // host:port; "": off
	Allow       []grant        `yaml:"allow"`        // who may attach, beside root and the daemon's own user
	Resolvers   []resolver     `yaml:"resolvers"`    // DNS servers; default: the host's
	DNSUnknown  string         `yaml:"dns_unknown"`  // answer to an internal name that nobody has: nxdomain (default), or empty as Cloud Foundry's
	Egress      egressConfig   `yaml:"egress"`       // what leaves the overlay beside what security groups say
	Hide        []string       `yaml:"hide"`         // directories that contained commands must not see, beside the daemon's own
	LogLevel    slog.Level     `yaml:"log_level"`    // debug, info, warn, error

	// File with the system's roots and ours, for containers; default trust/ca-certificates.crt in state_dir.
	TrustBundle string `yaml:"trust_bundle"`
}

// grant is what a uid may attach; "*" is any.
type grant struct {
	UID    *uint32  `yaml:"uid"`
	Orgs   []string `yaml:"orgs"`
	Spaces []string `yaml:"spaces"`
	Apps   []string `yaml:"apps"` // names or GUIDs
}

func (g grant) Validate() error {
	var errs []error
	if g.UID == nil {
		errs = append(errs, conf.Bad("uid", "is missing"))
	}
	if len(g.Orgs)+len(g.Spaces)+len(g.Apps) == 0 {
		errs = append(errs, conf.Bad("apps", `is missing, as are orgs and spaces; ["*"] allows any app`))
	}
	return errors.Join(errs...)
}

// What an internal name that nobody has is answered with.
const (
	dnsNXDomain = "nxdomain"
	dnsEmpty    = "empty"
)

// resolver is a DNS server's address, with or without a port.
type resolver struct{ netip.AddrPort }

func (r *resolver) UnmarshalText(b []byte) error {
	if a, err := netip.ParseAddr(string(b)); err == nil {
		r.AddrPort = netip.AddrPortFrom(a, 53)
		return nil
	}
	var err error
	if r.AddrPort, err = netip.ParseAddrPort(string(b)); err != nil {
		return errors.New("must be an address like 192.0.2.53 or 192.0.2.53:5353")
	}
	return nil
}

func defaults() *config {
	return &config{
		Socket: control.DefaultSocket(), Port: overlay.DefaultPort, WireGuard: overlay.DefaultWireGuardPort,
		DNSUnknown: dnsNXDomain, Metrics: "127.0.0.1:9479", LogLevel: slog.LevelInfo, Egress: egressConfig{LogRefused: true},
		PostQuantum: string(overlay.PostQuantumOff),
	}
}

// Validate names what is wrong, all of it.
func (c *config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) { errs = append(errs, conf.Bad(key, format, args...)) }
	if c.Foundation != nil {
		errs = append(errs, c.foundationFaults())
	} else {
		errs = append(errs, serverFault("server", c.Server))
		if c.Credentials == "" {
			bad("credentials", "is missing")
		}
	}
	if c.StateDir == "" {
		bad("state_dir", "is missing")
	}
	switch {
	case !c.Underlay.IsValid():
		bad("underlay", "is missing")
	case c.Underlay.IsUnspecified() || c.Underlay.IsMulticast() || c.Underlay.Is4In6() || c.Underlay.Is6() && c.Underlay.IsLinkLocalUnicast():
		bad("underlay", "must be an address of this host that other cells reach")
	}
	if c.DNSUnknown != dnsNXDomain && c.DNSUnknown != dnsEmpty {
		bad("dns_unknown", "must be %s or %s", dnsNXDomain, dnsEmpty)
	}
	mode := c.tunnelMode()
	if mode != api.ModeVXLAN && mode != api.ModeWireGuard {
		bad("mode", "must be wireguard or vxlan")
	}
	if mode == api.ModeWireGuard && c.WireGuard != 0 && c.WireGuard == c.Port {
		bad("wireguard", "must not be the port of VXLAN")
	}
	switch pq := overlay.PostQuantum(c.PostQuantum); {
	case pq != overlay.PostQuantumOff && pq != overlay.PostQuantumOn && pq != overlay.PostQuantumRequired:
		bad("post_quantum", "must be off, on or required")
	case pq != overlay.PostQuantumOff && mode != api.ModeWireGuard:
		bad("post_quantum", "is of mode wireguard alone")
	}
	if c.MTU != 0 && (c.MTU < 576 || c.MTU > 65405) {
		bad("mtu", "must be 0 or from 576 to 65405")
	}
	errs = append(errs, c.checkEgress()...)
	for _, dir := range c.Hide {
		if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" {
			bad("hide", "must list absolute paths below /")
		}
	}
	if c.Metrics != "" {
		if _, _, err := net.SplitHostPort(c.Metrics); err != nil {
			bad("metrics", `must be host:port, or "" for none`)
		}
	}
	return errors.Join(errs...)
}

// tunnelMode is what Mode says, or what it means that it says nothing: a
// foundation's cells speak vxlan and nothing else.
func (c *config) tunnelMode() api.TunnelMode {
	if c.Mode == "" && c.Foundation != nil {
		return api.ModeVXLAN
	}
	return cmp.Or(c.Mode, api.ModeWireGuard)
}

func loadConfig(path string) (*config, error) {
	c := defaults()
	if err := conf.Load(path, c); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	for _, p := range append(c.Foundation.files(), &c.Credentials, &c.StateDir, &c.Socket, &c.TrustBundle, &c.Egress.Log) {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	return c, nil
}

// daemon is the configuration as the overlay package takes it.
func (c *config) daemon() overlay.Config {
	o := overlay.Config{
		Name: c.Name, Server: c.Server, Credentials: c.Credentials, StateDir: c.StateDir, Socket: c.Socket,
		Underlay: c.Underlay, Port: c.Port, Mode: c.tunnelMode(), PostQuantum: overlay.PostQuantum(c.PostQuantum), WireGuard: c.WireGuard, MTU: c.MTU, Metrics: c.Metrics, IPv4Only: c.IPv4Only,
		Hide: c.Hide, TrustBundle: c.TrustBundle, Egress: c.Egress.daemon(),
	}
	if c.Foundation != nil {
		o.Foundation = c.Foundation.options()
	}
	for _, g := range c.Allow {
		o.Allow = append(o.Allow, control.Grant{UID: *g.UID, Orgs: g.Orgs, Spaces: g.Spaces, Apps: g.Apps})
	}
	for _, r := range c.Resolvers {
		o.Resolvers = append(o.Resolvers, r.AddrPort)
	}
	o.EmptyUnknown = c.DNSUnknown == dnsEmpty
	return o
}
