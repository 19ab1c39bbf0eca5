package egress

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// TLSPort is where a container's sidecar ends TLS. It is forwarded only by its name.
const TLSPort = 61443

// keepFor is how long a forward that is kept waits for its container to come back.
const keepFor = 5 * time.Minute

// Forward is a port of this host that leads to a container's.
type Forward struct {
	Protocol string         // tcp or udp
	Host     netip.AddrPort // the address may be unspecified: all of them
	Port     uint16         // the container's
	// TLS asks for TLSPort by its name; Port is then 0 or TLSPort.
	TLS bool
	// Keep leaves the port bound for a while when the container goes: it restarts.
	Keep bool
}

// Errors of forwards.
var (
	ErrForward = errors.New("forward")
	ErrTaken   = errors.New("port is taken")
)

// Check names the first fault, and completes the forward.
func (f *Forward) Check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrForward}, args...)...)
	}
	switch {
	case f.Protocol != "tcp" && f.Protocol != "udp":
		return bad("protocol %q is neither tcp nor udp", f.Protocol)
	case !f.Host.Addr().IsValid() || f.Host.Addr().Zone() != "" || f.Host.Addr().IsMulticast():
		return bad("host address %v is no address to listen on", f.Host.Addr())
	case f.Host.Port() == 0:
		return bad("the host's port is missing")
	case f.TLS && (f.Protocol != "tcp" || f.Port != 0 && f.Port != TLSPort):
		return bad("tls is TCP port %d and no other", TLSPort)
	case f.TLS:
		f.Port = TLSPort
	case f.Port == TLSPort && f.Protocol == "tcp":
		return bad("container port %d ends TLS for other containers and is not forwarded unless it is asked for by its name, tls", TLSPort)
	case f.Port == 0:
		return bad("the container's port is missing")
	}
	f.Host = netip.AddrPortFrom(f.Host.Addr().Unmap(), f.Host.Port())
	return nil
}

func (f Forward) String() string {
	return fmt.Sprintf("%v/%s to port %d", f.Host, f.Protocol, f.Port)
}

// Listed is a forward and whose it is.
type Listed struct {
	Forward
	Identity
	Waiting bool // its container is gone and may come back
}

// forwards are those of all containers. A port belongs to one.
type forwards struct {
	e *Egress

	mu     sync.Mutex // guards what follows
	closed bool
	all    map[HostService]*forward
	// replies finds a datagram's forward by what the container sends.
	replies map[replyKey]*peer
	next    uint16 // of the ports of clients whose address cannot be kept
}

type forward struct {
	Forward
	fs    *forwards
	who   Identity
	f     *os.File
	raw   syscall.RawConn
	done  chan struct{}
	since time.Time // of waiting; guarded by forwards.mu
	// clients of a datagram forward, by address; guarded by forwards.mu.
	clients map[netip.AddrPort]*peer
}

func (fs *forwards) init(e *Egress) {
	fs.e, fs.all, fs.replies = e, map[HostService]*forward{}, map[replyKey]*peer{}
}

// AddForward binds a port for an attached container. One that was kept for it is
// taken over. The error names who has the port, if it is one of ours.
func (e *Egress) AddForward(addr netip.Addr, f Forward) error {
	if err := f.Check(); err != nil {
		return err
	}
	c := e.find(addr)
	if c == nil {
		return fmt.Errorf("%w %v: no container has %v", ErrForward, f, addr)
	}
	return e.forwards.add(c, f)
}

func (fs *forwards) add(c *container, f Forward) error {
	key := HostService{f.Host, f.Protocol}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.closed {
		return fmt.Errorf("%w %v: the daemon is stopping", ErrForward, f)
	}
	if has := fs.all[key]; has != nil && has.who.Container == c.who.Container {
		has.since, has.who, has.Forward = time.Time{}, c.who, f
		return nil
	}
	if has := fs.holderLocked(key); has != nil {
		return fmt.Errorf("%w: %v is forwarded to container %s (app %s) already", ErrTaken, has.Host, has.who.Container, cmp.Or(has.who.AppName, has.who.App))
	}
	file, err := fs.e.listen(f)
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("%w: %v/%s: another process of this host has it", ErrTaken, f.Host, f.Protocol)
	}
	if err != nil {
		return f.explain(err)
	}
	nf := &forward{Forward: f, fs: fs, who: c.who, f: file, done: make(chan struct{}), clients: map[netip.AddrPort]*peer{}}
	if nf.raw, err = file.SyscallConn(); err != nil {
		return errors.Join(err, file.Close())
	}
	fs.all[key] = nf
	go func() {
		defer close(nf.done)
		if f.Protocol == "tcp" {
			nf.accept()
		} else {
			nf.receive()
		}
	}()
	return nil
}

