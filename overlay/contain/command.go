package contain

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// execMain is the last stage: it becomes the command and does not return. Its
// arguments are whether it takes the terminal, and the command.
func execMain() {
	// Capabilities and no_new_privs belong to the thread; the one that executes
	// decides.
	runtime.LockOSThread()
	status, err := become(os.Args[1] == "true", os.Args[2:])
	// An empty command line was refused by Run; only exec returns here.
	fmt.Fprintf(os.NewFile(stageFD, "init"), "%d %v", status, err)
	os.Exit(status)
}

// become returns only if it fails, with the status to exit with.
func become(foreground bool, command []string) (status int, err error) {
	if err := closeOnExec(stageFD); err != nil {
		return StatusOwn, err
	}
	if foreground {
		if err := setForeground(0, unix.Getpid()); err != nil {
			return StatusOwn, fmt.Errorf("take the terminal: %w", err)
		}
	}
	if err := dropPrivileges(); err != nil {
		return StatusOwn, err
	}
	path, err := exec.LookPath(command[0])
	if err != nil && !errors.Is(err, exec.ErrDot) { // a PATH with "." is the caller's wish
		return notExecutable(err), fmt.Errorf("%s: %w", command[0], cause(err))
	}
	err = unix.Exec(path, command, os.Environ())
	return notExecutable(err), fmt.Errorf("%s: %w", command[0], err)
}

func notExecutable(err error) int {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return StatusNotFound
	}
	return StatusNotExecutable
}

// cause is err without the name that exec.Error repeats.
func cause(err error) error {
	var e *exec.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}
