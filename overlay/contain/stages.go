package contain

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/overlay/netcfg"
)

// The stages know themselves by their first argument. Started by hand they only
// find that their descriptor is missing.
const (
	nameInit = "tulle-run-init"
	nameExec = "tulle-run-exec"
)

// stageFD is the descriptor a stage is started with beside the standard three:
// the init's end of the socketpair, the exec stage's end of the error pipe.
const stageFD = 3

// Reexec does nothing in an ordinary start. In a process that Run has started
// as a stage it does the stage's work and does not return. Call it first thing
// in main, or in TestMain.
func Reexec() {
	if len(os.Args) == 0 {
		return
	}
	switch os.Args[0] {
	case nameInit:
		initMain()
	case nameExec:
		execMain()
	}
}

// maxMessage bounds what supervisor and init tell each other; a command line is
// the largest part of it.
const maxMessage = 4 << 20

// order is what the supervisor tells the init; one field is set.
type order struct {
	Setup  *setup         `json:"setup,omitempty"`
	Signal syscall.Signal `json:"signal,omitempty"` // for the command
	// Resume wakes a stopped command and gives it the terminal back.
	Resume bool `json:"resume,omitempty"`
}

// setup is all the init needs to know once the endpoint is attached.
type setup struct {
	Device     netcfg.Device        `json:"device"`
	Resolver   string               `json:"resolver"`
	Mask       []string             `json:"mask"`
	Trust      string               `json:"trust,omitempty"` // PEM, of other containers' certificates
	Dir        string               `json:"dir"`
	Command    []string             `json:"command"`
	UID        syscall.SysProcIDMap `json:"uid"`
	GID        syscall.SysProcIDMap `json:"gid"`
	Foreground bool                 `json:"foreground"` // the command takes the terminal

	bundle string // where arrange has put the roots; "": nowhere
}

// report is what the init tells the supervisor; one field is set, but Status
// stands beside Exited and Error.
type report struct {
	Device  bool   `json:"device,omitempty"` // made; its descriptor, and TLS's, are beside this message
	Started bool   `json:"started,omitempty"`
	Stopped bool   `json:"stopped,omitempty"` // by a signal of the terminal
	Exited  bool   `json:"exited,omitempty"`
	Error   string `json:"error,omitempty"`
	Errno   int    `json:"errno,omitempty"` // under Error, for the supervisor to explain
	Status  int    `json:"status,omitempty"`
}

func send(c *net.UnixConn, message any, files ...*os.File) error {
	b, err := json.Marshal(message)
	if err != nil {
		return err
	}
	return control.WriteMessage(c, b, files...)
}

func receive(c *net.UnixConn, into any) ([]*os.File, error) {
	b, files, err := control.ReadMessage(c, maxMessage, control.MaxDescriptors, nil)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, into); err != nil {
		control.CloseAll(files)
		return nil, fmt.Errorf("decode message: %w", err)
	}
	return files, nil
}

// socketpair's ends are close-on-exec; child is a file for the init's stageFD.
func socketpair() (parent *net.UnixConn, child *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	child = os.NewFile(uintptr(fds[1]), "init")
	parent, err = unixConn(os.NewFile(uintptr(fds[0]), "supervisor"))
	if err != nil {
		return nil, nil, errors.Join(err, child.Close())
	}
	return parent, child, nil
}

func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close() // FileConn has duplicated it
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("not a unix socket"), c.Close())
	}
	return u, nil
}

// closeOnExec marks every descriptor from first on, whoever opened it: what the
// caller's shell left open is not for the command.
func closeOnExec(first uint) error {
	err := unix.CloseRange(first, 1<<32-1, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		return nil
	}
	// Before Linux 5.11.
	dir, derr := os.ReadDir("/proc/self/fd")
	if derr != nil {
		return errors.Join(fmt.Errorf("close_range: %w", err), derr)
	}
	for _, e := range dir {
		var fd uint
		if _, err := fmt.Sscan(e.Name(), &fd); err == nil && fd >= first {
			// The listing's own descriptor is gone by now: EBADF.
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil && !errors.Is(err, unix.EBADF) {
				return fmt.Errorf("close descriptor %d on exec: %w", fd, err)
			}
		}
	}
	return nil
}
