package garden

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"tulle/overlay/netcfg"
)

// upInput is guardian's. Rules go to the plugins as they came.
type upInput struct {
	Pid        int               `json:"Pid"`
	Properties map[string]any    `json:"Properties"`
	NetIn      []netIn           `json:"netin"`
	NetOut     []json.RawMessage `json:"netout_rules"`
}

// netIn is a forwarded port, in Garden's spelling; host port 0 asks for one.
type netIn struct {
	HostPort      uint32 `json:"host_port"`
	ContainerPort uint32 `json:"container_port"`
}

// mapping is the same in the spelling of a property.
type mapping struct {
	HostPort      uint32
	ContainerPort uint32
}

type upOutput struct {
	Properties    properties `json:"properties"`
	DNSServers    []string   `json:"dns_servers,omitempty"`
	SearchDomains []string   `json:"search_domains,omitempty"`
}

type properties struct {
	ContainerIP string `json:"garden.network.container-ip"`
	HostIP      string `json:"garden.network.host-ip"`
	MappedPorts string `json:"garden.network.mapped-ports"`
	Interface   string `json:"garden.network.interface,omitempty"`
}

// hostIP is what everybody has; nobody reads it.
const hostIP = "255.255.255.255"

// up gives a container its network. What fails is undone: only a crash leaves
// something, for down.
func (n networker) up(ctx context.Context, handle string, in upInput) (out *upOutput, err error) {
	from := fmt.Sprintf("/proc/%d/ns/net", in.Pid)
	if in.Pid == 0 {
		from = "/proc/self/fd/3"
	}
	netns := n.netns(handle)
	made, err := mountNamespace(from, netns)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && made {
			err = errors.Join(err, unmount(netns))
		}
	}()
	given, err := n.choosePorts(handle, in.NetIn)
	if err != nil {
		return nil, fmt.Errorf("allocating port: %w", err)
	}
	defer func() {
		if err != nil && len(given) > 0 {
			err = errors.Join(err, n.ports.release(handle, given...))
		}
	}()
	wants := map[string]any{}
	if len(in.NetIn) > 0 {
		wants["portMappings"] = in.NetIn
	}
	if len(in.NetOut) > 0 {
		wants["netOutRules"] = in.NetOut
	}
	result, err := n.nets.add(ctx, handle, netns, in.Properties, wants)
	if err != nil {
		err = fmt.Errorf("cni up failed: %w", err)
	} else if out, err = n.answer(result, in.NetIn); err == nil {
		err = n.redirect(netns)
	}
	if err != nil {
		// A plugin of the chain may have done its part.
		uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
		defer cancel()
		if derr := n.nets.del(uctx, handle, netns); derr != nil {
			err = fmt.Errorf("%w (and then cni down: %w)", err, derr)
		}
		return nil, err
	}
	return out, nil
}

// redirect leads the container's connections to a transparent proxy in it, as far
// as the configuration says. It ends with the namespace.
func (n networker) redirect(netns string) (err error) {
	if n.config.RedirectCIDR == "" && !n.config.RedirectIngress {
		return nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("proxy redirect apply: %w", err)
		}
	}()
	var to netip.Prefix
	if n.config.RedirectCIDR != "" {
		if to, err = netip.ParsePrefix(n.config.RedirectCIDR); err != nil || !to.Addr().Is4() {
			return fmt.Errorf("proxy_redirect_cidr %q is no IPv4 network", n.config.RedirectCIDR)
		}
	}
	if n.config.ProxyPort < 1 || n.config.ProxyPort > maxPort {
		return fmt.Errorf("proxy_port %d is no port", n.config.ProxyPort)
	}
	ns, err := netcfg.Open(netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	return netcfg.Redirect(ns, to, n.config.RedirectIngress, uint16(n.config.ProxyPort))
}

func (n networker) netns(handle string) string { return filepath.Join(n.config.MountDir, handle) }

// choosePorts replaces the zeros in in by ports of the pool.
func (n networker) choosePorts(handle string, in []netIn) (given []uint32, err error) {
	var zeros []int
	var named []uint32 // by the container itself, and so in no state
	for i, p := range in {
		if p.HostPort == 0 {
			zeros = append(zeros, i)
		} else {
			named = append(named, p.HostPort)
		}
	}
	given, err = n.ports.acquire(handle, len(zeros), n.config.StartPort, n.config.TotalPorts, named...)
	if err != nil {
		return nil, err
	}
	for i, at := range zeros {
		in[at].HostPort = given[i]
	}
	return given, nil
}

// answer is what guardian is told of a result.
func (n networker) answer(result types.Result, in []netIn) (*upOutput, error) {
	if result == nil {
		return nil, errors.New("cni up failed: no ip allocated")
	}
	r, err := current.NewResultFromResult(result)
	if err != nil {
		return nil, fmt.Errorf("cni plugin result version incompatible: %w", err)
	}
	var ip *current.IPConfig
	for _, c := range r.IPs {
		if c.Address.IP.To4() != nil {
			ip = c
			break
		}
	}
	switch {
	case ip == nil:
		return nil, errors.New("expected an IPv4 address in the CNI result")
	case ip.Interface == nil:
		return nil, errors.New("pointer to container interface is nil")
	case *ip.Interface < 0 || *ip.Interface >= len(r.Interfaces):
		return nil, fmt.Errorf("no corresponding interface found, interface index: %d, number of interfaces: %d", *ip.Interface, len(r.Interfaces))
	}
	mapped := []mapping{}
	for _, p := range in {
		mapped = append(mapped, mapping(p))
	}
	text, err := json.Marshal(mapped)
	if err != nil {
		return nil, err
	}
	return &upOutput{
		Properties: properties{ContainerIP: ip.Address.IP.String(), HostIP: hostIP, MappedPorts: string(text), Interface: r.Interfaces[*ip.Interface].Name},
		DNSServers: r.DNS.Nameservers, SearchDomains: n.config.SearchDomains,
	}, nil
}

// down takes it away. What is not there is no error; what the plugins cannot do
// now (no daemon answers) is one, and the next call finds all it needs. Mount and
// ports are this host's own affair and fail nobody.
func (n networker) down(ctx context.Context, handle string) error {
	netns := n.netns(handle)
	if err := n.nets.del(ctx, handle, netns); err != nil {
		return fmt.Errorf("cni down: %w", err)
	}
	if err := unmount(netns); err != nil {
		fmt.Fprintf(n.log, "removing bind mount %s: %v\n", netns, err)
	}
	if err := n.ports.release(handle); err != nil {
		fmt.Fprintf(n.log, "releasing ports: %v\n", err)
	}
	return nil
}
