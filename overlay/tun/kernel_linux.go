package tun

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"tulle/overlay/ready"
)

// Errors of FromFD and of a Kernel's Read and Write.
var (
	// ErrNotTUN: the descriptor is no TUN device that is attached to an interface.
	ErrNotTUN = errors.New("descriptor is not a TUN device")
	// ErrFlags: it is one, but of another kind than IFF_TUN|IFF_NO_PI|IFF_VNET_HDR.
	ErrFlags = errors.New("TUN device has the wrong kind")
	// ErrGone: the interface was deleted; the descriptor will never carry a packet again.
	ErrGone = errors.New("TUN device's interface is gone")
	// ErrDown: the interface is down. A later write may pass.
	ErrDown = errors.New("TUN device's interface is down")
	// ErrTooManyPieces: Write takes MaxPieces.
	ErrTooManyPieces = errors.New("write has too many pieces")
)

// MaxPieces is how many pieces one Write takes.
const MaxPieces = 128

// Offloads asked of the container's stack, best first. UDP segmentation came
// with Linux 6.2.
const (
	offloadTCP = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	offloadECN = unix.TUN_F_TSO_ECN
	offloadUDP = unix.TUN_F_USO4 | unix.TUN_F_USO6
)

// Kernel is the Device over a real TUN descriptor.
type Kernel struct {
	file   *os.File
	raw    syscall.RawConn
	name   string
	udp    bool
	source *ready.Source // nil: the file is in Go's poller
	reads  read
}

var _ Device = (*Kernel)(nil)

// FromFile wraps a passed descriptor as FromFD does. f stays the caller's.
//
// It takes the descriptor by SyscallConn. f.Fd() must not be called on this or
// any duplicate: it makes the open file description, which all duplicates share,
// blocking, and then Close no longer wakes a reader.
func FromFile(f *os.File) (*Kernel, error) { return FromFileIn(f, nil) }

// FromFileIn is FromFile with a reader that waits in set; nil: in Go's poller.
func FromFileIn(f *os.File, set *ready.Set) (*Kernel, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("use TUN descriptor: %w", err)
	}
	var k *Kernel
	if e := raw.Control(func(fd uintptr) { k, err = fromFD(int(fd), set) }); e != nil {
		return nil, fmt.Errorf("use TUN descriptor: %w", e)
	}
	return k, err
}

// FromFD checks that fd is a TUN device of the kind needed (else ErrNotTUN or
// ErrFlags) and makes a Device over a duplicate of it; fd stays the caller's,
// and the interface lives until the last duplicate is closed. It asks the
// kernel for all offloads it has. None of this needs a privilege or to be in
// the device's namespace.
func FromFD(fd int) (*Kernel, error) { return fromFD(fd, nil) }

func fromFD(fd int, set *ready.Set) (*Kernel, error) {
	name, err := checkKind(fd)
	if err != nil {
		return nil, err
	}
	// A Read or writev of the header's length, whatever the maker had set.
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, HeaderLen); err != nil {
		return nil, fmt.Errorf("set virtio header length of TUN %q: %w", name, err)
	}
	if err := checkNoPI(fd, name); err != nil {
		return nil, err
	}
	k, err := open(fd, name, set)
	if err != nil {
		return nil, fmt.Errorf("open TUN %q: %w", name, err)
	}
	if err := k.setOffloads(); err != nil {
		k.Close()
		return nil, fmt.Errorf("set offloads of TUN %q: %w", name, err)
	}
	return k, nil
}

// open makes a Kernel of a duplicate of fd.
//
// It is non-blocking, so that Close wakes a reader. The library that made the device
// could open it here as well, but keeps two megabytes a device for joining
// packets, which happens elsewhere.
func open(fd int, name string, set *ready.Set) (k *Kernel, err error) {
	if err := unix.SetNonblock(fd, true); err != nil { // all duplicates are
		return nil, err
	}
	k = &Kernel{name: name}
	if set != nil {
		k.file, err = ready.Duplicate(uintptr(fd), name)
	} else if fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); err == nil {
		k.file = os.NewFile(uintptr(fd), name)
	}
	if err != nil {
		return nil, err
	}
	k.reads.init(k)
	if k.raw, err = k.file.SyscallConn(); err == nil && set != nil {
		if e := k.raw.Control(func(own uintptr) { k.source, err = set.Add(int(own), false) }); e != nil {
			err = e
		}
	}
	if err != nil {
		k.file.Close()
		return nil, err
	}
	return k, nil
}

// checkKind asks the descriptor what it is and returns the interface's name,
// which means something in the device's own namespace only.
func checkKind(fd int) (string, error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return "", err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		// ENOTTY: another kind of file; EBADFD: /dev/net/tun without an interface.
		return "", fmt.Errorf("%w: %w", ErrNotTUN, err)
	}
	const kind = unix.IFF_TUN | unix.IFF_VNET_HDR
	if got := ifr.Uint16(); got&(kind|unix.IFF_TAP|unix.IFF_DETACH_QUEUE) != kind {
		return "", fmt.Errorf("%w: flags of %q are %#x, needed are IFF_TUN|IFF_NO_PI|IFF_VNET_HDR", ErrFlags, ifr.Name(), got)
	}
	return ifr.Name(), nil
}

