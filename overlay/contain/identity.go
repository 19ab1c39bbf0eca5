package contain

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// identity is who the stages are, on the host and in their user namespaces.
type identity struct {
	// outer maps the init's namespace onto the caller's, command the command's
	// onto the init's: ContainerID inside, HostID outside.
	outerUIDs, outerGIDs []syscall.SysProcIDMap
	commandUID           syscall.SysProcIDMap
	commandGID           syscall.SysProcIDMap
	root                 bool // may write maps of several ids and drop groups
}

// identity decides it. For an ordinary user the kernel allows exactly one id:
// root of the outer namespace, mapped back to the user's own number inside.
// Root also maps the command's id, so that the command is not root outside.
func (o *Options) identity() (identity, error) {
	uid, gid := os.Geteuid(), os.Getegid()
	if uid != 0 {
		if (o.User != 0 && o.User != uint32(uid)) || (o.Group != 0 && o.Group != uint32(gid)) {
			return identity{}, fmt.Errorf("only root may choose another user; this is uid %d", uid)
		}
		return identity{
			outerUIDs:  []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}},
			outerGIDs:  []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}},
			commandUID: syscall.SysProcIDMap{ContainerID: uid, HostID: 0, Size: 1},
			commandGID: syscall.SysProcIDMap{ContainerID: gid, HostID: 0, Size: 1},
		}, nil
	}
	u, g := int(o.User), int(o.Group)
	if u == 0 {
		u = Nobody
	}
	if g == 0 {
		g = u
	}
	// Root of a user namespace can give only what was given to it.
	for _, id := range []struct {
		kind, file string
		n          int
	}{{"uid", "/proc/self/uid_map", u}, {"gid", "/proc/self/gid_map", g}} {
		table, err := os.ReadFile(id.file)
		if err != nil {
			return identity{}, fmt.Errorf("ids of this user namespace: %w", err)
		}
		if !maps(string(table), id.n) {
			return identity{}, fmt.Errorf("this user namespace has no %s %d for the command; name another user, or run as an ordinary one", id.kind, id.n)
		}
	}
	return identity{
		root:       true,
		outerUIDs:  []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}, {ContainerID: u, HostID: u, Size: 1}},
		outerGIDs:  []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}, {ContainerID: g, HostID: g, Size: 1}},
		commandUID: syscall.SysProcIDMap{ContainerID: u, HostID: u, Size: 1},
		commandGID: syscall.SysProcIDMap{ContainerID: g, HostID: g, Size: 1},
	}, nil
}

// maps reports whether a uid_map or gid_map (user_namespaces(7)) has id inside.
func maps(table string, id int) bool {
	for line := range strings.Lines(table) {
		var inside, outside, count int
		if _, err := fmt.Sscan(line, &inside, &outside, &count); err == nil && inside <= id && id-inside < count {
			return true
		}
	}
	return false
}

// initAttr starts the init: its namespaces, and a group of its own so that a
// terminal's signals do not reach it.
func (who identity) initAttr() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS |
			unix.CLONE_NEWPID | unix.CLONE_NEWIPC,
		UidMappings: who.outerUIDs,
		GidMappings: who.outerGIDs,
		Setpgid:     true,
		Pdeathsig:   syscall.SIGKILL,
	}
	if who.root {
		// Root's supplementary groups are left behind; an ordinary user's cannot
		// be, the kernel forbids it (user_namespaces(7), setgroups).
		a.GidMappingsEnableSetgroups = true
		a.Credential = &syscall.Credential{Uid: 0, Gid: 0}
	}
	return a
}

// commandAttr starts the exec stage. CAP_SETPCAP, kept over its exec as ambient
// capability, is what dropping the bounding set takes; the stage drops it too.
func commandAttr(uid, gid syscall.SysProcIDMap) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{uid},
		GidMappings: []syscall.SysProcIDMap{gid},
		Credential: &syscall.Credential{
			Uid: uint32(uid.ContainerID), Gid: uint32(gid.ContainerID), NoSetGroups: true,
		},
		AmbientCaps: []uintptr{unix.CAP_SETPCAP},
		Setpgid:     true,
	}
}

// dropPrivileges leaves the calling thread, and what it executes, without any
// capability, now and for ever.
func dropPrivileges() error {
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			if errors.Is(err, unix.EINVAL) {
				break // this kernel knows fewer
			}
			return fmt.Errorf("drop capability %d from the bounding set: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("drop ambient capabilities: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}
