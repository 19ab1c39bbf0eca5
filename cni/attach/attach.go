// Package attach gives a container its device and hands it to the cell daemon:
// what every kind of plugin does, whatever protocol its runtime speaks.
//
// It needs the rights of the user namespace that owns the container's network
// namespace, and /dev/net/tun. A call keeps nothing, neither process nor file; an
// Add that fails leaves nothing, and a Del needs no namespace.
package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/overlay/mint"
	"tulle/overlay/netcfg"
	"tulle/policy"
	"tulle/policy/api"
)

// What protocols tell apart; a refusal of the daemon is a *control.Error.
var (
	// ErrNamespace: the container's network namespace is not there, or not one.
	ErrNamespace = errors.New("network namespace of the container")
	// ErrNoDaemon: nobody answers on the cell daemon's socket.
	ErrNoDaemon = errors.New("ask the cell daemon")
	// ErrDiffers: the container is not as Add left it.
	ErrDiffers = errors.New("not as it was made")
	// ErrUnknown: the cell has no such container.
	ErrUnknown = errors.New("unknown container")
)

// UsualDevice is the device's name in nearly every container.
const UsualDevice = "eth0"

// provisionalMTU is the device's until the daemon has said which one it is.
const provisionalMTU = 1500

// undoTimeout bounds what is done after the caller's time is up.
const undoTimeout = 30 * time.Second

// Container is one attachment as its runtime names it.
type Container struct {
	ID      string
	Device  string // inside the namespace
	Netns   string // path
	Network string // the runtime's name for it
	Socket  string // of the cell daemon
}

// Name is the endpoint's at the daemon: the runtime's id, so that it is found in
// a list, and the device where it is another than the usual.
func (c Container) Name() string { return EndpointName(c.ID, c.Device) }

// EndpointName is the name at the daemon of a container's device.
func EndpointName(id, device string) string {
	if device == UsualDevice {
		return id
	}
	return id + "." + device
}

// Wish is what a container is to be.
type Wish struct {
	App       api.AppRef
	Instance  string
	Address   netip.Addr   // invalid: any
	TLS       *control.TLS // nil: none is terminated
	Bandwidth control.Bandwidth
	Ports     []control.Port // of the host that lead to it
	Workload  policy.Workload
	Rules     []policy.SecurityRule // where the cell does not follow the control plane's
}

// Add makes the device, attaches it and configures it.
func Add(ctx context.Context, c Container, w Wish) (got control.Attached, err error) {
	ns, err := netcfg.Open(c.Netns)
	if err != nil {
		return got, fmt.Errorf("%w: %w", ErrNamespace, err)
	}
	defer ns.Close()
	client, err := dial(c.Socket)
	if err != nil {
		return got, err
	}
	defer client.Close()

	var tun *os.File
	var sockets *mint.Sockets
	if err := netcfg.Do(ns, func() (err error) {
		// An app that connects to its own address goes through lo.
		if err := netcfg.LoopbackUp(); err != nil {
			return err
		}
		if tun, err = netcfg.CreateTUN(c.Device, provisionalMTU); err != nil || w.TLS == nil {
			return err
		}
		if sockets, err = mint.Create(control.TLSPort); errors.Is(err, mint.ErrPortTaken) {
			// The platform's own proxy, most likely: this one steps back.
			off := *w.TLS
			off.Off = err.Error()
			w.TLS, err = &off, nil
		}
		return err
	}); err != nil {
		if tun != nil {
			err = errors.Join(err, tun.Close())
		}
		return got, err
	}
	// From here on the daemon's duplicates keep the device and the sockets.
	defer tun.Close()
	defer sockets.Close()
	var files []*os.File
	if sockets != nil {
		files = sockets.Files()
	}

	request := control.Attach{Container: c.Name(), App: w.App, Instance: w.Instance, Address: w.Address, Bandwidth: w.Bandwidth,
		Network: c.Network, Device: c.Device, TLS: w.TLS, Lifeline: control.LifelineNone,
		Ports: w.Ports, Workload: w.Workload, Rules: w.Rules}
	pidfd := openProcess(c.Netns, ns)
	if pidfd != nil {
		defer pidfd.Close()
		request.Lifeline = control.LifelinePidfd
	}
	if got, err = client.Attach(ctx, request, tun, pidfd, files...); err != nil {
		return got, fmt.Errorf("attach to the cell: %w", err)
	}
	if err := netcfg.Do(ns, func() error {
		return netcfg.Configure(netcfg.Device{Name: c.Device, Address: got.Address, Address6: got.Address6, MTU: got.MTU})
	}); err != nil {
		return got, errors.Join(err, Undo(ctx, c))
	}
	return got, nil
}

