package contain

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tulle/overlay/netcfg"
)

// scratch is where a private tmpfs is mounted while the container's file system
// is arranged: /proc is there on every system, holds nothing that is needed
// meanwhile, and gets its own mount in the end.
const scratch = "/proc"

const harmless = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// nameServiceDirs are hidden like the daemon's own: glibc asks nscd, where it
// runs, before it reads resolv.conf.
var nameServiceDirs = []string{"/run/nscd", "/var/run/nscd"}

// arrange mounts what the command sees differently from its caller: resolver
// configuration, the daemon's directories, /sys and /proc. All of it is in the
// init's mount namespace; no file of the host is opened for writing.
func arrange(s *setup) error {
	files, err := resolverFiles(s.Resolver)
	if err != nil {
		return err
	}
	if files, err = s.withTrust(files); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", scratch, "tmpfs", harmless, "mode=0755"); err != nil {
		return fmt.Errorf("mount a private tmpfs: %w", err)
	}
	if err := installFiles(files); err != nil {
		return err
	}
	for _, dir := range append(s.Mask, nameServiceDirs...) {
		if err := mask(dir, s.UID.HostID, s.GID.HostID); err != nil {
			return err
		}
	}
	if err := mountSys(); err != nil {
		return err
	}
	if err := unix.Unmount(scratch, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the private tmpfs: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", harmless, ""); err != nil {
		return fmt.Errorf("mount /proc (in a container whose own /proc is partly hidden, the kernel forbids it): %w", err)
	}
	return nil
}

// installFiles puts each file where programs read it: over what its path
// resolves to (/etc/resolv.conf is often a link into /run) or, if that is not
// there, into a private copy of its directory.
func installFiles(files []file) error {
	var absent []file
	for _, f := range files {
		_, err := os.Stat(f.path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			absent = append(absent, f)
		case err != nil:
			return fmt.Errorf("find %s: %w", f.path, err)
		}
	}
	if len(absent) > 0 {
		if err := copyDir("/etc", absent); err != nil {
			return fmt.Errorf("private copy of /etc: %w", err)
		}
	}
	for _, f := range files {
		target, err := filepath.EvalSymlinks(f.path)
		if err != nil {
			return fmt.Errorf("resolve %s: %w", f.path, err)
		}
		own := filepath.Join(scratch, filepath.Base(f.path))
		if err := os.WriteFile(own, []byte(f.content), 0o644); err != nil {
			return err
		}
		if err := bind(own, target); err != nil {
			return err
		}
		if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|harmless, ""); err != nil {
			return fmt.Errorf("make %s read-only: %w", target, err)
		}
	}
	return nil
}

// copyDir covers dir with a tmpfs in which every entry is the host's, bound,
// and the missing files have a place. Overlayfs would be shorter, but not every
// kernel has it.
func copyDir(dir string, missing []file) error {
	host, own := filepath.Join(scratch, "host"), filepath.Join(scratch, "own")
	for _, d := range []string{host, own} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := bind(dir, host); err != nil {
		return err
	}
	wanted := map[string]bool{}
	for _, f := range missing {
		wanted[filepath.Base(f.path)] = true
		if err := os.WriteFile(filepath.Join(own, filepath.Base(f.path)), nil, 0o644); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(host)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if wanted[e.Name()] {
			continue // a link that leads nowhere
		}
		if err := mirror(filepath.Join(host, e.Name()), filepath.Join(own, e.Name()), e); err != nil {
			return err
		}
	}
	return bind(own, dir)
}

func mirror(from, to string, e fs.DirEntry) error {
	switch {
	case e.Type()&fs.ModeSymlink != 0:
		link, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(link, to)
	case e.IsDir():
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
	default:
		if err := os.WriteFile(to, nil, 0o644); err != nil {
			return err
		}
	}
	return bind(from, to)
}

// bind is recursive: in a user namespace the kernel refuses to show a directory
// without what is mounted below it.
func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind over %s: %w", to, err)
	}
	return nil
}

// mask hides a directory. The path is walked with the command's own rights
// (uid and gid as seen by the init): what the command cannot reach needs no
// mask, and what it can reach is found even where root of a user namespace
// could not.
func mask(dir string, uid, gid int) error {
	if filepath.Clean(dir) == "/" {
		return errors.New("hide /: it holds the command itself")
	}
	err := netcfg.OnThread(func() error {
		// These calls answer with the id before, never with an error.
		_, _ = unix.SetfsgidRetGid(gid)
		_, _ = unix.SetfsuidRetUid(uid)
		return unix.Mount("tmpfs", dir, "tmpfs", harmless|unix.MS_RDONLY, "mode=0555,size=4k")
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EACCES) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("hide %s: %w", dir, err)
	}
	return nil
}

// mountSys shows the devices of the container's network instead of the host's,
// and keeps the cgroups. Where the caller's own /sys is partly hidden, the
// kernel refuses a whole one; then the caller's stays.
func mountSys() error {
	const cgroups = "/sys/fs/cgroup"
	kept := filepath.Join(scratch, "cgroup")
	if err := os.Mkdir(kept, 0o755); err != nil {
		return err
	}
	_, statErr := os.Stat(cgroups)
	if statErr == nil {
		if err := bind(cgroups, kept); err != nil {
			return err
		}
	}
	err := unix.Mount("sysfs", "/sys", "sysfs", harmless|unix.MS_RDONLY, "")
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return fmt.Errorf("mount /sys: %w", err)
	case statErr == nil:
		return bind(kept, cgroups)
	}
	return nil
}
