package overlay

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"tulle/overlay/control"
	"tulle/overlay/holder"
	"tulle/overlay/ready"
	"tulle/overlay/vxlan"
	"tulle/overlay/wireguard"
	"tulle/policy/api"
	"tulle/policy/client"
	"tulle/policy/foundation"
)

// Defaults of Config.
const (
	DefaultPort          = 4789
	DefaultWireGuardPort = api.DefaultWireGuardPort

	maxOverhead    = 130 // of the longest mode, over IPv6
	defaultMTU     = 1500
	resumeWait     = 10 * time.Second
	registerWithin = 4500 * time.Millisecond // an attach fails within 5 s
	floorWithin    = time.Second
)

// Config is what a Daemon is told. Zero values of what is marked optional are
// the defaults.
type Config struct {
	Name        string // the cell's, as in its credential; optional
	Server      string // https://host:port of the internal API
	Credentials string // directory with cell.pem, cell-key.pem, server-ca.pem
	// Foundation, in the place of Server and Credentials: the cell is one of a Cloud
	// Foundry foundation's. Cell, Underlay, Port and Log are set here.
	Foundation *foundation.Options
	StateDir   string
	Socket     string // of the local API; optional
	Underlay   netip.Addr
	Port       uint16         // of VXLAN; 0: a free one, published with the lease
	Mode       api.TunnelMode // optional: wireguard, with the peers that have it too; of a foundation vxlan
	WireGuard  uint16         // UDP port of mode wireguard; 0: a free one, published with the lease
	// PostQuantum, of mode wireguard; optional: off.
	PostQuantum PostQuantum
	MTU         int    // of the containers' devices; optional: from the underlay's interface
	IPv4Only    bool   // containers have no IPv6 address
	Metrics     string // host:port; "": none
	Allow       []control.Grant
	Resolvers   []netip.AddrPort // optional: the host's
	// EmptyUnknown answers an internal name that nobody has with no data, as the
	// original does, instead of "no such name".
	EmptyUnknown bool
	Hide         []string // further directories that a contained command must not see
	Egress       EgressConfig

	// TrustBundle is the file for runtimes with the system's roots and ours; optional:
	// trust/ca-certificates.crt in StateDir.
	TrustBundle string

	Holder holder.Keeper // the Daemon closes it
	// Waits is where readers of devices and sockets wait; optional: in Go's poller.
	Waits *ready.Set
	// Processors is how many the machine gives; optional: runtime.GOMAXPROCS, which with
	// Waits is more.
	Processors int
	Log        *slog.Logger
	Ready      func(Ready) // called at the start of each life; optional

	// For tests; optional.
	Clock      Clock
	ResolvConf string // the host's; default: /etc/resolv.conf
	ResumeWait time.Duration
	Rotate     time.Duration // a rotation's patience with cells that say nothing
	ProxyAway  time.Duration
	Client     client.Options // its patience; Server, Credentials and Log are set here
}

// Ready is what the daemon really bound.
type Ready struct {
	Ready    bool   `json:"ready"`
	Cell     string `json:"cell"`
	Underlay string `json:"underlay"`
	Mode     string `json:"mode"`
	// Of mode wireguard: where it listens, its public key, its tunnel address.
	WireGuard string `json:"wireguard,omitempty"`
	Key       string `json:"key,omitempty"`
	Tunnel    string `json:"tunnel,omitempty"`
	Lease     string `json:"lease"`
	Socket    string `json:"socket"`
	Metrics   string `json:"metrics,omitempty"`
	MTU       int    `json:"mtu"`
	PID       int    `json:"pid"`
}

func (c *Config) complete() error {
	var errs []error
	need := func(ok bool, text string) {
		if !ok {
			errs = append(errs, errors.New(text))
		}
	}
	need(c.Foundation != nil || c.Server != "", "server is missing")
	need(c.Foundation != nil || c.Credentials != "", "credentials is missing")
	need(filepath.IsAbs(c.StateDir), "state_dir must be an absolute path")
	need(c.Underlay.IsValid() && !c.Underlay.Is4In6() && !c.Underlay.IsUnspecified() && !c.Underlay.IsMulticast(), "underlay must be an address of this host")
	if c.Mode == "" && c.Foundation != nil {
		c.Mode = api.ModeVXLAN // silk's cells speak nothing else
	}
	c.Mode = cmp.Or(c.Mode, api.ModeWireGuard)
	c.PostQuantum = cmp.Or(c.PostQuantum, PostQuantumOff)
	need(c.PostQuantum == PostQuantumOff || c.PostQuantum == PostQuantumOn || c.PostQuantum == PostQuantumRequired, fmt.Sprintf("post_quantum %q is neither off, on nor required", c.PostQuantum))
	need(c.PostQuantum == PostQuantumOff || c.Mode == api.ModeWireGuard, "post_quantum is of mode wireguard alone")
	need(c.Mode == api.ModeVXLAN || c.Mode == api.ModeWireGuard, fmt.Sprintf("mode %q is neither vxlan nor wireguard", c.Mode))
	if c.Foundation != nil {
		need(c.Server == "" && c.Credentials == "", "a cell of a foundation has neither server nor credentials of Tulle's")
		need(c.Mode == api.ModeVXLAN, "a cell of a foundation has mode vxlan")
		need(c.Port != 0, "a cell of a foundation has the foundation's port")
		need(c.Name != "", "a cell of a foundation needs a name")
		c.IPv4Only = true // silk knows no other
	}
	need(c.MTU == 0 || c.MTU >= 576 && c.MTU <= 65535-maxOverhead, "mtu must be 0 or from 576 to 65405")
	need(c.Holder != nil, "no holder for descriptors")
	need(c.Log != nil, "no logger")
	c.Socket = cmp.Or(c.Socket, control.DefaultSocket())
	c.TrustBundle = cmp.Or(c.TrustBundle, filepath.Join(c.StateDir, "trust", "ca-certificates.crt"))
	c.ResumeWait = cmp.Or(c.ResumeWait, resumeWait)
	c.Rotate = cmp.Or(c.Rotate, rotateWithin)
	c.ProxyAway = cmp.Or(c.ProxyAway, proxyAway)
	if c.Clock == nil {
		c.Clock = bootClock{}
	}
	if c.Ready == nil {
		c.Ready = func(Ready) {}
	}
	return errors.Join(errs...)
}

