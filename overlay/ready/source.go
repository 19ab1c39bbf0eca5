package ready

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Patience is how long a seated reader waits before it leaves its seat.
const Patience = 4 * time.Millisecond

// A seated reader that has read all there was lets others run before it waits: where
// the processors are busy, whoever fills the descriptor then goes on and is not
// preempted by a wake-up for each thing it writes; where they are idle, it costs a
// system call, and saves two if more came meanwhile.
//
// Where others have work that never ends, they would run for milliseconds each time,
// and a wake-up is what the reader needs. So when it was kept off the processor for
// more than courtesy, nobody of the Set lets others run for the time of grudge.
const (
	courtesy = 500 * time.Microsecond
	grudge   = time.Second
)

// Source is one descriptor of a Set.
type Source struct {
	set      *Set
	fd       int32
	reserved bool          // it may have a reserved seat
	wake     chan struct{} // capacity 1
	closed   atomic.Bool

	seat atomic.Pointer[atomic.Int32] // where the reader's seat is from; nil: it has none

	// The reader's.
	poll    unix.PollFd
	timeout unix.Timespec
}

// Add takes a descriptor, which must not block and must stay open until Close has
// been called and the reader has ended (syscall.RawConn's Control sees to that).
// reserved is for the few that everybody depends on.
func (s *Set) Add(fd int, reserved bool) (*Source, error) {
	c := &Source{set: s, fd: int32(fd), reserved: reserved, wake: make(chan struct{}, 1)}
	c.poll = unix.PollFd{Fd: c.fd, Events: unix.POLLIN}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Armed by nobody yet.
	if err := s.control(unix.EPOLL_CTL_ADD, c.fd, 0); err != nil {
		return nil, fmt.Errorf("wait for descriptor: %w", err)
	}
	s.sources[c.fd] = c
	return c, nil
}

func (s *Set) control(op int, fd int32, events uint32) (err error) {
	e := unix.EpollEvent{Events: events | unix.EPOLLONESHOT, Fd: fd}
	if e := s.raw.Control(func(ep uintptr) { err = unix.EpollCtl(int(ep), op, int(fd), &e) }); e != nil {
		return e
	}
	return err
}

// Close ends the reader's waiting, at once or after Patience, and takes its seat from
// a reader that ended without it. It is idempotent.
func (c *Source) Close() {
	if c.closed.Swap(true) {
		return
	}
	c.set.mu.Lock()
	defer c.set.mu.Unlock()
	delete(c.set.sources, c.fd)
	_ = c.set.control(unix.EPOLL_CTL_DEL, c.fd, 0) // closing the descriptor does the same
	c.rouse()
	c.Leave()
}

// rouse wakes the reader if it waits for that.
func (c *Source) rouse() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Read calls try until it returns true: whenever there may be something to read,
// and at first. It returns ErrClosed when the Source is closed.
func (c *Source) Read(try func() bool) error {
	yielded := false
	for !c.closed.Load() {
		if try() {
			if c.closed.Load() { // this may be the last call
				c.Leave()
			}
			return nil
		}
		if c.sit() {
			if !yielded {
				if yielded = true; c.set.letRun() {
					continue
				}
			}
			if c.look() {
				continue
			}
			c.Leave()
		}
		if err := c.set.control(unix.EPOLL_CTL_MOD, c.fd, unix.EPOLLIN); err != nil && !c.closed.Load() {
			return fmt.Errorf("wait for descriptor: %w", err)
		}
		<-c.wake
	}
	c.Leave()
	return ErrClosed
}

func (c *Source) sit() bool {
	if c.seat.Load() != nil {
		return true
	}
	seat := c.set.take(c.reserved)
	c.seat.Store(seat)
	return seat != nil
}

// Leave is for a reader that will not read again, though the Source is not closed: it
// gives its seat back.
func (c *Source) Leave() {
	if seat := c.seat.Swap(nil); seat != nil {
		seat.Add(1)
	}
}

// letRun lets others run, and reports that it did.
func (s *Set) letRun() bool {
	begun := time.Since(s.begun)
	if begun < time.Duration(s.grudge.Load()) {
		return false
	}
	s.yield()
	if now := time.Since(s.begun); now-begun > courtesy {
		s.grudge.Store(int64(now + grudge))
	}
	return true
}

// yield is sched_yield(2), without a word to Go's scheduler either.
func yield() { _, _, _ = syscall.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// look waits in the kernel; false means that nothing came. The scheduler isn't told:
// it would take the processor away and have another thread look for work.
func (c *Source) look() bool {
	c.timeout = unix.NsecToTimespec(int64(c.set.patience))
	n, _, errno := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&c.poll)), 1, uintptr(unsafe.Pointer(&c.timeout)), 0, 0, 0)
	return n > 0 || errno == unix.EINTR
}
