package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxPath is what sockaddr_un holds (unix(7)), less its terminator.
const maxPath = 107

// ErrInUse: another daemon listens on the socket.
var ErrInUse = errors.New("another daemon listens there")

// DefaultSocket is where daemon and clients meet when nobody says otherwise.
func DefaultSocket() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "tulle", "celld.sock")
	}
	return "/run/tulle/celld.sock"
}

// Listener is a unix socket that takes its file away on Close.
type Listener struct {
	*net.UnixListener
	path string
	self os.FileInfo // of the socket file, to never remove another's

	once sync.Once
	err  error // of the first Close
}

// Listen binds the socket at path with mode perm. A socket file that is there
// is replaced only if nobody listens on it. A lock on the directory keeps two
// daemons that start at once from replacing each other's.
func Listen(path string, perm fs.FileMode) (*Listener, error) {
	if !filepath.IsAbs(path) {
		// Also excludes abstract names: they are invisible from another network
		// namespace, and no file mode guards them.
		return nil, fmt.Errorf("socket %q: the path must be absolute", path)
	}
	if len(path) > maxPath {
		return nil, fmt.Errorf("socket %q: the path has %d bytes, at most %d are possible", path, len(path), maxPath)
	}
	l := &Listener{path: path}
	dir := filepath.Dir(path)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	defer unlock()
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	// The file gets its mode from the socket's inode, so that it never is wider
	// than asked; the umask may have narrowed it, which Chmod mends.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var cerr error
		if err := c.Control(func(fd uintptr) { cerr = unix.Fchmod(int(fd), uint32(perm.Perm())) }); err != nil {
			return err
		}
		return cerr
	}}
	nl, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l.UnixListener = nl.(*net.UnixListener)
	l.SetUnlinkOnClose(false)
	if l.self, err = os.Lstat(path); err == nil {
		err = os.Chmod(path, perm)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("socket %s: %w", path, err), l.closeLocked())
	}
	return l, nil
}

// Close stops listening and removes the socket file, if it still is ours. The
// directory stays, even if Listen made it: it is hidden from running containers by
// a mount, which would go with it, and the next one would be in their sight. Close
// is idempotent, and when any call returns all is done.
func (l *Listener) Close() error {
	l.once.Do(func() { l.err = l.close() })
	return l.err
}

func (l *Listener) close() error {
	// A daemon that starts at this moment binds before the look below or after
	// it, not between it and the removal.
	unlock, err := lockDir(filepath.Dir(l.path))
	if errors.Is(err, fs.ErrNotExist) {
		return l.UnixListener.Close() // the directory is gone, and the socket with it
	}
	if err != nil {
		return errors.Join(err, l.UnixListener.Close())
	}
	defer unlock()
	return l.closeLocked()
}

func (l *Listener) closeLocked() error {
	err := l.UnixListener.Close()
	if now, serr := os.Lstat(l.path); serr == nil && l.self != nil && os.SameFile(now, l.self) {
		err = errors.Join(err, os.Remove(l.path))
	}
	return err
}

func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("a file that is no socket is in the way")
	}
	c, err := net.Dial("unix", path)
	switch {
	case err == nil:
		return errors.Join(ErrInUse, c.Close())
	case errors.Is(err, syscall.EAGAIN): // its backlog is full
		return ErrInUse
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	default:
		return err
	}
}
