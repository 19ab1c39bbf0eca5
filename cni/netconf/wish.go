package netconf

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"tulle/cni/attach"
	"tulle/overlay/control"
)

// Wish is what a container is to be. What a runtime asks for and cannot have is
// an error that names it, never left out without a word.
func (c *Conf) Wish(args, id string, env func(string) string) (attach.Wish, error) {
	var w attach.Wish
	var err error
	if w.App, w.Instance, err = c.Identify(args, id, env); err != nil {
		return w, err
	}
	if w.Address, err = c.address(args); err != nil {
		return w, err
	}
	if b := c.Runtime.Bandwidth; b != nil {
		w.Bandwidth = *b
	}
	w.TLS = c.tls()
	w.Workload = c.Metadata.Workload
	var portsErr, rulesErr error
	w.Ports, portsErr = c.ports()
	w.Rules, rulesErr = c.rules()
	_, macErr := c.MAC(args)
	return w, errors.Join(macErr, portsErr, rulesErr)
}

// tls is what is to be terminated; nil: nothing.
func (c *Conf) tls() *control.TLS {
	garden := c.Metadata != Metadata{}
	switch {
	case c.TLS == nil && garden:
		return nil
	case c.TLS == nil:
		return &control.TLS{}
	case c.TLS.Enabled == nil && garden, c.TLS.Enabled != nil && !*c.TLS.Enabled:
		return nil
	}
	t := c.TLS.TLS
	t.Off = "" // the attach's own word
	return &t
}

// address is the one asked for: by capability "ips", or as podman does in args.
func (c *Conf) address(args string) (netip.Addr, error) {
	given, err := parseArgs(args)
	if err != nil {
		return netip.Addr{}, err
	}
	asked := slices.Clone(c.Runtime.IPs)
	if ip := given["IP"]; ip != "" {
		asked = append(asked, strings.Split(ip, ",")...)
	}
	var want netip.Addr
	for _, s := range asked {
		// A prefix length says nothing here: a container's address is a /32.
		text, _, _ := strings.Cut(s, "/")
		a, err := netip.ParseAddr(text)
		switch {
		case err != nil || !a.Is4():
			return netip.Addr{}, fmt.Errorf("network %s: the address asked for, %q, is no IPv4 address", c.Name, s)
		case want.IsValid() && want != a:
			return netip.Addr{}, fmt.Errorf("network %s: a container has one address, %s and %s are asked for", c.Name, want, a)
		}
		want = a
	}
	return want, nil
}

// MAC is the one asked for, to be told back to the runtime: a TUN has none, and
// nothing on the wire carries it. "" is any.
func (c *Conf) MAC(args string) (string, error) {
	given, err := parseArgs(args)
	if err != nil {
		return "", err
	}
	asked := cmp.Or(c.Runtime.MAC, given["MAC"])
	if asked == "" {
		return "", nil
	}
	m, err := net.ParseMAC(asked)
	if err != nil || len(m) != 6 || m[0]&1 != 0 {
		return "", fmt.Errorf("network %s: mac %q is no unicast Ethernet address", c.Name, asked)
	}
	return m.String(), nil
}

// Names is what ADD answers about names: the runtime's own wish, else the
// network's, else the daemon's resolver.
func (c *Conf) Names(resolver netip.Addr) types.DNS {
	d := c.DNS
	if r := c.Runtime.DNS; r != nil {
		d.Nameservers = either(r.Servers, d.Nameservers)
		d.Search = either(r.Searches, d.Search)
		d.Options = either(r.Options, d.Options)
	}
	d.Nameservers = either(d.Nameservers, []string{resolver.String()})
	return d
}

func either(a, b []string) []string {
	if len(a) > 0 {
		return a
	}
	return b
}
