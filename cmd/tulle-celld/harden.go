package main

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"
)

// harden gives up, in every thread and for whatever is started later, all that
// could make this process more than an ordinary one. It works on descriptors it
// is handed and on UDP sockets; neither needs any of it.
func harden() error {
	// A core file would hold containers' packets.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("set RLIMIT_CORE to 0: %w", err)
	}
	if err := everywhere(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	// Without CAP_SETPCAP the bounding set stays as it is, and means nothing: no
	// exec gains anything under no_new_privs.
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if err := everywhere(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); err != nil {
			break
		}
	}
	if err := everywhere(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := everywhere(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&none[0])), 0); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// everywhere makes a system call in all threads: capabilities and no_new_privs
// are a thread's, and the Go runtime has several before main.
func everywhere(call, a, b, c uintptr) error {
	if _, _, errno := psx.Syscall6(call, a, b, c, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
