package sqlite

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"tulle/policy/store"
)

// openFile opens a file, or makes it for its owner alone. What root makes is the
// directory's owner's: a command of root's on a store that its server, another user,
// has not opened yet would keep that out for good.
func openFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err != nil || os.Geteuid() != 0 {
		return f, err
	}
	var dir unix.Stat_t
	if err := unix.Stat(filepath.Dir(path), &dir); err == nil && dir.Uid != 0 {
		_ = f.Chown(int(dir.Uid), int(dir.Gid)) // where the file system knows no owners, none is kept out
	}
	return f, nil
}

// lockFile takes the lock beside the database. It is a file of its own: closing
// any descriptor of the database itself would drop SQLite's POSIX locks on it.
// The kernel frees the lock when the process ends, however it ends; the file
// stays, and holds the owner's pid for the next one's error.
func lockFile(path string) (*os.File, error) {
	f, err := openFile(path + ".lock")
	if err != nil {
		return nil, fmt.Errorf("lock file: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		defer f.Close()
		pid, _ := io.ReadAll(io.LimitReader(f, 20))
		return nil, fmt.Errorf("%w (pid %s); one server owns the file, stop the other one first",
			store.ErrLocked, strings.TrimSpace(string(pid)))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock file: %w", err)
	}
	if err := f.Truncate(0); err == nil {
		// Only for the text above: a full disk is told by what needs the space.
		_, _ = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	return f, nil
}
