package runtimes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/cmd/internal/demo"
)

// User is the ordinary user of a host: the daemons', and rootless podman's. Home
// and uid are those on the page.
const (
	user    = "tulle"
	userID  = 1000
	home    = "/home/tulle"
	runtime = "/run/user/1000"
)

// host is a machine with a cell: this one, with other mounts.
type host struct {
	t    *testing.T
	cell *demo.Cell
	init *exec.Cmd
}

// hostRole makes this test binary a host's init; its value is the directory of
// the cell's socket.
const hostRole = "TULLE_RUNTIMES_HOST"

// newHost starts a host for the cell; bin is what goes to /opt/cni/bin and
// /usr/local/bin.
func newHost(t *testing.T, cell *demo.Cell, bin string) *host {
	t.Helper()
	h := &host{t: t, cell: cell, init: exec.Command("/proc/self/exe")}
	h.init.Env = append(os.Environ(), hostRole+"="+filepath.Dir(cell.Socket), "TULLE_RUNTIMES_BIN="+bin, "TULLE_RUNTIMES_TRUST="+trustDir(t, cell))
	h.init.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
	h.init.Stderr = os.Stderr
	in, err := h.init.StdinPipe()
	must(t, err)
	out, err := h.init.StdoutPipe()
	must(t, err)
	must(t, h.init.Start())
	t.Cleanup(func() {
		must(t, in.Close()) // and with the init all that runs there
		_ = h.init.Wait()
	})
	ready, err := io.ReadAll(io.LimitReader(out, 1))
	if err != nil || len(ready) != 1 {
		t.Fatalf("the host is not ready: %v", err)
	}
	return h
}

// beHost is the init: it mounts, waits for its orphans, and ends with its input.
func beHost() error {
	if err := mounts(os.Getenv(hostRole), os.Getenv("TULLE_RUNTIMES_BIN"), os.Getenv("TULLE_RUNTIMES_TRUST")); err != nil {
		return err
	}
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	go func() {
		for range children {
			for {
				if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != nil || pid <= 0 {
					break
				}
			}
		}
	}()
	if _, err := os.Stdout.Write([]byte("\n")); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// mounts gives the host what it has of its own. /etc and /usr/lib stay readable
// below; what is written to them goes away with the host.
func mounts(socket, bin, trust string) error {
	// The layers of what is written: in memory, at a place that is covered.
	const layers = "/mnt"
	steps := []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Mount("proc", "/proc", "proc", 0, "") },
		func() error { return tmpfs(layers) },
		func() error { return over(layers, "/etc") },
		func() error { return tmpfs("/home") },
		func() error { return tmpfs("/var/lib") },
		func() error { return tmpfs("/opt") },
		func() error { return tmpfs("/run") },
		func() error { return bind(bin, "/opt/cni/bin") },
		func() error { return bind(socket, "/run/tulle") },
		func() error { return bind(socket, runtime+"/tulle") },
		func() error { return os.Chown(runtime, userID, userID) },
		func() error { return os.Chmod(runtime, 0o700) },
		func() error { return os.RemoveAll("/etc/cni/net.d/87-podman-bridge.conflist") },
		func() error {
			out, err := exec.Command("useradd", "--non-unique", "--uid", strconv.Itoa(userID), "--create-home", "--home-dir", home, user).CombinedOutput()
			if err != nil {
				return fmt.Errorf("useradd: %w: %s", err, out)
			}
			return nil
		},
		func() error { return bind(trust, "/var/lib/tulle/trust") },
		func() error { return bind(trust, home+"/.local/state/tulle/trust") },
		func() error {
			var err error
			for _, dir := range []string{"/.local", "/.local/state", "/.local/state/tulle"} {
				err = errors.Join(err, os.Chown(home+dir, userID, userID))
			}
			return err
		},
	}
	for i, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("mounts of a host, step %d: %w", i, err)
		}
	}
	return nil
}

func tmpfs(at string) error { return unix.Mount("tmpfs", at, "tmpfs", 0, "mode=0755") }

func bind(what, at string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	return unix.Mount(what, at, "", unix.MS_BIND, "")
}

func over(layers, dir string) error {
	up, work := filepath.Join(layers, dir, "up"), filepath.Join(layers, dir, "work")
	if err := errors.Join(os.MkdirAll(up, 0o755), os.MkdirAll(work, 0o755)); err != nil {
		return err
	}
	return unix.Mount("overlay", dir, "overlay", 0, "lowerdir="+dir+",upperdir="+up+",workdir="+work)
}

// patience is for a command of a runtime on a busy machine.
const patience = 2 * time.Minute

// command is one that runs on the host, as root.
func (h *host) command(ctx context.Context, env []string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", strconv.Itoa(h.init.Process.Pid), "--mount", "--pid", "--"}, args...)...)
	cmd.Env = append([]string{"PATH=/opt/cni/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C"}, env...)
	cmd.Dir = "/"
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// try runs a command and returns what it printed.
func (h *host) try(env []string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := h.command(ctx, env, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s%s", strings.Join(args, " "), err, errs.String(), out.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// run is try of what must work.
func (h *host) run(env []string, args ...string) string {
	h.t.Helper()
	out, err := h.try(env, args...)
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

// write puts a file there, for owner.
func (h *host) write(path, text string, owner int) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	defer cancel()
	cmd := h.command(ctx, nil, "setpriv", "--reuid", strconv.Itoa(owner), "--regid", strconv.Itoa(owner), "--clear-groups",
		"sh", "-c", `mkdir -p "$(dirname "$0")" && cat >"$0"`, path)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("write %s: %v: %s", path, err, out)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
