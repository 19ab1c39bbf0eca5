package contain

import (
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// ownsTerminal reports whether stdin is a terminal whose foreground is this
// process's group. A background job leaves the terminal alone.
func ownsTerminal(stdin io.Reader) bool {
	f, ok := stdin.(*os.File)
	if !ok {
		return false
	}
	owns := false
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	if err := raw.Control(func(fd uintptr) {
		group, err := unix.IoctlGetInt(int(fd), unix.TIOCGPGRP)
		owns = err == nil && group == unix.Getpgrp()
	}); err != nil {
		return false
	}
	return owns
}

// setForeground makes group the terminal's foreground. The caller is usually in
// the background by then, where the kernel answers with SIGTTOU unless the
// thread blocks it.
func setForeground(tty, group int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var ttou, before unix.Sigset_t
	ttou.Val[(unix.SIGTTOU-1)/64] = 1 << ((unix.SIGTTOU - 1) % 64)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &ttou, &before); err != nil {
		return fmt.Errorf("block SIGTTOU: %w", err)
	}
	err := unix.IoctlSetPointerInt(tty, unix.TIOCSPGRP, group)
	if merr := unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil); merr != nil {
		return fmt.Errorf("restore the signal mask: %w", merr)
	}
	return err
}
