package contain

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// seen is what a command finds out about its container.
type seen struct {
	UID, GID    int
	Status      map[string]string // lines of /proc/self/status
	Descriptors []string
	PIDs        []int
	Dir         string
	Env         string
	Interfaces  []string // name, MTU, addresses, up
	SysNet      []string // /sys/class/net
	Routes      string
	Resolv      string
	Nsswitch    string
	Refused     map[string]string // what was tried: the error, "" if it worked
}

// probe is the command inside; mode says what it does.
func probe(mode string, args []string) int {
	switch mode {
	case "look":
		return look(args)
	case "exit":
		status, _ := strconv.Atoi(args[0])
		return status
	case "wait":
		return waitForSignals()
	case "orphan":
		return leaveOrphan(args[0])
	case "send":
		return sendLines()
	}
	return 1
}

// look tries everything that is promised not to work. args: the daemon's
// socket, its key, its pid.
func look(args []string) int {
	socket, key, pid := args[0], args[1], args[2]
	s := seen{UID: os.Getuid(), GID: os.Getgid(), Status: map[string]string{}, Refused: map[string]string{}}
	try := func(what string, f func() error) {
		if err := f(); err != nil {
			s.Refused[what] = err.Error()
		} else {
			s.Refused[what] = ""
		}
	}
	open := func(path string, flags int) func() error {
		return func() error {
			f, err := os.OpenFile(path, flags, 0)
			if err == nil {
				f.Close()
			}
			return err
		}
	}
	// First, before this process opens anything.
	links, _ := filepath.Glob("/proc/self/fd/*")
	for _, l := range links {
		fd, _ := strconv.Atoi(filepath.Base(l))
		if to, err := os.Readlink(l); err == nil && fd > 2 &&
			!strings.HasPrefix(to, "anon_inode:[event") && !strings.HasPrefix(to, "/sys/fs/cgroup/") { // Go's own
			s.Descriptors = append(s.Descriptors, to)
		}
	}
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		k, v, _ := strings.Cut(line, ":")
		s.Status[k] = strings.TrimSpace(v)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		n, _ := strconv.Atoi(filepath.Base(p))
		s.PIDs = append(s.PIDs, n)
	}
	sort.Ints(s.PIDs)
	s.Dir, _ = os.Getwd()
	s.Env = os.Getenv("TULLE_TEST_ENV")
	ifs, _ := net.Interfaces()
	for _, i := range ifs {
		addrs, _ := i.Addrs()
		s.Interfaces = append(s.Interfaces, fmt.Sprintf("%s %d %v %v", i.Name, i.MTU, addrs, i.Flags&net.FlagUp != 0))
	}
	entries, _ := os.ReadDir("/sys/class/net")
	for _, e := range entries {
		s.SysNet = append(s.SysNet, e.Name())
	}
	b, _ := os.ReadFile("/proc/net/route")
	s.Routes = string(b)
	b, _ = os.ReadFile("/etc/resolv.conf")
	s.Resolv = string(b)
	b, _ = os.ReadFile("/etc/nsswitch.conf")
	s.Nsswitch = string(b)

	try("write /etc/shadow", open("/etc/shadow", os.O_WRONLY))
	try("write core_pattern", open("/proc/sys/kernel/core_pattern", os.O_WRONLY))
	try("write /etc/resolv.conf", open("/etc/resolv.conf", os.O_WRONLY))
	try("write a sysctl of the network", open("/proc/sys/net/ipv4/ip_forward", os.O_WRONLY))
	try("dial the daemon", func() error { _, err := net.Dial("unix", socket); return err })
	try("read the daemon's key", open(key, os.O_RDONLY))
	try("read the key past the mask", func() error {
		// A user namespace of its own gives rights over mounts, but not over these.
		cmd := exec.Command("/bin/sh", "-c", `umount "$0"; cat "$1"`, filepath.Dir(key), key)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}}
		return cmd.Run()
	})
	try("kill the daemon", func() error {
		n, _ := strconv.Atoi(pid)
		return unix.Kill(n, 0)
	})
	try("see the init's descriptors", func() error { _, err := os.Readlink("/proc/1/fd/0"); return err })
	try("trace the init", func() error { return unix.PtraceAttach(1) })
	try("enter the init's root", func() error { _, err := os.ReadDir("/proc/1/root"); return err })
	try("become root", func() error { return syscall.Setuid(0) })
	try("change the device", func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", []byte("0"), 0)
	})
	try("mount", func() error { return unix.Mount("tmpfs", "/tmp", "tmpfs", 0, "") })
	try("raw socket", func() error { _, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP); return err })
	if err := json.NewEncoder(os.Stdout).Encode(s); err != nil {
		return 1
	}
	return 0
}

// waitForSignals says "ready", then each signal; the terminate signal ends it.
func waitForSignals() int {
	c := make(chan os.Signal, 8)
	signal.Notify(c, syscall.SIGINT, syscall.SIGUSR1, syscall.SIGHUP, syscall.SIGTERM)
	fmt.Println("ready")
	for s := range c {
		fmt.Println(s)
		if s == syscall.SIGTERM {
			return 7
		}
	}
	return 0
}

// leaveOrphan leaves a process that holds the file at path locked, and ends.
func leaveOrphan(path string) int {
	cmd := exec.Command("/bin/sh", "-c", `exec 9>"$0" && flock 9 && echo locked && exec sleep 1000`, path)
	out, err := cmd.StdoutPipe()
	if err != nil || cmd.Start() != nil {
		return 1
	}
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "locked\n" {
		return 2
	}
	return 0
}

// sendLines sends each line of standard input as a datagram to a neighbour.
func sendLines() int {
	c, err := net.Dial("udp4", "10.255.7.9:9")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		if _, err := c.Write(in.Bytes()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return 0
}
