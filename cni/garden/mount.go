package garden

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// mountNamespace binds a network namespace to a file, which keeps it as long as
// plugins may need it. A file that is the same namespace already is left; made
// tells whether this call made it.
func mountNamespace(from, to string) (made bool, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("failed mounting %s to %s: %w", from, to, err)
		}
	}()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return false, err
	}
	ns, err := os.Stat(from)
	if err != nil {
		return false, err
	}
	if there, err := os.Stat(to); err == nil {
		if os.SameFile(ns, there) {
			return false, nil
		}
		// Of a container that was never taken down: the handle is this one's now.
		if err := unmount(to); err != nil {
			return false, err
		}
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return false, err
	}
	_ = f.Close()
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return false, errors.Join(err, os.Remove(to))
	}
	return true, nil
}

// unmount takes the file away; one that is no mount, or not there, is no error.
func unmount(path string) error {
	for {
		// More than one may lie upon another after a crash.
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		case err != nil:
			return err
		}
	}
}