// explain says why a port could not be bound.
func (f Forward) explain(err error) error {
	const lowest = 1024 // of those that Linux gives to everybody, unless it is told otherwise
	if port := f.Host.Port(); errors.Is(err, unix.EACCES) && port < lowest {
		return fmt.Errorf("%w %v: %w; ports below %d are the kernel's to allow, as root: sysctl -w net.ipv4.ip_unprivileged_port_start=%d", ErrForward, f, err, lowest, port)
	}
	return fmt.Errorf("%w %v: %w", ErrForward, f, err)
}

// holderLocked is the forward that has the port on one of the addresses.
func (fs *forwards) holderLocked(key HostService) *forward {
	for k, f := range fs.all {
		same := k.Addr.Addr() == key.Addr.Addr() || k.Addr.Addr().IsUnspecified() || key.Addr.Addr().IsUnspecified()
		if k.Protocol == key.Protocol && k.Addr.Port() == key.Addr.Port() && same && k.Addr.Addr().Is4() == key.Addr.Addr().Is4() {
			return f
		}
	}
	return nil
}

// takes reports whether the address is one that a forward listens on.
func (fs *forwards) takes(s HostService) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.holderLocked(s) != nil
}

// RemoveForward closes a container's forward and its connections, and says whether
// there was one.
func (e *Egress) RemoveForward(container, protocol string, host netip.AddrPort) bool {
	fs := &e.forwards
	fs.mu.Lock()
	f := fs.all[HostService{host, protocol}]
	if f == nil || f.who.Container != container {
		fs.mu.Unlock()
		return false
	}
	fs.removeLocked(f)
	fs.mu.Unlock()
	<-f.done
	if c := e.find(f.who.Address); c != nil {
		c.endForward(f.Forward)
	}
	return true
}

func (fs *forwards) removeLocked(f *forward) {
	delete(fs.all, HostService{f.Host, f.Protocol})
	for _, p := range f.clients {
		delete(fs.replies, p.key)
	}
	clear(f.clients)
	_ = f.f.Close()
}

// release closes the forwards of a container that is gone, but those to be kept.
func (fs *forwards) release(container string) {
	fs.mu.Lock()
	var gone []*forward
	for _, f := range fs.all {
		switch {
		case f.who.Container != container:
		case f.Keep:
			f.since = fs.e.opt.Now()
			for _, p := range f.clients {
				delete(fs.replies, p.key)
			}
			clear(f.clients)
		default:
			fs.removeLocked(f)
			gone = append(gone, f)
		}
	}
	fs.mu.Unlock()
	for _, f := range gone {
		<-f.done
	}
}

func (fs *forwards) closeAll() {
	fs.mu.Lock()
	fs.closed = true
	all := make([]*forward, 0, len(fs.all))
	for _, f := range fs.all {
		fs.removeLocked(f)
		all = append(all, f)
	}
	fs.mu.Unlock()
	for _, f := range all {
		<-f.done
	}
}

// sweep gives up what was kept for too long, and datagram clients that are silent.
func (fs *forwards) sweep(now time.Time) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, f := range fs.all {
		if !f.since.IsZero() && now.Sub(f.since) > keepFor {
			fs.removeLocked(f)
			continue
		}
		for at, p := range f.clients {
			if now.Sub(p.last) > idleBoth {
				delete(f.clients, at)
				delete(fs.replies, p.key)
			}
		}
	}
}

// Forwards lists all, by host address.
func (e *Egress) Forwards() []Listed {
	fs := &e.forwards
	fs.mu.Lock()
	defer fs.mu.Unlock()
	list := make([]Listed, 0, len(fs.all))
	for _, f := range fs.all {
		list = append(list, Listed{f.Forward, f.who, !f.since.IsZero()})
	}
	slices.SortFunc(list, func(a, b Listed) int { return cmp.Or(a.Host.Compare(b.Host), cmp.Compare(a.Protocol, b.Protocol)) })
	return list
}

// listen binds the forward's socket.
func (e *Egress) listen(f Forward) (*os.File, error) {
	domain, typ := unix.AF_INET, unix.SOCK_STREAM
	if f.Host.Addr().Is6() {
		domain = unix.AF_INET6
	}
	if f.Protocol == "udp" {
		typ = unix.SOCK_DGRAM
	}
	fd, err := e.opt.Socket(domain, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if typ == unix.SOCK_STREAM {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == nil && domain == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil && typ == unix.SOCK_DGRAM && f.Host.Addr().IsUnspecified() {
		err = askWhere(fd, domain)
	}
	if err == nil {
		err = unix.Bind(fd, sockaddr(f.Host))
	}
	if err == nil && typ == unix.SOCK_STREAM {
		err = unix.Listen(fd, 4096)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "forward"), nil
}
