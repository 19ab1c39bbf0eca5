package demo

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// endStragglers waits for what ends by itself once its parent is gone (a
// container's init, a daemon's holder) and kills what does not, which is an error.
func (w *World) endStragglers() error {
	var errs []error
	deadline := time.Now().Add(w.patience)
	for _, pid := range w.descendants() {
		errs = append(errs, endStraggler(pid, deadline))
	}
	return errors.Join(errs...)
}

func endStraggler(pid int, deadline time.Time) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // gone meanwhile
	}
	defer unix.Close(fd)
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, int(max(0, time.Until(deadline).Milliseconds())))
		if err == unix.EINTR {
			continue
		}
		if n > 0 {
			return nil
		}
		break
	}
	what := commandLine(pid)
	unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	poll[0].Revents = 0
	unix.Poll(poll, int(stopPatience.Milliseconds()))
	return fmt.Errorf("process %d was left and had to be killed: %s", pid, what)
}

// descendants are the processes below this one that run the world's programs.
// A zombie is none: it holds nothing any more.
func (w *World) descendants() []int {
	parents := make(map[int]int)
	for _, pid := range pids() {
		if state, parent, ok := stat(pid); ok && state != 'Z' {
			parents[pid] = parent
		}
	}
	var found []int
	for pid := range parents {
		for p := parents[pid]; p != 0; p = parents[p] {
			if p == os.Getpid() {
				if exe, err := os.Readlink(procPath(pid, "exe")); err == nil && filepath.Dir(exe) == w.bin {
					found = append(found, pid)
				}
				break
			}
		}
	}
	return found
}

// pin holds a container's network namespace until the world is closed: its number
// is not given to another's meanwhile, so who is found in it is ours.
func (w *World) pin(ns string) error {
	for _, pid := range w.descendants() {
		path := procPath(pid, "ns/net")
		if link, err := os.Readlink(path); err != nil || link != ns {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			continue // it went meanwhile, and others may be there
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.namespaces[ns] = f
		return nil
	}
	return fmt.Errorf("no process of this world is in the network namespace %s that a container named", ns)
}

// residue looks for what a closed world should not have left: a process, a
// network namespace, a device, a socket or a directory.
func (w *World) residue() error {
	var errs []error
	for _, pid := range w.descendants() {
		errs = append(errs, fmt.Errorf("process %d is left: %s", pid, commandLine(pid)))
	}
	for _, pid := range pids() {
		if ns, err := os.Readlink(procPath(pid, "ns/net")); err == nil && w.namespaces[ns] != nil {
			errs = append(errs, fmt.Errorf("network namespace %s is left in process %d: %s", ns, pid, commandLine(pid)))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	errs = append(errs, err)
	for ns, pinned := range w.namespaces {
		if bytes.Contains(mounts, []byte(" "+ns+" ")) {
			errs = append(errs, fmt.Errorf("network namespace %s is left as a mount", ns))
		}
		errs = append(errs, pinned.Close())
	}
	errs = append(errs, w.leftDevices())
	sockets, err := os.ReadFile("/proc/net/unix")
	errs = append(errs, err)
	if bytes.Contains(sockets, []byte(" "+w.Dir+"/")) {
		errs = append(errs, fmt.Errorf("a unix socket under %s is left", w.Dir))
	}
	if _, err := os.Lstat(w.Dir); !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("the directory %s is left", w.Dir))
	}
	return errors.Join(errs...)
}

// leftDevices looks for the containers' network on the host itself, where it
// never should have been.
func (w *World) leftDevices() error {
	interfaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	var errs []error
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if err != nil {
			continue // it went meanwhile
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && w.Network.Contains(p.Addr()) {
				errs = append(errs, fmt.Errorf("the device %s with %s is left on the host", i.Name, p))
			}
		}
	}
	return errors.Join(errs...)
}

func procPath(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}

func pids() []int {
	entries, _ := os.ReadDir("/proc")
	var all []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

// stat reads state and parent (proc_pid_stat(5)); the command's name before
// them stands in parentheses and may hold anything.
func stat(pid int) (state byte, parent int, ok bool) {
	b, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		return 0, 0, false
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 2 {
		return 0, 0, false
	}
	parent, err = strconv.Atoi(fields[1])
	return fields[0][0], parent, err == nil
}

func commandLine(pid int) string {
	b, _ := os.ReadFile(procPath(pid, "cmdline"))
	return strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
}
