package holder

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tulle/overlay/ready"
)

// What is kept wakes nobody who keeps it: in Go's poller each packet of a device
// would.
func TestKeptIsInNoPoller(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir)
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	f, err := ready.Duplicate(uintptr(fds[0]), "pipe")
	unix.Close(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	kept := link(t, os.Getpid(), int(f.Fd()))
	if err := p.Put("one", f); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = open(t, dir) // the next daemon
	got, err := p.Take()
	if err != nil || got["one"] == nil {
		t.Fatalf("took %v, %v", got, err)
	}
	defer closeAll(got)
	for _, pid := range []int{holderPID(t, p), os.Getpid()} {
		has, polled := descriptors(t, pid, kept)
		if has == 0 || polled > 0 {
			t.Errorf("process %d has %d descriptors of what is kept, and polls %d", pid, has, polled)
		}
	}
	// Else that shows nothing.
	again, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	inPoller := os.NewFile(uintptr(again), "pipe")
	defer inPoller.Close()
	if _, polled := descriptors(t, os.Getpid(), kept); polled != 1 {
		t.Errorf("%d descriptors are polled, want the one of an *os.File", polled)
	}
}

func link(t *testing.T, pid, fd int) string {
	t.Helper()
	to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// descriptors counts those of a process that are the file, and those of them that an
// epoll of its own waits for (proc_pid_fdinfo(5)).
func descriptors(t *testing.T, pid int, file string) (has, polled int) {
	t.Helper()
	infos, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil || len(infos) == 0 {
		t.Fatalf("no descriptors of process %d: %v", pid, err)
	}
	for _, name := range infos {
		fd := filepath.Base(name)
		if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd)); err == nil && to == file {
			has++
		}
		b, err := os.ReadFile(name)
		if err != nil {
			continue // closed meanwhile
		}
		for line := range strings.Lines(string(b)) {
			var target int
			if n, _ := fmt.Sscanf(line, "tfd: %d", &target); n == 1 {
				if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, target)); err == nil && to == file {
					polled++
				}
			}
		}
	}
	return has, polled
}
