package netcfg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"

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
//
// It is asked for every connection that leaves the overlay, so the question is put
// together by hand: a tenth of the time that the general library takes.
type Router struct {
	mu   sync.Mutex // guards what follows, one question at a time
	fd   int
	seq  uint32
	ask  [unix.SizeofNlMsghdr + unix.SizeofRtMsg + unix.SizeofRtAttr + 16]byte
	hear [8192]byte
}

// OpenRouter makes a Router.
func OpenRouter() (*Router, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("routing socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, errors.Join(fmt.Errorf("routing socket: %w", err), unix.Close(fd))
	}
	// An answer that does not come must not hold up every container.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}); err != nil {
		return nil, errors.Join(fmt.Errorf("routing socket: %w", err), unix.Close(fd))
	}
	return &Router{fd: fd}, nil
}

// Close closes the socket; it is not used any more.
func (r *Router) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fd >= 0 {
		_ = unix.Close(r.fd)
		r.fd = -1
	}
}

// Kind looks the destination up. An error is neither of a kind.
func (r *Router) Kind(dst netip.Addr) (RouteKind, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	if err := unix.Send(r.fd, r.question(dst), 0); err != nil {
		return RouteNone, fmt.Errorf("route to %v: %w", dst, err)
	}
	for {
		n, _, err := unix.Recvfrom(r.fd, r.hear[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return RouteNone, fmt.Errorf("route to %v: %w", dst, err)
		}
		kind, ours, err := r.answer(r.hear[:n])
		if err != nil {
			return RouteNone, fmt.Errorf("route to %v: %w", dst, err)
		}
		if ours {
			return kind, nil
		}
	}
}

// question is an RTM_GETROUTE for dst (rtnetlink(7)).
func (r *Router) question(dst netip.Addr) []byte {
	a := dst.AsSlice()
	family := byte(unix.AF_INET)
	if dst.Is6() {
		family = unix.AF_INET6
	}
	n := len(r.ask) - 16 + len(a)
	b := r.ask[:n]
	clear(b)
	ne := binary.NativeEndian
	ne.PutUint32(b[0:], uint32(n))
	ne.PutUint16(b[4:], unix.RTM_GETROUTE)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST)
	ne.PutUint32(b[8:], r.seq)
	m := b[unix.SizeofNlMsghdr:]
	m[0], m[1] = family, byte(8*len(a)) // rtm_family, rtm_dst_len
	attr := m[unix.SizeofRtMsg:]
	ne.PutUint16(attr[0:], uint16(unix.SizeofRtAttr+len(a)))
	ne.PutUint16(attr[2:], unix.RTA_DST)
	copy(attr[unix.SizeofRtAttr:], a)
	return b
}

var errAnswer = errors.New("the kernel's answer is not understood")

// answer reads the first message of b; ours is false for what answers an earlier
// question.
func (r *Router) answer(b []byte) (kind RouteKind, ours bool, err error) {
	ne := binary.NativeEndian
	if len(b) < unix.SizeofNlMsghdr+4 {
		return RouteNone, false, errAnswer
	}
	if ne.Uint32(b[8:]) != r.seq {
		return RouteNone, false, nil
	}
	body := b[unix.SizeofNlMsghdr:]
	switch ne.Uint16(b[4:]) {
	case unix.NLMSG_ERROR:
		switch e := syscall.Errno(-int32(ne.Uint32(body))); e {
		case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL,
			unix.EAFNOSUPPORT, unix.EOPNOTSUPP: // a kernel without IPv6
			return RouteNone, true, nil
		default:
			return RouteNone, false, e
		}
	case unix.RTM_NEWROUTE:
		if len(body) < unix.SizeofRtMsg {
			return RouteNone, false, errAnswer
		}
		switch body[7] { // rtm_type
		case unix.RTN_UNICAST:
			return RouteAway, true, nil
		case unix.RTN_LOCAL:
			return RouteHost, true, nil
		case unix.RTN_BROADCAST, unix.RTN_MULTICAST, unix.RTN_ANYCAST:
			return RouteGroup, true, nil
		}
		return RouteNone, true, nil
	}
	return RouteNone, false, errAnswer
}
