package demo

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// Lack is something that the host must have and has not.
type Lack struct {
	What string // what is missing
	Mend string // the command, or the person, that mends it
}

func (l *Lack) Error() string { return l.What + "\n  mend: " + l.Mend }

// CheckHost says all that this host lacks for containers of the calling user.
func CheckHost() error {
	return errors.Join(checkTUN(), checkNamespaces())
}

const tunDevice = "/dev/net/tun"

func checkTUN() error {
	f, err := os.OpenFile(tunDevice, os.O_RDWR, 0)
	switch {
	case err == nil:
		return f.Close()
	case errors.Is(err, fs.ErrNotExist):
		return &Lack{tunDevice + " is not there", "sudo modprobe tun"}
	case errors.Is(err, fs.ErrPermission):
		return &Lack{tunDevice + " is closed to this user", "sudo chmod 0666 " + tunDevice + ", which is udev's default and gives nobody more than a device in a namespace of their own"}
	}
	return &Lack{fmt.Sprintf("%s cannot be opened: %v", tunDevice, err), "sudo modprobe tun"}
}

// checkNamespaces makes the namespaces a container has, for a program that does
// nothing in them.
func checkNamespaces() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	try := exec.Command(self, "--help")
	try.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	if err = try.Run(); err == nil {
		return nil
	}
	return &Lack{fmt.Sprintf("user namespaces cannot be made: %v", err), namespaceMend()}
}

// namespaceMend finds the setting that refuses: distributions have three.
func namespaceMend() string {
	for _, s := range []struct{ file, closed, mend string }{
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sudo sysctl kernel.unprivileged_userns_clone=1"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"},
		{"/proc/sys/user/max_user_namespaces", "0", "sudo sysctl user.max_user_namespaces=10000"},
	} {
		if b, err := os.ReadFile(s.file); err == nil && strings.TrimSpace(string(b)) == s.closed {
			return s.mend
		}
	}
	return "allow user namespaces; in a container, its seccomp profile must let clone and unshare make them"
}
