package udp

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of recvmmsg(2): a msghdr and the bytes moved, padded
// to the machine's word.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [unsafe.Sizeof(uintptr(0)) - 4]byte
}

// send is the scratch of one Send. Its functions are bound once, so that no call
// allocates a closure.
type send struct {
	control [6]uint64             // a cmsghdr with an int for ECN, if any, and one with a uint16, aligned
	ecnLen  int                   // of the former
	name    unix.RawSockaddrInet6 // an IPv4 address lies in its first bytes
	msgs    [MaxSegments]mmsghdr
	iovs    [MaxSegments]unix.Iovec
	count   int // messages prepared
	sent    int // messages the kernel took
	errno   syscall.Errno
	try     func(fd uintptr)      // send what is left, without waiting
	wait    func(fd uintptr) bool // the same, for the poller
	block   func(fd uintptr)      // the same, waiting on this thread
}

var sends = sync.Pool{New: func() any {
	s := new(send)
	s.try = s.flush
	s.wait = func(fd uintptr) bool { s.flush(fd); return s.errno != unix.EAGAIN }
	s.block = func(fd uintptr) {
		room := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		for s.errno == unix.EAGAIN {
			if _, err := unix.Poll(room, -1); err != nil && err != unix.EINTR {
				return
			}
			s.flush(fd)
		}
	}
	return s
}}

// Send implements Conn. Besides the errors of this package it returns the
// kernel's (ENETUNREACH and the like) as a syscall.Errno.
func (s *Socket) Send(to netip.AddrPort, b []byte, segment int) error {
	return s.SendECN(to, b, segment, 0)
}

// SendECN implements Conn.
func (s *Socket) SendECN(to netip.AddrPort, b []byte, segment int, ecn uint8) error {
	if segment <= 0 || segment > len(b) {
		segment = len(b)
	}
	if len(b) > segment && (len(b) > MaxSend || len(b) > segment*MaxSegments) {
		return ErrTooMany
	}
	op := sends.Get().(*send)
	defer sends.Put(op)
	nameLen, ok := op.setName(to, s.ipv6)
	if !ok {
		return unix.EAFNOSUPPORT
	}
	op.setECN(ecn, s.ipv6)
	if len(b) == segment || s.segment.Load() {
		op.prepareOne(b, segment, nameLen)
		err := s.flush(op)
		if err != unix.EIO && err != unix.EINVAL || len(b) == segment {
			return typed(err)
		}
		// A device or a kernel that cannot segment (EIO: no checksum offload below,
		// or IPsec; EINVAL: older kernels' word for the same and for a segment above
		// the path MTU). When the datagrams pass one by one, it was that.
		op.prepareMany(b, segment, nameLen)
		if err = s.flush(op); err == 0 {
			s.segment.Store(false)
		}
		return typed(err)
	}
	op.prepareMany(b, segment, nameLen)
	return typed(s.flush(op))
}

// errClosed is flush's word for a closed socket; no kernel call returns it here.
const errClosed = unix.EBADF

// typed gives the errors that callers branch on their name.
func typed(errno syscall.Errno) error {
	switch errno {
	case 0:
		return nil
	case unix.EMSGSIZE:
		return ErrMessageSize
	case errClosed:
		return ErrClosed
	}
	return errno
}

// flush sends what op holds. The first try only holds the descriptor open, so
// that senders run side by side; only where the socket's buffer is full does one
// wait in the poller, in turn.
func (s *Socket) flush(op *send) syscall.Errno {
	op.sent = 0
	if err := s.raw.Control(op.try); err != nil {
		return errClosed
	}
	if op.errno == unix.EAGAIN {
		if err := s.waitToSend(op); err != nil {
			return errClosed
		}
	}
	clear(op.iovs[:op.count])
	return op.errno
}

// waitToSend sends the rest of op as soon as there is room.
func (s *Socket) waitToSend(op *send) error {
	if s.polled {
		return s.raw.Write(op.wait)
	}
	return s.raw.Control(op.block)
}