// checkNoPI refuses a device that puts packet information (struct tun_pi) before
// every virtio header. TUNGETIFF cannot tell: it reports the bit of IFF_NO_PI
// for any device without a socket filter (IFF_NOFILTER is the same number). So
// it is asked by a write that no stack takes: as packet information, a virtio
// header and nothing, it passes; as a virtio header and a packet of IP version
// 0, it is EINVAL, whatever the interface's state.
func checkNoPI(fd int, name string) error {
	const piLen = 4
	_, err := unix.Write(fd, make([]byte, piLen+HeaderLen))
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return fmt.Errorf("%w: %q was made without IFF_NO_PI", ErrFlags, name)
}

func (k *Kernel) setOffloads() error {
	var err error
	e := k.raw.Control(func(fd uintptr) {
		for _, try := range []int{offloadTCP | offloadECN | offloadUDP, offloadTCP | offloadECN, offloadTCP} {
			if err = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, try); err == nil {
				k.udp = try&offloadUDP != 0
				return
			}
		}
	})
	return errors.Join(e, err)
}

// Name is the interface's name in its own namespace.
func (k *Kernel) Name() string { return k.name }

// UDPOffload says whether the device takes and gives UDP super-packets.
func (k *Kernel) UDPOffload() bool { return k.udp }

// Read implements Device. Besides ErrClosed it can end with ErrGone.
func (k *Kernel) Read(b []byte) (int, error) {
	if k.source != nil {
		return k.readSource(b)
	}
	n, err := k.file.Read(b)
	if err == nil {
		return n, nil
	}
	if errors.Is(err, os.ErrClosed) {
		return 0, ErrClosed
	}
	// Go's poller has no word of its own for the EPOLLERR of a deleted interface.
	if k.gone() {
		return 0, ErrGone
	}
	return 0, err
}

// readSource is Read where a Source waits.
func (k *Kernel) readSource(b []byte) (int, error) {
	r := &k.reads
	r.b = b
	// Control holds the descriptor open while the reader waits.
	err := k.raw.Control(r.hold)
	r.b = nil
	switch {
	case err != nil || errors.Is(r.err, ready.ErrClosed):
		return 0, ErrClosed
	case r.err != nil:
		return 0, r.err
	case r.errno == unix.EBADFD:
		k.source.Leave()
		return 0, ErrGone
	case r.errno != 0:
		return 0, r.errno
	}
	return r.n, nil
}

// gone asks whether the descriptor has lost its interface.
func (k *Kernel) gone() bool {
	var err error
	e := k.raw.Control(func(fd uintptr) { _, err = checkKind(int(fd)) })
	return e == nil && errors.Is(err, unix.EBADFD)
}

// Write implements Device: at most MaxPieces pieces. A caller that keeps its
// slice of pieces allocates nothing. ErrDown and ErrGone are the states of the
// interface; any other error but ErrClosed is the kernel's refusal of this packet
// (EINVAL for a virtio header that lies).
func (k *Kernel) Write(pieces ...[]byte) error {
	if len(pieces) > MaxPieces {
		return ErrTooManyPieces
	}
	w := writes.Get().(*write)
	n := 0
	for _, p := range pieces {
		if len(p) > 0 {
			w.iov[n].Base = unsafe.SliceData(p)
			w.iov[n].SetLen(len(p))
			n++
		}
	}
	w.n = n
	// Control only holds the descriptor open. Writers do not wait for each other:
	// the kernel runs the container's receive path inside each call.
	err := k.raw.Control(w.do)
	errno := w.errno
	clear(w.iov[:n])
	writes.Put(w)
	switch {
	case err != nil:
		return ErrClosed
	case errno == 0:
		return nil
	case errno == unix.EIO:
		return ErrDown
	case errno == unix.EBADFD:
		return ErrGone
	}
	return errno
}

// Close implements Device.
func (k *Kernel) Close() error {
	if k.source != nil {
		k.source.Close()
	}
	err := k.file.Close()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// read is the state of a reader with a Source. Its function is bound once, so that no
// call allocates a closure.
type read struct {
	b     []byte
	n     int
	errno syscall.Errno
	err   error   // of waiting
	fd    uintptr // within hold
	hold  func(fd uintptr)
}

func (r *read) init(k *Kernel) {
	try := r.try
	r.hold = func(fd uintptr) { r.fd = fd; r.err = k.source.Read(try) }
}

// try reads what is there; false: nothing. The call is short, so the scheduler isn't
// told: it would look for something else to do on this processor.
func (r *read) try() bool {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, r.fd, uintptr(unsafe.Pointer(unsafe.SliceData(r.b))), uintptr(len(r.b)))
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		}
		r.n, r.errno = int(n), errno
		return true
	}
}

// write is the state of one writev; do is bound once, so that no call allocates
// a closure.
type write struct {
	iov   [MaxPieces]unix.Iovec
	n     int
	errno syscall.Errno
	do    func(fd uintptr)
}

var writes = sync.Pool{New: func() any {
	w := new(write)
	w.do = w.writev
	return w
}}

func (w *write) writev(fd uintptr) {
	for {
		_, _, w.errno = unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&w.iov[0])), uintptr(w.n))
		if w.errno != unix.EINTR {
			return
		}
	}
}
