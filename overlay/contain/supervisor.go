package contain

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/overlay/netcfg"
)

// supervisor is one Run: the process outside and its view of the init.
type supervisor struct {
	o          *Options
	who        identity
	conn       *net.UnixConn // to the init
	cmd        *exec.Cmd     // the init; waited for by startInit's goroutine
	gone       chan struct{} // closed when the init, and so all of the container, is gone
	foreground bool          // the command has our terminal
}

func (s *supervisor) run(ctx context.Context, client *control.Client) (int, error) {
	life := newLifeline(s.o, client)
	defer life.end()
	s.foreground = ownsTerminal(s.o.Stdin)
	if err := s.startInit(); err != nil {
		return StatusOwn, err
	}
	defer s.end()
	// Until the command runs, the end of ctx is the end of everything.
	stop := context.AfterFunc(ctx, s.kill)
	defer stop()
	if status, err := s.setUp(ctx, life); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("start the command: %w", ctx.Err())
		}
		return status, err
	}
	stop()
	life.hold()
	return s.watch(ctx, life.refused)
}

// startInit starts the init from a thread that stays until the init is gone:
// its death signal is about the parent *thread*.
func (s *supervisor) startInit() error {
	// The child gets what os/exec gives it, and nothing that somebody opened
	// before us without close-on-exec.
	if err := closeOnExec(stageFD); err != nil {
		return err
	}
	conn, child, err := socketpair()
	if err != nil {
		return err
	}
	s.conn = conn
	s.cmd = &exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        s.initArgs(),
		Env:         s.o.Env,
		Stdin:       s.o.Stdin,
		Stdout:      s.o.Stdout,
		Stderr:      s.o.Stderr,
		ExtraFiles:  []*os.File{child},
		SysProcAttr: s.who.initAttr(),
		// A stream of the caller's that is no file may block for ever; the
		// command's end does not wait for it.
		WaitDelay: time.Second,
	}
	started := make(chan error)
	s.gone = make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := s.cmd.Start()
		started <- errors.Join(err, child.Close())
		if err != nil {
			return
		}
		defer close(s.gone)
		// How the command ended comes as a report; how the init did says nothing more.
		_ = s.cmd.Wait()
	}()
	if err := <-started; err != nil {
		return errors.Join(ExplainNamespaces(err), conn.Close())
	}
	return nil
}

// setUp brings device, endpoint and command together.
func (s *supervisor) setUp(ctx context.Context, life *lifeline) (status int, err error) {
	_, files, err := s.next()
	if err != nil {
		return StatusOwn, err
	}
	if err := life.keep(files); err != nil {
		return StatusOwn, fmt.Errorf("keep %s: %w", Device, err)
	}
	got, err := life.attach(ctx, life.client, false)
	if err != nil {
		return StatusOwn, fmt.Errorf("attach to the cell: %w", err)
	}
	s.o.Log.Info("attached", "container", s.o.Container, "address", got.Address, "app", got.App)
	if s.o.Attached != nil {
		s.o.Attached(got)
	}
	err = send(s.conn, order{Setup: &setup{
		Device:     netcfg.Device{Name: Device, Address: got.Address, Address6: got.Address6, MTU: got.MTU},
		Resolver:   got.Resolver.String(),
		Mask:       append([]string{filepath.Dir(s.o.Socket)}, append(got.Mask, s.o.MaskDirs...)...),
		Trust:      got.Trust,
		Dir:        s.o.Dir,
		Command:    s.o.Command,
		UID:        s.who.commandUID,
		GID:        s.who.commandGID,
		Foreground: s.foreground,
	}})
	if err != nil {
		return StatusOwn, fmt.Errorf("set up the container: %w", err)
	}
	r, _, err := s.next()
	if err != nil {
		return max(r.Status, StatusOwn), err
	}
	return 0, nil
}

// initArgs tell the init its container's name, for the process list, and whether
// it is to make TLS's sockets.
func (s *supervisor) initArgs() []string {
	args := []string{nameInit, s.o.Container}
	if s.o.TLS != nil {
		args = append(args, withTLS)
	}
	return args
}

// next waits for a report of the set-up; an Error is returned as one, explained.
// The descriptors of a Device are the caller's.
func (s *supervisor) next() (report, []*os.File, error) {
	var r report
	files, err := receive(s.conn, &r)
	switch {
	case err != nil:
		return r, nil, fmt.Errorf("set up the container: its init was killed: %w", err)
	case r.Error != "":
		control.CloseAll(files)
		return r, nil, explainInit(r)
	case r.Device && len(files) > 0:
		return r, files, nil
	case r.Started && len(files) == 0:
		return r, nil, nil
	}
	control.CloseAll(files)
	return r, nil, errors.New("set up the container: its init answers out of turn")
}

// watch passes signals on until the command has ended, and says how.
func (s *supervisor) watch(ctx context.Context, refused <-chan error) (int, error) {
	reports, quit := make(chan report), make(chan struct{})
	defer close(quit)
	go s.listen(reports, quit)
	ended := ctx.Done()
	var grace <-chan time.Time
	for {
		select {
		case r, ok := <-reports:
			switch {
			case !ok && ctx.Err() != nil: // killed after the grace
				return 128 + int(unix.SIGKILL), nil
			case !ok:
				return StatusOwn, errors.New("the container's init was killed")
			case r.Error != "":
				return StatusOwn, errors.New(r.Error)
			case r.Exited:
				return r.Status, nil
			case r.Stopped:
				s.suspend()
			}
		case sig := <-s.o.Signals:
			if n, ok := sig.(syscall.Signal); ok {
				s.tell(order{Signal: n})
			}
		case <-ended:
			ended = nil
			s.tell(order{Signal: syscall.SIGTERM})
			t := time.NewTimer(s.o.Grace)
			defer t.Stop()
			grace = t.C
		case <-grace:
			s.kill()
		case err := <-refused:
			return StatusOwn, err
		}
	}
}

// listen ends with the init, or with watch.
func (s *supervisor) listen(reports chan<- report, quit <-chan struct{}) {
	defer close(reports)
	for {
		var r report
		if _, err := receive(s.conn, &r); err != nil {
			return
		}
		select {
		case reports <- r:
		case <-quit:
			return
		}
	}
}

// tell gives the init an order; one that is dead needs none.
func (s *supervisor) tell(o order) { _ = send(s.conn, o) }

// kill ends the init, and with it every process of the container.
func (s *supervisor) kill() { _ = s.cmd.Process.Kill() }

// end waits until the container is gone and takes the terminal back.
func (s *supervisor) end() {
	s.kill()
	<-s.gone
	_ = s.conn.Close()
	if s.foreground {
		s.toForeground()
	}
}

// suspend does what the terminal's user asked of the command (Ctrl-Z): this
// process stops too, so that the shell gets its prompt, and the command goes on
// when the shell continues this process.
func (s *supervisor) suspend() {
	continued := make(chan os.Signal, 1)
	signal.Notify(continued, syscall.SIGCONT)
	defer signal.Stop(continued)
	s.toForeground()
	_ = unix.Kill(0, unix.SIGSTOP)
	<-continued // the stop comes some time after the call
	s.tell(order{Resume: true})
}

func (s *supervisor) toForeground() {
	if f, ok := s.o.Stdin.(*os.File); ok {
		if raw, err := f.SyscallConn(); err == nil {
			// A terminal that is gone has no foreground to take.
			_ = raw.Control(func(fd uintptr) { _ = setForeground(int(fd), unix.Getpgrp()) })
		}
	}
}
