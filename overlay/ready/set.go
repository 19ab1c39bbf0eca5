package ready

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrClosed is returned by a Source after Close.
var ErrClosed = errors.New("descriptor is closed")

// Set is the descriptors of a program that are waited for together.
type Set struct {
	ep   *os.File // of epoll, itself in Go's poller
	raw  syscall.RawConn
	free [2]atomic.Int32 // seats for all, and reserved ones

	patience time.Duration // Patience, but in a test
	yield    func()        // yield, but in a test

	begun  time.Time
	grudge atomic.Int64 // till when others are not let run, in ns since begun

	mu      sync.Mutex // guards sources
	sources map[int32]*Source

	done chan struct{}
}

// New makes a Set with so many seats, and so many more for those that have a
// reservation.
func New(seats, reserved int) (*Set, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("wait for descriptors: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that Go's poller takes it
		unix.Close(fd)
		return nil, fmt.Errorf("wait for descriptors: %w", err)
	}
	s := &Set{ep: os.NewFile(uintptr(fd), "epoll"), patience: Patience, yield: yield, begun: time.Now(), sources: make(map[int32]*Source), done: make(chan struct{})}
	s.free[0].Store(int32(seats))
	s.free[1].Store(int32(reserved))
	if s.raw, err = s.ep.SyscallConn(); err != nil {
		s.ep.Close()
		return nil, fmt.Errorf("wait for descriptors: %w", err)
	}
	go s.run()
	return s, nil
}

// Close ends the Set's goroutine. Its Sources must have been closed before.
func (s *Set) Close() error {
	err := s.ep.Close()
	<-s.done
	return err
}

// run wakes the readers of descriptors that have something, until the Set is closed.
func (s *Set) run() {
	defer close(s.done)
	events := make([]unix.EpollEvent, 128)
	n := 0
	wait := func(fd uintptr) bool {
		var err error
		n, err = unix.EpollWait(int(fd), events, 0)
		return err == nil && n > 0 || err != nil && err != unix.EINTR
	}
	for s.raw.Read(wait) == nil {
		s.mu.Lock()
		for i := range max(n, 0) {
			// One that is gone, or whose number is another's by now, has at most one
			// look too many.
			if c := s.sources[events[i].Fd]; c != nil {
				c.rouse()
			}
		}
		s.mu.Unlock()
	}
}

// take is where a free seat was, a reserved one if may be, or nil.
func (s *Set) take(reserved bool) *atomic.Int32 {
	if reserved && takeOf(&s.free[1]) {
		return &s.free[1]
	}
	if takeOf(&s.free[0]) {
		return &s.free[0]
	}
	return nil
}

func takeOf(free *atomic.Int32) bool {
	for {
		n := free.Load()
		if n <= 0 {
			return false
		}
		if free.CompareAndSwap(n, n-1) {
			return true
		}
	}
}
