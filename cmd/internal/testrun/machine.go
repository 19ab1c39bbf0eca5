package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

const (
	tunDevice    = "/dev/net/tun"
	guardCommand = "restore-mode-at-eof"
)

// programs maps a Debian package to a file that shows it is there.
var programs = map[string]string{
	"prometheus": "promtool",
	"postgresql": "/usr/lib/postgresql/15/bin/initdb",
	"gcc":        "gcc",
	"libc6-dev":  "/usr/include/stdlib.h",

	"dnsmasq-base":   "dnsmasq",
	"bind9-dnsutils": "dig",
	"haproxy":        "haproxy",
	"curl":           "curl",
	"openssl":        "openssl",
	"iptables":       "iptables-legacy-restore",

	"podman":                      "podman",
	"uidmap":                      "newuidmap",
	"slirp4netns":                 "slirp4netns",
	"runc":                        "runc",
	"containerd":                  "containerd",
	"busybox-static":              "busybox",
	"containernetworking-plugins": "/usr/lib/cni/tuning",
}

// peers are the packages of what the tests hold Tulle against.
var peers = []string{"prometheus", "postgresql", "dnsmasq-base", "bind9-dnsutils", "haproxy", "curl", "openssl", "iptables"}

// runtimes are the packages that cmd/internal/runtimes starts containers with.
var runtimes = []string{"podman", "uidmap", "slirp4netns", "runc", "containerd", "busybox-static", "containernetworking-plugins"}

// withMachine runs f with the packages installed and the TUN device open, as
// far as the caller's rights go.
func withMachine(ctx context.Context, log io.Writer, packages []string, f func() error) error {
	if os.Geteuid() != 0 {
		for _, p := range missing(packages) {
			fmt.Fprintf(log, "testrun: package %s is not installed and installing needs root: what is held against it will be skipped\n", p)
		}
		return f()
	}
	if err := install(ctx, log, missing(packages)); err != nil {
		return err
	}
	restore, err := open(tunDevice)
	if err != nil {
		return err
	}
	defer restore()
	return f()
}

func missing(packages []string) []string {
	var out []string
	for _, p := range packages {
		if strings.HasPrefix(programs[p], "/") {
			if _, err := os.Stat(programs[p]); err == nil {
				continue
			}
		} else if _, err := exec.LookPath(programs[p]); err == nil {
			continue
		}
		out = append(out, p)
	}
	return out
}

func install(ctx context.Context, log io.Writer, packages []string) error {
	if len(packages) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		fmt.Fprintf(log, "testrun: no apt-get here: install %s yourself, or what is held against them will be skipped\n", strings.Join(packages, ", "))
		return nil
	}
	apt := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	args := append([]string{"install", "-y", "-qq", "--no-install-recommends"}, packages...)
	if apt(args...) == nil {
		return nil
	}
	// The lists may be missing or old.
	if err := apt("update", "-qq"); err != nil {
		return err
	}
	return apt(args...)
}

// open lets ordinary users open a device (for the TUN device 0666 is udev's
// default mode) and returns what puts the old mode back. A second process, in a session of its
// own, does the same if this one dies without: it waits for the end of a pipe
// whose only other end is here.
func open(device string) (restore func(), err error) {
	st, err := os.Stat(device)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: load the tun module (modprobe tun)", device, err)
	}
	mode := st.Mode().Perm()
	if mode == 0o666 {
		return func() {}, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, guardCommand, device)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the guard of %s: %w", device, err)
	}
	if _, err := fmt.Fprintf(pipe, "%o\n", mode); err != nil {
		return nil, err
	}
	if err := os.Chmod(device, 0o666); err != nil {
		return nil, err
	}
	return func() {
		pipe.Close()
		cmd.Wait()
	}, nil
}

// guard reads the mode, waits for the end of in and restores it.
func guard(device string, in io.Reader, log io.Writer) int {
	b, err := io.ReadAll(in)
	if err != nil {
		fmt.Fprintln(log, "testrun: guard:", err)
		return 1
	}
	var mode fs.FileMode
	if _, err := fmt.Sscanf(string(b), "%o", &mode); err != nil {
		fmt.Fprintf(log, "testrun: guard: mode %q: %v\n", b, err)
		return 1
	}
	if err := os.Chmod(device, mode); err != nil {
		fmt.Fprintln(log, "testrun: guard:", err)
		return 1
	}
	return 0
}
