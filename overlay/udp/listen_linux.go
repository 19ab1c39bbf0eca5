package udp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"tulle/overlay/ready"
)

// DefaultBuffer is what is asked for each of the socket's buffers.
const DefaultBuffer = 4 << 20

// Options of Listen. The zero value is what a cell uses.
type Options struct {
	NoSegmentation bool       // never use UDP_SEGMENT
	NoGRO          bool       // never use UDP_GRO
	SendOnly       bool       // what comes is dropped by the kernel, and Receive is an error
	Buffer         int        // bytes asked for each buffer; 0: DefaultBuffer
	Set            *ready.Set // where the receiver waits; nil: in Go's poller
}

// Features is what the kernel gave.
type Features struct {
	Segmentation  bool // UDP_SEGMENT is in use; a send error may have turned it off
	GRO           bool // UDP_GRO is in use
	ReceiveBuffer int  // bytes of payload the kernel will hold; net.core.rmem_max caps it
	SendBuffer    int  // likewise
}

// Socket is the Conn over a real socket.
type Socket struct {
	conn     io.Closer
	raw      syscall.RawConn
	polled   bool          // conn is in Go's poller
	source   *ready.Source // where the receiver waits; nil: there, or nowhere
	local    netip.AddrPort
	ipv6     bool
	segment  atomic.Bool // UDP_SEGMENT works
	features Features    // as opened
	receive  receiver
}

var _ Conn = (*Socket)(nil)

// Listen opens a UDP socket at addr, port 0 for a free one. Datagrams go out
// without DF (IP_PMTUDISC_DONT), so that one that is too long for the path is
// fragmented and not lost.
func Listen(addr netip.AddrPort, opts Options) (*Socket, error) {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	network := "udp4"
	if addr.Addr().Is6() {
		network = "udp6"
	}
	buffer := opts.Buffer
	if buffer == 0 {
		buffer = DefaultBuffer
	}
	s := &Socket{ipv6: addr.Addr().Is6()}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		e := raw.Control(func(fd uintptr) { s.features, err = setOptions(int(fd), s.ipv6, buffer, opts) })
		return errors.Join(e, err)
	}}
	pc, err := lc.ListenPacket(context.Background(), network, addr.String())
	if err != nil {
		return nil, err // names the operation and the address
	}
	conn := pc.(*net.UDPConn)
	s.conn = conn
	s.local = conn.LocalAddr().(*net.UDPAddr).AddrPort()
	s.local = netip.AddrPortFrom(s.local.Addr().Unmap(), s.local.Port())
	if s.polled = opts.Set == nil && !opts.SendOnly; s.polled {
		s.raw, err = conn.SyscallConn()
	} else {
		err = s.leavePoller(conn, opts.Set)
	}
	if err != nil {
		s.conn.Close()
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	s.segment.Store(s.features.Segmentation)
	s.receive.init(s)
	return s, nil
}

// leavePoller takes the socket out of Go's poller, which would wake at each datagram that
// comes, and at each that has gone, whoever waits for it; and puts it into set, if there
// is one.
func (s *Socket) leavePoller(conn *net.UDPConn, set *ready.Set) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var f *os.File
	if e := raw.Control(func(fd uintptr) { f, err = ready.Duplicate(fd, "udp") }); e != nil || err != nil {
		return errors.Join(e, err)
	}
	s.conn = f
	if err := conn.Close(); err != nil {
		return err
	}
	if s.raw, err = f.SyscallConn(); err != nil || set == nil {
		return err
	}
	if e := s.raw.Control(func(fd uintptr) { s.source, err = set.Add(int(fd), true) }); e != nil {
		return e
	}
	return err
}

// setOptions sets up a socket before it is bound. Buffers and offloads are taken
// as far as the kernel gives them.
func setOptions(fd int, ipv6 bool, buffer int, opts Options) (Features, error) {
	var f Features
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, buffer)
	// The kernel doubles what it is asked, for its own bookkeeping.
	if n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF); err == nil {
		f.ReceiveBuffer = n / 2
	}
	if n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF); err == nil {
		f.SendBuffer = n / 2
	}
	level, option, dont := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT
	if ipv6 {
		level, option, dont = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT
	}
	if err := unix.SetsockoptInt(fd, level, option, dont); err != nil {
		return f, fmt.Errorf("allow fragmentation: %w", err)
	}
	// The outer congestion bits of what comes; a kernel without this tells none.
	if ipv6 {
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
	} else {
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
	}
	if !opts.NoSegmentation {
		_, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		f.Segmentation = err == nil
	}
	if opts.SendOnly {
		// A filter that takes nothing: no memory is held by what nobody reads.
		drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop[0]}); err != nil {
			return f, fmt.Errorf("drop what comes: %w", err)
		}
		return f, nil
	}
	if !opts.NoGRO {
		f.GRO = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
	}
	return f, nil
}

// Features says what is in use now.
func (s *Socket) Features() Features {
	f := s.features
	f.Segmentation = s.segment.Load()
	return f
}

// Local implements Conn.
func (s *Socket) Local() netip.AddrPort { return s.local }

// Close implements Conn.
func (s *Socket) Close() error {
	if s.source != nil {
		s.source.Close()
	}
	err := s.conn.Close()
	if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
