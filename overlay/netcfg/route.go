package netcfg

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RouteKind is what this host's routing makes of a destination.
type RouteKind uint8

// Route kinds.
const (
	// RouteNone: no route leads there, or one that forbids it.
	RouteNone RouteKind = iota
	// RouteHost is an address of this host itself, in whatever table, as it is now.
	RouteHost
	// RouteGroup is a broadcast, multicast or anycast address.
	RouteGroup
	// RouteAway is another host.
	RouteAway
)

// Router asks the kernel where packets would go: the one authority on what is an
// address of this host, those that were added a moment ago included. It needs no
// privilege, and belongs to the namespace of the thread that opened it.
type Router struct{ h *netlink.Handle }

// OpenRouter makes a Router.
func OpenRouter() (*Router, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("routing socket: %w", err)
	}
	return &Router{h}, nil
}

// Close closes the socket.
func (r *Router) Close() { r.h.Close() }

// Kind looks the destination up. An error is neither of a kind.
func (r *Router) Kind(dst netip.Addr) (RouteKind, error) {
	routes, err := r.h.RouteGet(dst.AsSlice())
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		return RouteNone, nil
	case err != nil:
		return RouteNone, fmt.Errorf("route to %v: %w", dst, err)
	case len(routes) != 1:
		return RouteNone, fmt.Errorf("route to %v: %d answers", dst, len(routes))
	}
	switch routes[0].Type {
	case unix.RTN_UNICAST:
		return RouteAway, nil
	case unix.RTN_LOCAL:
		return RouteHost, nil
	case unix.RTN_BROADCAST, unix.RTN_MULTICAST, unix.RTN_ANYCAST:
		return RouteGroup, nil
	}
	return RouteNone, nil
}
