package overlay

import (
	"context"
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/overlay/holder"
)

// line is an attachment's lifeline. The zero line never ends.
type line struct {
	gone  <-chan struct{} // a connection's end
	pidfd *os.File        // ours; readable when the process has ended
	stop  chan struct{}   // closed with the attachment
	once  *sync.Once
}

// newLine takes what an attach brought; the caller closes it.
func newLine(r control.AttachRequest) (line, error) {
	ln := line{stop: make(chan struct{}), once: new(sync.Once)}
	switch r.Lifeline {
	case control.LifelineConnection:
		ln.gone = r.Gone
	case control.LifelinePidfd:
		var err error
		ln.pidfd, err = pollable(r.Pidfd)
		return ln, err
	}
	return ln, nil
}

// pollable is a duplicate that the runtime's poller waits for, so that no
// thread is blocked for each container.
func pollable(f *os.File) (*os.File, error) {
	d, err := holder.Duplicate(f)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fd, err := unix.FcntlInt(d.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

func (ln line) close() error {
	if ln.once == nil {
		return nil
	}
	var err error
	ln.once.Do(func() {
		close(ln.stop)
		if ln.pidfd != nil {
			err = ln.pidfd.Close()
		}
	})
	return err
}

// watch ends the attachment when its lifeline does. It returns at once; what it
// starts ends with the attachment or the life.
func (l *life) watch(at *attachment) {
	switch {
	case at.line.gone != nil:
		l.lines.Go(func() {
			select {
			case <-at.line.gone:
				l.lifelineEnded(at, "its connection ended")
			case <-at.line.stop:
			}
		})
	case at.line.pidfd != nil:
		l.lines.Go(func() {
			raw, err := at.line.pidfd.SyscallConn()
			if err == nil {
				err = raw.Read(func(fd uintptr) bool {
					p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
					for {
						n, err := unix.Poll(p, 0)
						// A signal (the scheduler's, on a busy host) ends even a poll that does
						// not wait; and the runtime's poller tells of the end only once.
						if !errors.Is(err, unix.EINTR) {
							return n > 0 || err != nil
						}
					}
				})
			}
			if err == nil {
				l.lifelineEnded(at, "its process ended")
			}
		})
	}
}

// lifelineEnded detaches, unless the container was detached or resumed by then.
func (l *life) lifelineEnded(at *attachment, why string) {
	unlock, err := l.locks.lock(context.Background(), at.e.Container)
	if err != nil {
		return
	}
	defer unlock()
	l.mu.Lock()
	current := l.attached[at.e.Container] == at
	l.mu.Unlock()
	if !current {
		return
	}
	if err := l.end(at.e, why); err != nil {
		l.d.log.Error("detach is not journalled", "container", at.e.Container, "err", err)
	}
}

// closeLifelines stops watching; the endpoints stay journalled.
func (l *life) closeLifelines() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range l.attached {
		_ = at.line.close()
	}
}

// keyed is a mutex for each key.
type keyed struct {
	mu   sync.Mutex
	held map[string]*keyLock // guarded by mu
}

type keyLock struct {
	sem  chan struct{} // capacity 1
	uses int           // guarded by keyed.mu
}

func (k *keyed) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[string]*keyLock{}
	}
	kl := k.held[key]
	if kl == nil {
		kl = &keyLock{sem: make(chan struct{}, 1)}
		k.held[key] = kl
	}
	kl.uses++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if kl.uses--; kl.uses == 0 {
			delete(k.held, key)
		}
	}
	select {
	case kl.sem <- struct{}{}:
		return func() { <-kl.sem; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
