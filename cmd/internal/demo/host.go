package demo

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"tulle/overlay/contain"
	"tulle/overlay/netcfg"
)

// CheckHost says all that this host lacks for containers of the calling user, and
// what mends it.
func CheckHost() error {
	return errors.Join(netcfg.CheckTUN(), checkNamespaces())
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
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	if err := try.Run(); err != nil {
		return fmt.Errorf("no containers can be made here: %w", contain.ExplainNamespaces(err))
	}
	return nil
}
