package egress

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// poller tells streams when their sockets have news. There is one for all: its own
// epoll, which Go's poller watches as one descriptor. So a socket costs one system call
// to be watched and none to be forgotten, an idle one has no goroutine, and what is
// short is done by the goroutine that learned of it.
type poller struct {
	f    *os.File
	raw  syscall.RawConn
	done chan struct{}

	mu   sync.Mutex // guards what follows
	next uint64
	all  map[uint64]*stream
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // or Go would not watch it
		return nil, errors.Join(fmt.Errorf("epoll: %w", err), unix.Close(fd))
	}
	p := &poller{f: os.NewFile(uintptr(fd), "epoll"), done: make(chan struct{}), all: map[uint64]*stream{}}
	if p.raw, err = p.f.SyscallConn(); err != nil {
		return nil, errors.Join(err, p.f.Close())
	}
	go p.run()
	return p, nil
}

// close stops the poller and waits for it. No stream is watched any more.
func (p *poller) close() {
	_ = p.f.Close()
	<-p.done
}

func (p *poller) run() {
	defer close(p.done)
	events := make([]unix.EpollEvent, 64)
	_ = p.raw.Read(func(fd uintptr) bool {
		for {
			n, err := ignoringEINTR(func() (int, error) { return unix.EpollWait(int(fd), events, 0) })
			if err != nil {
				return true
			}
			for i := range events[:max(n, 0)] {
				ev := &events[i]
				if s := p.find(uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32); s != nil {
					s.news(ev.Events)
				}
			}
			if n < len(events) {
				return false // until there is more
			}
		}
	})
}

// find is the stream of an event; nil if it was forgotten meanwhile, whoever has its
// descriptor now.
func (p *poller) find(id uint64) *stream {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all[id]
}

// watch begins to tell s of events, those that are there already too.
func (p *poller) watch(s *stream, fd int, events uint32) error {
	p.mu.Lock()
	p.next++
	s.id = p.next
	p.all[s.id] = s
	p.mu.Unlock()
	if err := p.control(unix.EPOLL_CTL_ADD, s.id, fd, events); err != nil {
		p.forget(s)
		return err
	}
	return nil
}

// change tells s of other events.
func (p *poller) change(s *stream, fd int, events uint32) error {
	return p.control(unix.EPOLL_CTL_MOD, s.id, fd, events)
}

func (p *poller) control(op int, id uint64, fd int, events uint32) error {
	ev := unix.EpollEvent{Events: events | unix.EPOLLET, Fd: int32(uint32(id)), Pad: int32(uint32(id >> 32))}
	var err error
	if cerr := p.raw.Control(func(epfd uintptr) { err = unix.EpollCtl(int(epfd), op, fd, &ev) }); cerr != nil {
		return cerr
	}
	return err
}

// forget ends it. The kernel forgets a socket when it is closed.
func (p *poller) forget(s *stream) {
	p.mu.Lock()
	delete(p.all, s.id)
	p.mu.Unlock()
}
