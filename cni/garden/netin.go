package garden

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"tulle/cni/attach"
	"tulle/cni/netconf"
	"tulle/overlay/control"
)

// netInInput is guardian's, about a container that is up.
type netInInput struct {
	HostIP        string
	HostPort      uint32
	ContainerIP   string
	ContainerPort uint32
}

// noIP is what Go's net writes for no address, and guardian where it was told none.
const noIP = "<nil>"

// netIn forwards one more port. Only our own plugin can: others are told of ports
// when a container is made.
func (n networker) netIn(ctx context.Context, handle string, in netInInput) (out *netIn, err error) {
	socket, err := n.nets.socket()
	if err != nil {
		return nil, fmt.Errorf("unrecognized action: net-in: %w", err)
	}
	if in.HostPort > maxPort || in.ContainerPort > maxPort {
		return nil, fmt.Errorf("net-in: host port %d, container port %d: ports end at %d", in.HostPort, in.ContainerPort, maxPort)
	}
	host := netip.IPv4Unspecified()
	if in.HostIP != "" && in.HostIP != noIP {
		if host, err = netip.ParseAddr(in.HostIP); err != nil {
			return nil, fmt.Errorf("net-in: host ip %q is no address", in.HostIP)
		}
	}
	if in.HostPort == 0 {
		var given []uint32
		if given, err = n.ports.acquire(handle, 1, n.config.StartPort, n.config.TotalPorts); err != nil {
			return nil, fmt.Errorf("allocating port: %w", err)
		}
		in.HostPort = given[0]
		defer func() {
			if err != nil {
				err = errors.Join(err, n.ports.release(handle, given...))
			}
		}()
	}
	if in.ContainerPort == 0 {
		in.ContainerPort = in.HostPort
	}
	p := control.Port{Protocol: "tcp", HostPort: uint16(in.HostPort), Port: uint16(in.ContainerPort)}
	if !host.IsUnspecified() {
		p.HostIP = host
	}
	if err := attach.AddPort(ctx, attach.Container{ID: handle, Device: device, Socket: socket}, p); err != nil {
		return nil, fmt.Errorf("net-in: %w", err)
	}
	return &netIn{HostPort: in.HostPort, ContainerPort: in.ContainerPort}, nil
}

// socket is the cell daemon's that our plugin is told.
func (n *networks) socket() (string, error) {
	if n.list != nil {
		for _, p := range n.list.Plugins {
			if p.Network.Type != "tulle-cni" {
				continue
			}
			c, err := netconf.Parse(p.Bytes)
			if err != nil {
				return "", err
			}
			return c.Socket, nil
		}
	}
	return "", errors.New("the networks have no plugin tulle-cni")
}