// Undo is Del of what Add has just made, also when ctx has ended.
func Undo(ctx context.Context, c Container) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return Del(ctx, c)
}

// Del succeeds when there is nothing left, whatever became of the namespace. It
// does not without the daemon: the endpoint is in its journal, and the runtime
// has to ask again.
func Del(ctx context.Context, c Container) error {
	if control.CheckContainer(c.Name()) != nil {
		return nil // Add was refused, and a runtime takes away what it could not make
	}
	client, err := dial(c.Socket)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Detach(ctx, control.Detach{Container: c.Name()}); err != nil {
		return fmt.Errorf("detach from the cell: %w", err)
	}
	return nil
}

// AddPort gives a container that is attached one more port of the host.
func AddPort(ctx context.Context, c Container, p control.Port) error {
	client, err := dial(c.Socket)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.AddPort(ctx, control.PortAdd{Container: c.Name(), Port: p}); err != nil {
		return fmt.Errorf("forward port %d: %w", p.HostPort, err)
	}
	return nil
}

// AddRules lets a container that is attached reach more outside the overlay. false:
// the cell keeps the rules, and goes by the control plane's security groups.
func AddRules(ctx context.Context, c Container, rules []policy.SecurityRule) (inForce bool, err error) {
	client, err := dial(c.Socket)
	if err != nil {
		return false, err
	}
	defer client.Close()
	got, err := client.AddRules(ctx, control.RulesAdd{Container: c.Name(), Rules: rules})
	if err != nil {
		return false, fmt.Errorf("add rules: %w", err)
	}
	return got.InForce, nil
}

// Check compares the container with the address that Add answered.
func Check(ctx context.Context, c Container, address netip.Prefix) error {
	ns, err := netcfg.Open(c.Netns)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNamespace, err)
	}
	defer ns.Close()
	client, err := dial(c.Socket)
	if err != nil {
		return err
	}
	defer client.Close()
	endpoints, err := client.List(ctx)
	if err != nil {
		return fmt.Errorf("list the cell's endpoints: %w", err)
	}
	found := false
	for _, e := range endpoints {
		if e.Container != c.Name() {
			continue
		}
		found = true
		if e.Address != address.Addr() {
			return fmt.Errorf("%w: container %s has %s at the cell, not %s", ErrDiffers, e.Container, e.Address, address.Addr())
		}
	}
	if !found {
		return fmt.Errorf("%w: the cell has no container %s", ErrUnknown, c.Name())
	}
	if err := netcfg.Do(ns, func() error {
		return netcfg.Check(netcfg.Device{Name: c.Device, Address: address})
	}); err != nil {
		return fmt.Errorf("%w: %w", ErrDiffers, err)
	}
	return nil
}

// Collect ends the network's containers that are not among keep, which are names
// at the daemon.
func Collect(ctx context.Context, socket, network string, keep []string) error {
	// What no container can be called stands for nothing that is to be kept.
	keep = slices.DeleteFunc(slices.Clone(keep), func(name string) bool { return control.CheckContainer(name) != nil })
	client, err := dial(socket)
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := client.GC(ctx, control.GC{Network: network, Keep: keep}); err != nil {
		return fmt.Errorf("collect network %s: %w", network, err)
	}
	return nil
}

// Available says whether an Add could be served.
func Available(ctx context.Context, socket string) error {
	client, err := dial(socket)
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := client.Status(ctx); err != nil {
		return fmt.Errorf("ask the cell daemon: %w", err)
	}
	return nil
}

func dial(socket string) (*control.Client, error) {
	client, err := control.Dial(socket)
	switch {
	case errors.Is(err, unix.EACCES): // trying again would not help
		return nil, control.Errorf(control.CodeNotAllowed, "%v", err)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrNoDaemon, err)
	}
	return client, nil
}

// openProcess is the container's process where the namespace is named by it
// (/proc/PID/ns/net): its end is then the detach, should the runtime forget. nil
// where it is not, or where the process has gone or changed in the meantime.
func openProcess(netns string, ns *os.File) *os.File {
	id, ok := strings.CutPrefix(netns, "/proc/")
	if !ok {
		return nil
	}
	id, ok = strings.CutSuffix(id, "/ns/net")
	pid, err := strconv.Atoi(id)
	if !ok || err != nil {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	// The number may have been given to another process since ns was opened.
	if same, err := netcfg.Same(ns, netns); err != nil || !same {
		_ = f.Close()
		return nil
	}
	return f
}
