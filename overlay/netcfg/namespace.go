package netcfg

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// ErrOwnNamespace: a namespace that should be another is the caller's own.
var ErrOwnNamespace = errors.New("this is the caller's own network namespace")

// Open opens the network namespace at path, which must not be the one that this
// process is in: whatever is done "inside" would be done to the host.
func Open(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Type != unix.NSFS_MAGIC {
		return nil, errors.Join(fmt.Errorf("network namespace %s: not a namespace", path), f.Close())
	}
	own, err := Same(f, "/proc/thread-self/ns/net")
	if err == nil && own {
		err = ErrOwnNamespace
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("network namespace %s: %w", path, err), f.Close())
	}
	return f, nil
}

// Same reports whether ns is the namespace at path.
func Same(ns *os.File, path string) (bool, error) {
	a, err := ns.Stat()
	if err != nil {
		return false, err
	}
	b, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	return os.SameFile(a, b), nil
}

// Do runs f on a thread inside the namespace, as OnThread does. Goroutines that
// f starts are not inside; sockets that f opens are.
func Do(ns *os.File, f func() error) error {
	return OnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			if errors.Is(err, unix.EPERM) {
				err = ErrNotOurNamespace
			}
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// OnThread runs f on a thread that ends with it, so that what f changes about
// its thread (namespace, ids) is never met by anything else. It is never the
// process's first thread: that one cannot end, and /proc/self would show the
// whole process in its namespace.
func OnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Held by this goroutine meanwhile, it cannot be given out again.
			done <- OnThread(f)
			runtime.UnlockOSThread()
			return
		}
		defer close(done) // also when f ends its goroutine
		done <- f()
	}()
	return <-done
}
