package contain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
)

const (
	attachTimeout = 30 * time.Second // the daemon itself gives up after 5 s without a server
	detachTimeout = 5 * time.Second
	// A restarted daemon waits 10 s for its attachers. A refused connect is one
	// system call, so the pause can be short.
	firstPause = 10 * time.Millisecond
	longPause  = 500 * time.Millisecond
)

// lifeline keeps the endpoint alive: by a connection to the daemon whose end is
// a detach, and by duplicates of the device's descriptor and TLS's sockets, without
// which they would die with the daemon.
type lifeline struct {
	o       *Options
	client  *control.Client // nil while the daemon is away; hold's own until end
	kept    []int           // the device, then TLS's sockets; see keep
	refused chan error      // the daemon is back and will not have the endpoint
	cancel  context.CancelFunc
	held    chan struct{} // closed when hold has returned; nil before it starts
}

func newLifeline(o *Options, client *control.Client) *lifeline {
	return &lifeline{o: o, client: client, refused: make(chan error, 1)}
}

// keep takes duplicates of the descriptors and closes the files. They are kept as
// bare numbers on purpose: they are non-blocking, so an *os.File of one would sit
// in the poller, and every packet would wake this process.
func (l *lifeline) keep(files []*os.File) error {
	defer control.CloseAll(files)
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		var fd int
		var dupErr error
		err = raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
		if err := errors.Join(err, dupErr); err != nil {
			return err
		}
		l.kept = append(l.kept, fd)
	}
	return nil
}

// attach hands the device to the daemon. With resume the endpoint is the one
// that the daemon's journal has.
func (l *lifeline) attach(ctx context.Context, c *control.Client, resume bool) (control.Attached, error) {
	var files []*os.File
	defer func() { control.CloseAll(files) }()
	for _, kept := range l.kept {
		fd, err := unix.FcntlInt(uintptr(kept), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return control.Attached{}, fmt.Errorf("duplicate %s: %w", Device, err)
		}
		files = append(files, os.NewFile(uintptr(fd), Device))
	}
	ctx, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	return c.Attach(ctx, control.Attach{
		Container: l.o.Container,
		App:       l.o.App,
		Instance:  l.o.Instance,
		Device:    Device,
		Lifeline:  control.LifelineConnection,
		Resume:    resume,
		TLS:       l.o.TLS,
	}, files[0], nil, files[1:]...)
}

// hold starts to watch the connection and to resume when it has ended.
func (l *lifeline) hold() {
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel, l.held = cancel, make(chan struct{})
	go func() {
		defer close(l.held)
		for {
			select {
			case <-ctx.Done():
				return
			case <-l.client.Done():
			}
			l.o.Log.Warn("the cell daemon is gone; waiting for it", "container", l.o.Container)
			_ = l.client.Close()
			l.client = nil
			if err := l.resume(ctx); err != nil {
				if ctx.Err() == nil {
					l.refused <- err
				}
				return
			}
			l.o.Log.Info("attached again", "container", l.o.Container)
		}
	}()
}

// resume dials and attaches until the daemon has taken the endpoint back, or
// says that it never will.
func (l *lifeline) resume(ctx context.Context) error {
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		client, err := control.Dial(l.o.Socket)
		if err == nil {
			if _, err = l.attach(ctx, client, true); err == nil {
				l.client = client
				return nil
			}
			_ = client.Close()
		}
		if final(err) {
			return fmt.Errorf("%w: %w", ErrRefused, err)
		}
		l.o.Log.Debug("attach again", "container", l.o.Container, "err", err)
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
	}
}

// final reports whether asking again could not help. A daemon that cannot yet,
// or that still has the connection before, is asked again.
func final(err error) bool {
	var refusal *control.Error
	if !errors.As(err, &refusal) {
		return false
	}
	switch refusal.Code {
	case control.CodeBadRequest, control.CodeNotTUN, control.CodeNotAllowed,
		control.CodeNotFound, control.CodeRefused, control.CodePoolEmpty:
		return true
	}
	return false
}

// end detaches, so that the endpoint is gone when Run returns, and lets go of
// connection and device.
func (l *lifeline) end() {
	if l.held != nil {
		l.cancel()
		<-l.held
	}
	if l.client != nil {
		if l.held != nil {
			ctx, cancel := context.WithTimeout(context.Background(), detachTimeout)
			defer cancel()
			if err := l.client.Detach(ctx, control.Detach{Container: l.o.Container}); err != nil {
				// The connection's end says the same.
				l.o.Log.Debug("detach", "container", l.o.Container, "err", err)
			}
		}
		_ = l.client.Close()
	}
	for _, fd := range l.kept {
		_ = unix.Close(fd)
	}
}
