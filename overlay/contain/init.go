package contain

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/overlay/mint"
	"tulle/overlay/netcfg"
)

// provisionalMTU is eth0's until the daemon has said which one it is.
const provisionalMTU = 1500

// initMain is the init: pid 1 of the container. It does not return.
func initMain() {
	// Beside the socketpair's end: it also holds while the init is busy.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		os.Exit(StatusOwn)
	}
	if err := closeOnExec(stageFD); err != nil {
		os.Exit(StatusOwn)
	}
	conn, err := unixConn(os.NewFile(stageFD, "supervisor"))
	if err != nil {
		os.Exit(StatusOwn) // started by hand
	}
	pid, s, err := start(conn)
	if err != nil {
		r := report{Error: err.Error(), Status: StatusOwn}
		var errno syscall.Errno
		if errors.As(err, &errno) {
			r.Errno = int(errno)
		}
		var ce *commandError
		if errors.As(err, &ce) {
			r.Status = ce.status
		}
		_ = send(conn, r) // if that fails, the supervisor is gone as well
		os.Exit(StatusOwn)
	}
	supervise(conn, pid, s.Foreground)
}

// start makes the device, waits for the supervisor's setup, follows it and
// starts the command.
func start(conn *net.UnixConn) (pid int, s *setup, err error) {
	// Before anything is mounted: nothing of it may appear outside.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 0, nil, fmt.Errorf("make mounts private: %w", err)
	}
	if err := netcfg.LoopbackUp(); err != nil {
		return 0, nil, err
	}
	tun, err := netcfg.CreateTUN(Device, provisionalMTU)
	if err != nil {
		return 0, nil, err
	}
	// The sockets of TLS, for the cell's proxy; the command gets none of them.
	sockets, err := socketsFor(os.Args)
	if err != nil {
		return 0, nil, err
	}
	files := []*os.File{tun}
	if sockets != nil {
		files = append(files, sockets.Files()...)
	}
	err = send(conn, report{Device: true}, files...)
	if err := errors.Join(err, tun.Close(), sockets.Close()); err != nil {
		return 0, nil, fmt.Errorf("hand over %s: %w", Device, err)
	}
	var o order
	if _, err := receive(conn, &o); err != nil {
		return 0, nil, fmt.Errorf("setup: %w", err)
	}
	if s = o.Setup; s == nil {
		return 0, nil, errors.New("setup: missing")
	}
	if err := netcfg.Configure(s.Device); err != nil {
		return 0, nil, err
	}
	if err := arrange(s); err != nil {
		return 0, nil, err
	}
	// By path, after the masks: the directory inherited may lie under one.
	if err := os.Chdir(s.Dir); err != nil {
		return 0, nil, fmt.Errorf("working directory: %w", err)
	}
	pid, err = startCommand(s)
	return pid, s, err
}

// withTLS is the init's last argument when TLS is to be terminated.
const withTLS = "tls"

func socketsFor(args []string) (*mint.Sockets, error) {
	if len(args) == 0 || args[len(args)-1] != withTLS {
		return nil, nil
	}
	return mint.Create(control.TLSPort)
}

// commandError is a command that cannot be executed, with a shell's status.
type commandError struct {
	text   string
	status int
}

func (e *commandError) Error() string { return e.text }

// startCommand starts the exec stage and waits until it has become the command.
func startCommand(s *setup) (pid int, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	argv := append([]string{nameExec, strconv.FormatBool(s.Foreground)}, s.Command...)
	pid, err = syscall.ForkExec("/proc/self/exe", argv, &syscall.ProcAttr{
		Env:   trustEnv(os.Environ(), s.bundle),
		Files: []uintptr{0, 1, 2, w.Fd()},
		Sys:   commandAttr(s.UID, s.GID),
	})
	if err := errors.Join(err, w.Close()); err != nil {
		if errors.Is(err, unix.EACCES) {
			err = fmt.Errorf("%w (the command's user must be able to execute tulle itself: chmod 755)", err)
		}
		return 0, fmt.Errorf("start as uid %d: %w", s.UID.ContainerID, err)
	}
	// Executing the command closes the stage's end; what comes before is why not.
	said, err := io.ReadAll(r)
	if err != nil {
		return 0, err
	}
	if len(said) == 0 {
		return pid, nil
	}
	status, text, _ := strings.Cut(string(said), " ")
	ce := &commandError{text: text, status: StatusOwn}
	if n, err := strconv.Atoi(status); err == nil {
		ce.status = n
	}
	return 0, ce
}

// supervise reaps until the command has ended, and ends with it. What the
// command left running is then killed by the kernel, before the supervisor's
// wait for this process returns.
func supervise(conn *net.UnixConn, pid int, foreground bool) {
	if send(conn, report{Started: true}) != nil {
		os.Exit(StatusOwn)
	}
	signals := make(chan os.Signal, 16)
	for _, s := range passed {
		if !signal.Ignored(s) {
			signal.Notify(signals, s) // someone outside may mean the init and the command
		}
	}
	go func() {
		for s := range signals {
			kill(pid, s.(syscall.Signal))
		}
	}()
	go obey(conn, pid, foreground)
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, unix.WUNTRACED, nil)
		switch {
		case errors.Is(err, unix.EINTR), err == nil && got != pid:
			continue // an orphan of the command's is reaped
		case err != nil:
			_ = send(conn, report{Error: fmt.Sprintf("wait for the command: %v", err), Status: StatusOwn})
			os.Exit(StatusOwn)
		case ws.Exited():
			exit(conn, ws.ExitStatus())
		case ws.Signaled():
			exit(conn, 128+int(ws.Signal()))
		case ws.Stopped() && foreground:
			_ = send(conn, report{Stopped: true}) // a supervisor that is gone is obey's matter
		}
	}
}

func exit(conn *net.UnixConn, status int) {
	_ = send(conn, report{Exited: true, Status: status})
	os.Exit(status)
}

// obey follows the supervisor's orders. Its end is the container's.
func obey(conn *net.UnixConn, pid int, foreground bool) {
	for {
		var o order
		if _, err := receive(conn, &o); err != nil {
			os.Exit(StatusOwn)
		}
		switch {
		case o.Signal != 0:
			kill(pid, o.Signal)
		case o.Resume:
			if foreground {
				_ = setForeground(0, pid) // the terminal may be gone; the command learns it soon enough
			}
			kill(-pid, unix.SIGCONT)
		}
	}
}

// kill signals the command, or with -pid its process group. One that has just
// ended is no fault.
func kill(pid int, s syscall.Signal) { _ = unix.Kill(pid, s) }
