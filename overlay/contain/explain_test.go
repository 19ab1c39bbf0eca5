package contain

import (
	"errors"
	"io/fs"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"
)

// TestWhatIsMissingIsNamedWithItsMend: the sysctls by which distributions refuse
// user namespaces, and the kernel's answers.
func TestWhatIsMissingIsNamedWithItsMend(t *testing.T) {
	set := func(path, value string) fs.FS {
		return fstest.MapFS{path: &fstest.MapFile{Data: []byte(value + "\n")}}
	}
	for _, c := range []struct {
		name    string
		errno   syscall.Errno
		sysctls fs.FS
		says    string
	}{
		{"none allowed", unix.ENOSPC, set("user/max_user_namespaces", "0"), "sysctl -w user.max_user_namespaces=15000"},
		{"Debian's switch", unix.EPERM, set("kernel/unprivileged_userns_clone", "0"), "sysctl -w kernel.unprivileged_userns_clone=1"},
		{"Ubuntu's switch", unix.EACCES, set("kernel/apparmor_restrict_unprivileged_userns", "1"), "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
		{"switches that are right", unix.EPERM, set("kernel/unprivileged_userns_clone", "1"), "its seccomp profile must let clone and unshare make them"},
		{"all in use", unix.ENOSPC, set("user/max_user_namespaces", "100"), "all that this host allows are in use"},
		{"kernel without", unix.EINVAL, fstest.MapFS{}, "this kernel lacks"},
		{"nested too deep", unix.EUSERS, fstest.MapFS{}, "too many inside one another"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := explain(&fs.PathError{Op: "fork/exec", Path: "/proc/self/exe", Err: c.errno}, c.sysctls)
			if !strings.Contains(err.Error(), c.says) && !strings.Contains(err.Error(), strings.ReplaceAll(c.says, ": ", ": fork/exec /proc/self/exe: ")) {
				t.Errorf("got %q, want %q", err, c.says)
			}
			if !errors.Is(err, c.errno) {
				t.Errorf("%q does not wrap %v", err, c.errno)
			}
		})
	}
}

func TestIDMaps(t *testing.T) {
	for _, c := range []struct {
		name, table string
		id          int
		want        bool
	}{
		{"the host's", "         0          0 4294967295\n", 65534, true},
		{"one id", "0 1000 1\n", 65534, false},
		{"first of a range", "0 1000 1\n1 100000 65534\n", 1, true},
		{"last of a range", "0 1000 1\n1 100000 65534\n", 65534, true},
		{"behind it", "0 1000 1\n1 100000 65533\n", 65534, false},
		{"before it", "1 100000 10\n", 0, false},
		{"empty", "", 0, false},
	} {
		if got := maps(c.table, c.id); got != c.want {
			t.Errorf("%s: %d in %q: %v", c.name, c.id, c.table, got)
		}
	}
}
