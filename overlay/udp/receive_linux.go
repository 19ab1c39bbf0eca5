package udp

import (
	"errors"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"tulle/overlay/ready"
)

// maxBatch is how many messages one recvmmsg takes.
const maxBatch = 128

// control has room for two control messages of an int each, aligned: UDP_GRO, and
// the outer header's TOS or traffic class.
type control [6]uint64

// receiver is the scratch of the one goroutine that receives.
type receiver struct {
	names   [maxBatch]unix.RawSockaddrInet6
	control [maxBatch]control
	msgs    [maxBatch]mmsghdr
	iovs    [maxBatch]unix.Iovec
	count   int
	got     int
	errno   syscall.Errno
	err     error                 // of waiting in a Source
	fd      uintptr               // within hold
	wait    func(fd uintptr) bool // for Go's poller; bound once, as hold is
	hold    func(fd uintptr)      // for the Source, the descriptor being held open
}

func (r *receiver) init(s *Socket) {
	r.wait = r.recv
	try := func() bool { return r.recv(r.fd) }
	r.hold = func(fd uintptr) { r.fd = fd; r.err = s.source.Read(try) }
	for i := range r.msgs {
		h := &r.msgs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
		h.Control = (*byte)(unsafe.Pointer(&r.control[i]))
	}
}

// Receive implements Conn. At most 128 messages are filled in one call.
func (s *Socket) Receive(batch []Message) (int, error) {
	if len(batch) == 0 {
		return 0, errors.New("receive into an empty batch")
	}
	r := &s.receive
	r.count = min(len(batch), maxBatch)
	for i := range r.count {
		r.iovs[i].Base = unsafe.SliceData(batch[i].Buf)
		r.iovs[i].SetLen(len(batch[i].Buf))
		h := &r.msgs[i].hdr
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(int(unsafe.Sizeof(r.control[i])))
		h.Flags = 0
	}
	if err := s.wait(r); err != nil {
		return 0, err
	}
	if r.errno != 0 {
		return 0, r.errno
	}
	for i := range r.got {
		m := &batch[i]
		m.N = int(r.msgs[i].n)
		m.Segment = m.N
		n, tos := told(&r.msgs[i].hdr, &r.control[i])
		if n > 0 && n < m.N {
			m.Segment = n
		}
		m.ECN = tos & 3
		m.From = fromName(&r.names[i])
	}
	return r.got, nil
}

var errSendOnly = errors.New("receive from a socket that only sends")

// wait fills r.
func (s *Socket) wait(r *receiver) error {
	if s.polled {
		if s.raw.Read(r.wait) != nil {
			return ErrClosed
		}
		return nil
	}
	if s.source == nil {
		return errSendOnly
	}
	if s.raw.Control(r.hold) != nil || errors.Is(r.err, ready.ErrClosed) {
		return ErrClosed
	}
	return r.err
}

// recv takes what is there; false: nothing. Like sending, this is short, so the
// scheduler isn't told: it would look for something else to do on this processor.
func (r *receiver) recv(fd uintptr) bool {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.msgs[0])), uintptr(r.count), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		}
		r.got, r.errno = int(n), errno
		return true
	}
}

// told reads the control messages: the length of the joined datagrams, 0 where
// there is none, and the outer TOS or traffic class.
func told(h *unix.Msghdr, control *control) (segment int, tos uint8) {
	for at, end := 0, int(h.Controllen); at+unix.CmsgLen(0) <= end; {
		c := (*unix.Cmsghdr)(unsafe.Add(unsafe.Pointer(control), at))
		n := int(c.Len)
		if n < unix.CmsgLen(1) || at+n > end {
			break
		}
		data := unsafe.Add(unsafe.Pointer(c), unix.CmsgLen(0))
		switch {
		case c.Level == unix.IPPROTO_UDP && c.Type == unix.UDP_GRO && n >= unix.CmsgLen(4):
			segment = int(*(*int32)(data))
		case c.Level == unix.IPPROTO_IP && c.Type == unix.IP_TOS: // one byte
			tos = *(*uint8)(data)
		case c.Level == unix.IPPROTO_IPV6 && c.Type == unix.IPV6_TCLASS && n >= unix.CmsgLen(4):
			tos = uint8(*(*int32)(data))
		}
		at += unix.CmsgSpace(n - unix.CmsgLen(0))
	}
	return segment, tos
}

// fromName reads a socket address.
func fromName(name *unix.RawSockaddrInet6) netip.AddrPort {
	if name.Family == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), networkPort(v4.Port))
	}
	return netip.AddrPortFrom(netip.AddrFrom16(name.Addr).Unmap(), networkPort(name.Port))
}