// controlPlane is the one that is configured.
func (c *Config) controlPlane() (controlPlane, error) {
	if c.Foundation != nil {
		o := *c.Foundation
		o.Cell, o.Underlay, o.Port, o.Log = c.Name, c.Underlay, c.Port, c.Log
		return foundation.New(o)
	}
	o := c.Client
	o.Server, o.Credentials, o.Log = c.Server, c.Credentials, c.Log
	p, err := client.New(o)
	if err != nil {
		return nil, err
	}
	if c.Name != "" && c.Name != p.Cell() {
		return nil, fmt.Errorf("name is %q, but the credential in %s is that of cell %q", c.Name, c.Credentials, p.Cell())
	}
	return p, nil
}

// servers are the URLs of the control plane.
func (c *Config) servers() []string {
	if c.Foundation != nil {
		return []string{c.Foundation.Policies.URL, c.Foundation.Leases.URL}
	}
	return []string{c.Server}
}

// renewAtMost is the longest time between two renewals of the lease. A controller
// that gave it to another says so at the next alone.
func (c *Config) renewAtMost() time.Duration {
	if c.Foundation != nil {
		return cmp.Or(c.Foundation.PollLeases, foundation.DefaultPollLeases)
	}
	return renewAtMost
}

// hidden is what a contained command must not see: the daemon's own directories
// and those it was told of.
func (c *Config) hidden() []string {
	dirs := append([]string{c.StateDir, filepath.Dir(c.Socket)}, c.Hide...)
	secrets := []string{c.Credentials}
	if c.Foundation != nil {
		secrets = []string{filepath.Dir(c.Foundation.Policies.Key), filepath.Dir(c.Foundation.Leases.Key)}
	}
	for _, dir := range secrets {
		if dir, err := filepath.Abs(dir); err == nil {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// overhead is what lies around a container's packet on the underlay: the IP
// header, UDP, VXLAN and inner Ethernet, and around these the tunnel. A cell of
// mode wireguard may have plain peers too; its containers have one MTU, the
// smaller.
func overhead(mode api.TunnelMode, underlay netip.Addr) int {
	n := 20 + vxlan.Overhead
	if underlay.Is6() {
		n += 20
	}
	if mode == api.ModeWireGuard {
		return n + wireguard.Overhead
	}
	return n + 8
}

// mtuOver is the MTU of a container's device over the underlay address. The
// loopback's 65,536 would lead to frames that no other path takes.
func mtuOver(underlay netip.Addr, mode api.TunnelMode) (int, error) {
	overhead := overhead(mode, underlay)
	links, err := net.Interfaces()
	if err != nil {
		return 0, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		addrs, err := l.Addrs()
		if err != nil {
			continue // it has just gone
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			loopback := l.Flags&net.FlagLoopback != 0
			switch {
			case err != nil:
			case loopback && p.Contains(underlay):
				return defaultMTU - overhead, nil
			case p.Addr() == underlay:
				return l.MTU - overhead, nil
			}
		}
	}
	return 0, fmt.Errorf("underlay %s is no address of this host", underlay)
}

// Clock is the host's time. Boot goes on in suspend (CLOCK_BOOTTIME): a lease
// that ended while the host slept must have ended when it wakes.
type Clock interface {
	Boot() time.Duration
	BootID() (string, error)
	Wall() time.Time
}

// bootIDFile is the kernel's name for this boot, random(4).
const bootIDFile = "/proc/sys/kernel/random/boot_id"

func readBootID() (string, error) {
	b, err := os.ReadFile(bootIDFile)
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	return string(b[:max(0, len(b)-1)]), nil
}
