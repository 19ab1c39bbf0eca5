package contain

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// restrictions are the switches by which hosts refuse user namespaces, below
// /proc/sys.
var restrictions = []struct{ path, bad, why, mend string }{
	{"user/max_user_namespaces", "0", "this host allows no user namespaces",
		"sysctl -w user.max_user_namespaces=15000"},
	{"kernel/unprivileged_userns_clone", "0", "this host allows user namespaces only to root",
		"sysctl -w kernel.unprivileged_userns_clone=1"},
	{"kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor takes the rights from user namespaces of ordinary users",
		"sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
}

// restricted finds a switch that is set against us.
func restricted(sysctls fs.FS) error {
	for _, r := range restrictions {
		b, err := fs.ReadFile(sysctls, r.path)
		if err == nil && strings.TrimSpace(string(b)) == r.bad {
			return fmt.Errorf("%s; as root: %s", r.why, r.mend)
		}
	}
	return nil
}

// ExplainNamespaces says why the namespaces of a container could not be made, and
// what mends it. err is what starting a process in them gave.
func ExplainNamespaces(err error) error { return explain(err, os.DirFS("/proc/sys")) }

func explain(err error, sysctls fs.FS) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOSPC):
		if why := restricted(sysctls); why != nil {
			return fmt.Errorf("make namespaces: %w (%w)", why, err)
		}
		if errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("make namespaces: all that this host allows are in use; as root: raise the sysctls under user.max_*_namespaces: %w", err)
		}
		return fmt.Errorf("make namespaces: %w; where this is a container itself, its seccomp profile must let clone and unshare make them", err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("make namespaces: this kernel lacks user, network, mount, pid or IPC namespaces: %w", err)
	case errors.Is(err, unix.EUSERS):
		return fmt.Errorf("make namespaces: too many inside one another: %w", err)
	}
	return fmt.Errorf("make namespaces: %w", err)
}

// explainInit turns an init's report into an error. Where user namespaces are
// given without their rights (AppArmor), the init is the first to notice.
func explainInit(r report) error {
	err := errors.New(r.Error)
	if errno := syscall.Errno(r.Errno); errno == unix.EPERM || errno == unix.EACCES {
		if why := restricted(os.DirFS("/proc/sys")); why != nil {
			return fmt.Errorf("%w: %w", why, err)
		}
	}
	return err
}