// flush is one or more system calls until all messages are sent or one fails.
func (s *send) flush(fd uintptr) {
	for {
		if s.count == 1 {
			_, _, s.errno = unix.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&s.msgs[0].hdr)), unix.MSG_DONTWAIT)
			if s.errno == unix.EINTR {
				continue
			}
			return
		}
		var n uintptr
		n, _, s.errno = unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&s.msgs[s.sent])), uintptr(s.count-s.sent), unix.MSG_DONTWAIT, 0, 0)
		if s.errno == unix.EINTR {
			continue
		}
		if s.errno != 0 {
			return
		}
		if s.sent += int(n); s.sent >= s.count {
			return
		}
	}
}

// setName writes the destination as a socket address and returns its length.
func (s *send) setName(to netip.AddrPort, ipv6 bool) (uint32, bool) {
	addr := to.Addr().Unmap()
	if addr.Is6() != ipv6 || !addr.IsValid() {
		return 0, false
	}
	if ipv6 {
		s.name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: networkPort(to.Port()), Addr: addr.As16()}
		return unix.SizeofSockaddrInet6, true
	}
	*(*unix.RawSockaddrInet4)(unsafe.Pointer(&s.name)) = unix.RawSockaddrInet4{
		Family: unix.AF_INET, Port: networkPort(to.Port()), Addr: addr.As4(),
	}
	return unix.SizeofSockaddrInet4, true
}

// networkPort is the port as it stands in a socket address: big endian in memory.
func networkPort(p uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], p)
	return binary.NativeEndian.Uint16(b[:])
}

// prepareOne makes one message of b, with UDP_SEGMENT where it is several
// datagrams.
func (s *send) prepareOne(b []byte, segment int, nameLen uint32) {
	s.count = 1
	s.prepare(0, b, nameLen)
	if len(b) <= segment {
		return
	}
	control := unsafe.Add(unsafe.Pointer(&s.control), s.ecnLen)
	h := (*unix.Cmsghdr)(control)
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	*(*uint16)(unsafe.Add(control, unix.CmsgLen(0))) = uint16(segment)
	s.msgs[0].hdr.Control = (*byte)(unsafe.Pointer(&s.control))
	s.msgs[0].hdr.SetControllen(s.ecnLen + unix.CmsgSpace(2))
}

// setECN begins the control messages with the outer congestion bits; the socket's
// default is none.
func (s *send) setECN(ecn uint8, ipv6 bool) {
	s.ecnLen = 0
	if ecn == 0 {
		return
	}
	control := unsafe.Pointer(&s.control)
	h := (*unix.Cmsghdr)(control)
	h.Level, h.Type = unix.IPPROTO_IP, unix.IP_TOS
	if ipv6 {
		h.Level, h.Type = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	h.SetLen(unix.CmsgLen(4))
	*(*int32)(unsafe.Add(control, unix.CmsgLen(0))) = int32(ecn)
	s.ecnLen = unix.CmsgSpace(4)
}

// prepareMany makes a message of each datagram.
func (s *send) prepareMany(b []byte, segment int, nameLen uint32) {
	s.count = 0
	for len(b) > 0 {
		n := min(segment, len(b))
		s.prepare(s.count, b[:n], nameLen)
		s.count++
		b = b[n:]
	}
}

func (s *send) prepare(i int, b []byte, nameLen uint32) {
	s.iovs[i].Base = unsafe.SliceData(b)
	s.iovs[i].SetLen(len(b))
	s.msgs[i] = mmsghdr{hdr: unix.Msghdr{Name: (*byte)(unsafe.Pointer(&s.name)), Namelen: nameLen, Iov: &s.iovs[i]}}
	s.msgs[i].hdr.SetIovlen(1)
	if s.ecnLen > 0 {
		s.msgs[i].hdr.Control = (*byte)(unsafe.Pointer(&s.control))
		s.msgs[i].hdr.SetControllen(s.ecnLen)
	}
}
