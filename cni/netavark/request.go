package netavark

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"tulle/cni/attach"
	"tulle/cni/netconf"
	"tulle/overlay/control"
	"tulle/policy/api"
)

// network is a podman network; what is not ours of it is podman's.
type network struct {
	Name       string            `json:"name"`
	Subnets    []json.RawMessage `json:"subnets"`
	IPv6       bool              `json:"ipv6_enabled"`
	Options    map[string]string `json:"options"`
	DNSServers []string          `json:"network_dns_servers"`
}

// request is what setup and teardown are given.
type request struct {
	ContainerID    string    `json:"container_id"`
	ContainerName  string    `json:"container_name"`
	PortMappings   []mapping `json:"port_mappings"`
	Network        network   `json:"network"`
	NetworkOptions struct {
		InterfaceName string            `json:"interface_name"`
		StaticIPs     []string          `json:"static_ips"`
		StaticMAC     string            `json:"static_mac"`
		Options       map[string]string `json:"options"`
	} `json:"network_options"`
}

// mapping is a range of published ports; the protocol may be several, with commas.
type mapping struct {
	ContainerPort uint16 `json:"container_port"`
	HostIP        string `json:"host_ip"`
	HostPort      uint16 `json:"host_port"`
	Protocol      string `json:"protocol"`
	Range         uint16 `json:"range"`
}

// ports are the mappings one by one, unless podman keeps them to itself.
func (r *request) ports() ([]netconf.PortMapping, error) {
	switch r.Network.Options["publish"] {
	case "", "yes":
	case "no":
		return nil, nil
	default:
		return nil, fmt.Errorf("network %s: option publish is yes or no", r.Network.Name)
	}
	var all []netconf.PortMapping
	for _, m := range r.PortMappings {
		n := max(m.Range, 1)
		if int(m.HostPort)+int(n) > 1<<16 || int(m.ContainerPort)+int(n) > 1<<16 {
			return nil, fmt.Errorf("port_mappings: %d ports from %d on to %d: there are 65535", n, m.HostPort, m.ContainerPort)
		}
		for protocol := range strings.SplitSeq(m.Protocol, ",") {
			for i := range n {
				all = append(all, netconf.PortMapping{HostIP: m.HostIP, HostPort: m.HostPort + i, ContainerPort: m.ContainerPort + i, Protocol: protocol})
			}
		}
	}
	return all, nil
}

// status is what setup answers.
type status struct {
	Search     []string                    `json:"dns_search_domains"`
	Servers    []string                    `json:"dns_server_ips"`
	Interfaces map[string]networkInterface `json:"interfaces"`
}

type networkInterface struct {
	MAC     string    `json:"mac_address"`
	Subnets []address `json:"subnets"`
}

// address has no gateway: behind a TUN there is no neighbour.
type address struct {
	Net netip.Prefix `json:"ipnet"`
}

// Options of a network (podman network create -o), and of one container in it
// (podman run --network tulle:app=web).
var (
	ofNetwork   = []string{"socket", "app", "space", "org", "name_pattern", "search", "publish"}
	ofContainer = []string{"app", "space", "org", "instance"}
)

func parse(b []byte) (*request, error) {
	r := &request{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("container and network: %w", err)
	}
	if r.ContainerID == "" {
		return nil, errors.New("container_id is missing")
	}
	return r, nil
}

func (r *request) device() string {
	if r.NetworkOptions.InterfaceName == "" {
		return attach.UsualDevice
	}
	return r.NetworkOptions.InterfaceName
}

func (r *request) container(netns string) attach.Container {
	return attach.Container{ID: r.ContainerID, Device: r.device(), Netns: netns, Network: r.Network.Name, Socket: r.Network.socket()}
}

func (n network) socket() string {
	if s := n.Options["socket"]; s != "" {
		return s
	}
	return control.DefaultSocket()
}

// args carries the container's name as CNI's runtimes do.
func (r *request) args() string {
	if r.ContainerName == "" || strings.ContainsAny(r.ContainerName, ";=") {
		return ""
	}
	return "K8S_POD_NAME=" + r.ContainerName
}

// conf is the request in the words of the CNI plugin's configuration, so that both
// decide alike.
func (r *request) conf() (*netconf.Conf, error) {
	if err := r.Network.check(); err != nil {
		return nil, err
	}
	if err := known(r.NetworkOptions.Options, ofContainer); err != nil {
		return nil, err
	}
	ports, err := r.ports()
	if err != nil {
		return nil, err
	}
	o, own := r.Network.Options, r.NetworkOptions.Options
	c := &netconf.Conf{
		PluginConf:  types.PluginConf{Name: r.Network.Name, DNS: types.DNS{Nameservers: r.Network.DNSServers}},
		Socket:      r.Network.socket(),
		App:         api.AppRef{Name: o["app"], Space: o["space"], Org: o["org"]},
		NamePattern: o["name_pattern"],
		Runtime:     netconf.Runtime{IPs: r.NetworkOptions.StaticIPs, MAC: r.NetworkOptions.StaticMAC, PortMappings: ports},
	}
	if s := o["search"]; s != "" {
		c.DNS.Search = strings.Split(s, ",")
	}
	if own["app"] != "" {
		c.Runtime.App = &netconf.App{AppRef: api.AppRef{Name: own["app"], Space: own["space"], Org: own["org"]}, Instance: own["instance"]}
	}
	return c, nil
}

// check refuses what a network of ours cannot be.
func (n network) check() error {
	switch {
	case len(n.Subnets) > 0:
		return fmt.Errorf("network %s: addresses are of the cell's lease: give no subnet", n.Name)
	case n.IPv6:
		return fmt.Errorf("network %s: the cell gives every container its IPv6 address: leave ipv6 out", n.Name)
	}
	if err := known(n.Options, ofNetwork); err != nil {
		return fmt.Errorf("network %s: %w", n.Name, err)
	}
	// A pattern that nobody can fit would refuse every container later.
	if _, _, err := netconf.Named(n.Options["name_pattern"], ""); err != nil {
		return fmt.Errorf("network %s: %w", n.Name, err)
	}
	return nil
}

func known(options map[string]string, names []string) error {
	for _, o := range slices.Sorted(maps.Keys(options)) {
		if !slices.Contains(names, o) {
			return fmt.Errorf("unknown option %q; there are %s", o, strings.Join(names, ", "))
		}
	}
	return nil
}

// create answers podman's network as it was given, but for dns_enabled: names are
// the daemon's to resolve, not aardvark's.
func create(b []byte) (any, error) {
	var n network
	if err := json.Unmarshal(b, &n); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	if n.Name == "" {
		return nil, errors.New("network: name is missing")
	}
	if err := n.check(); err != nil {
		return nil, err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	all["dns_enabled"] = json.RawMessage("false")
	return all, nil
}
