package ready

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pipe is a Source over the end of a socket pair that is read, and the other end.
type pipe struct {
	source *Source
	fd     int
	other  int
	buf    [64]byte
	n      int
	tries  int
}

func newPipe(t testing.TB, s *Set, reserved bool) *pipe {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &pipe{fd: fds[0], other: fds[1]}
	if p.source, err = s.Add(p.fd, reserved); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.source.Close()
		unix.Close(p.fd)
		unix.Close(p.other)
	})
	return p
}

func (p *pipe) try() bool {
	p.tries++
	n, err := unix.Read(p.fd, p.buf[:])
	p.n = n
	return err != unix.EAGAIN && err != unix.EINTR
}

func (p *pipe) write(t testing.TB, b byte) {
	t.Helper()
	if _, err := unix.Write(p.other, []byte{b}); err != nil {
		t.Error(err)
	}
}

func newSet(t testing.TB, seats, reserved int) *Set {
	t.Helper()
	s, err := New(seats, reserved)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// allFree waits until readers for whom nothing comes have left their seats.
func (s *Set) allFree(t testing.TB, seats, reserved int) {
	t.Helper()
	for begun := time.Now(); s.free[0].Load() != int32(seats) || s.free[1].Load() != int32(reserved); runtime.Gosched() {
		if time.Since(begun) > 10*time.Second {
			t.Fatalf("%d of %d seats are free, %d of %d reserved ones", s.free[0].Load(), seats, s.free[1].Load(), reserved)
		}
	}
}

// threads of this process.
func threads(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// A reader is woken for each thing to read, in a seat and without.
func TestReadersAreWoken(t *testing.T) {
	for _, c := range []struct {
		name            string
		seats, reserved int
		may             bool
	}{{"in a seat", 1, 0, false}, {"in a reserved seat", 0, 1, true}, {"in none", 0, 0, true}, {"in none, one is reserved", 0, 1, false}} {
		t.Run(c.name, func(t *testing.T) {
			s := newSet(t, c.seats, c.reserved)
			p := newPipe(t, s, c.may)
			got := make(chan byte)
			done := make(chan error, 1)
			go func() {
				for {
					if err := p.source.Read(p.try); err != nil {
						done <- err
						return
					}
					got <- p.buf[0]
				}
			}()
			for i := range 500 {
				if i%100 == 99 {
					s.allFree(t, c.seats, c.reserved)
				}
				p.write(t, byte(i))
				if b := <-got; b != byte(i) {
					t.Fatalf("read %d, want %d", b, byte(i))
				}
			}
			p.source.Close()
			p.source.Close()
			if err := <-done; !errors.Is(err, ErrClosed) {
				t.Errorf("Read after Close: %v", err)
			}
			s.allFree(t, c.seats, c.reserved)
		})
	}
}

// Hundreds of quiet readers hold no thread, and no seat.
func TestQuietReadersHoldNothing(t *testing.T) {
	s := newSet(t, 2, 1)
	const n = 300
	before := threads(t)
	var wg sync.WaitGroup
	var pipes []*pipe
	woken := make(chan int, n)
	for i := range n {
		p := newPipe(t, s, false)
		pipes = append(pipes, p)
		wg.Go(func() {
			for p.source.Read(p.try) == nil {
				woken <- i
			}
		})
	}
	for i, p := range pipes {
		p.write(t, 1)
		if got := <-woken; got != i {
			t.Fatalf("reader %d is woken for what came to %d", got, i)
		}
	}
	// Those in the two seats leave them.
	s.allFree(t, 2, 1)
	if now := threads(t); now > before+10 {
		t.Errorf("%d threads with %d readers that wait, %d before", now, n, before)
	}
	for _, p := range pipes {
		p.source.Close()
	}
	wg.Wait()
}

// Whoever stops the world does not wait for a reader in a seat.
func TestASeatedReaderIsInNobodysWay(t *testing.T) {
	s := newSet(t, 1, 0)
	s.patience = time.Minute
	p := newPipe(t, s, false)
	done := make(chan error, 1)
	go func() { done <- p.source.Read(p.try) }()
	for s.free[0].Load() != 0 {
		runtime.Gosched()
	}
	for range 20 {
		runtime.GC()
	}
	p.write(t, 1)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if p.tries < 2 {
		t.Errorf("the reader tried %d times", p.tries)
	}
}

// A reader that ends because of what it read, as one does whose device is gone, has its
// seat still; it is free when the reader leaves it, or the Source is closed.
func TestSeatOfAReaderThatEnded(t *testing.T) {
	t.Run("it leaves", func(t *testing.T) { testSeatOfAReaderThatEnded(t, (*Source).Leave) })
	t.Run("its Source is closed", func(t *testing.T) { testSeatOfAReaderThatEnded(t, (*Source).Close) })
}

func testSeatOfAReaderThatEnded(t *testing.T, free func(*Source)) {
	s := newSet(t, 1, 0)
	s.patience = time.Minute
	p := newPipe(t, s, false)
	ended := make(chan error)
	go func() { ended <- p.source.Read(p.try) }()
	for begun := time.Now(); s.free[0].Load() != 0; runtime.Gosched() {
		if time.Since(begun) > 10*time.Second {
			t.Fatal("the reader never sits down")
		}
	}
	p.write(t, 1)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	free(p.source)
	s.allFree(t, 1, 0)
}

// A seated reader lets others run once before it waits, and tries again.
func TestOthersAreLetRunOnce(t *testing.T) {
	s := newSet(t, 1, 0)
	s.patience = time.Minute
	p := newPipe(t, s, false)
	yields := 0
	s.yield = func() {
		if yields++; p.tries != 1 {
			t.Errorf("after %d tries", p.tries)
		}
		p.write(t, 7)
	}
	// A write that takes its time, on a busy machine, is no reason for a grudge here.
	for range 3 {
		p.tries = 0
		s.grudge.Store(0)
		if err := p.source.Read(p.try); err != nil || p.tries != 2 || p.buf[0] != 7 {
			t.Fatalf("read %q in %d tries: %v", p.buf[:p.n], p.tries, err)
		}
	}
	if yields != 3 {
		t.Errorf("let others run %d times in 3 reads", yields)
	}
	// What comes only later is waited for in the kernel.
	p.tries = 0
	s.grudge.Store(0)
	s.yield = func() { go p.write(t, 8) }
	if err := p.source.Read(p.try); err != nil || p.buf[0] != 8 {
		t.Errorf("read %q: %v", p.buf[:p.n], err)
	}
}

// Whoever keeps a reader off the processor for long is not let run again soon.
func TestGrudge(t *testing.T) {
	s := newSet(t, 1, 0)
	yields := 0
	long := courtesy + time.Millisecond
	s.yield = func() {
		yields++
		for begun := time.Now(); time.Since(begun) < long; {
		}
	}
	if !s.letRun() || s.letRun() || yields != 1 {
		t.Errorf("let others run %d times, want once", yields)
	}
	if until := time.Duration(s.grudge.Load()); until < grudge || until > time.Since(s.begun)+grudge {
		t.Errorf("bears a grudge until %v", until)
	}
	s.grudge.Store(0) // it is over
	if !s.letRun() || yields != 2 {
		t.Errorf("let others run %d times, want twice", yields)
	}
}

// A reader in a seat waits in the kernel: what is there is read by two calls, and
// nothing is allocated.
func TestReadDoesNotAllocate(t *testing.T) {
	for _, seats := range []int{0, 1} {
		s := newSet(t, seats, 0)
		p := newPipe(t, s, false)
		try := p.try
		got := make(chan struct{})
		ask := make(chan struct{})
		go func() {
			defer close(got)
			for range ask {
				if p.source.Read(try) != nil {
					return
				}
				got <- struct{}{}
			}
		}()
		one := []byte{1}
		if n := testing.AllocsPerRun(200, func() {
			ask <- struct{}{}
			if _, err := unix.Write(p.other, one); err != nil {
				t.Fatal(err)
			}
			<-got
		}); n != 0 {
			t.Errorf("%d seats: %v allocations a read", seats, n)
		}
		close(ask)
		<-got
	}
}

// A duplicate is the same file, does not end with the first, and is not in Go's
// poller.
func TestDuplicate(t *testing.T) {
	fds := make([]int, 2)
	if err := unix.Pipe2(fds, unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	d, err := Duplicate(uintptr(fds[0]), "pipe")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	unix.Close(fds[0])
	if _, err := unix.Write(fds[1], []byte("x")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if n, err := d.Read(b); n != 1 || err != nil || b[0] != 'x' {
		t.Errorf("read %d bytes, %q: %v", n, b, err)
	}
	// A file in the poller would wait for more.
	if _, err := d.Read(b); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("read of nothing: %v", err)
	}
	if err := d.SetReadDeadline(time.Now()); !errors.Is(err, os.ErrNoDeadline) {
		t.Errorf("a deadline, which only the poller has: %v", err)
	}
	if _, err := Duplicate(^uintptr(0)>>1, "none"); !errors.Is(err, unix.EBADF) {
		t.Errorf("duplicate of nothing: %v", err)
	}
}
