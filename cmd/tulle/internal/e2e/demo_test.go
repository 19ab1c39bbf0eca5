package e2e

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"tulle/cmd/tulle/internal/demo"
	"tulle/overlay/netcfg/nstest"
)

// demoCommand is `tulle demo` with its directory, which does not exist yet.
func demoCommand(t *testing.T) (cmd *exec.Cmd, dir string) {
	t.Helper()
	if err := demo.CheckHost(); err != nil {
		nstest.Skip(t, err.Error())
	}
	bin, err := build()
	if err != nil {
		t.Fatalf("build the binaries: %v", err)
	}
	parent, err := os.MkdirTemp("", "tulle-e2e-demo-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(parent) })
	if err := os.Chmod(parent, 0o777); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(parent, "world")
	return exec.Command(filepath.Join(bin, "tulle"), "demo", "--dir", dir), dir
}

// startUnprivileged starts cmd as uid 65534 (or, for an ordinary user, as that
// user), with no capability to be had and no_new_privs: what a child inherits
// from its thread, so the thread ends with it.
func startUnprivileged(cmd *exec.Cmd) error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			started <- err
			return
		}
		if os.Geteuid() == 0 {
			for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
				// EINVAL: a capability that this kernel does not have.
				if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL {
					started <- err
					return
				}
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: demo.Nobody, Gid: demo.Nobody}}
		}
		started <- cmd.Start()
	}()
	return <-started
}

// Two demos at once, one as whoever runs the tests and one without any
// privilege: neither minds the other, and every check of both passes.
func TestDemo(t *testing.T) {
	plain, plainDir := demoCommand(t)
	without, withoutDir := demoCommand(t)
	var plainOut, withoutOut bytes.Buffer
	plain.Stdout, plain.Stderr = &plainOut, &plainOut
	without.Stdout, without.Stderr = &withoutOut, &withoutOut
	if err := plain.Start(); err != nil {
		t.Fatal(err)
	}
	if err := startUnprivileged(without); err != nil {
		t.Error(err)
	} else if err := without.Wait(); err != nil {
		t.Errorf("without privilege: %v\n%s", err, withoutOut.String())
	}
	if err := plain.Wait(); err != nil {
		t.Errorf("as uid %d: %v\n%s", os.Geteuid(), err, plainOut.String())
	}
	for _, dir := range []string{plainDir, withoutDir} {
		if _, err := os.Lstat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", dir, err)
		}
	}
}

// An interrupt in the middle takes everything away too.
func TestDemoInterrupted(t *testing.T) {
	cmd, dir := demoCommand(t)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	interrupted := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		seen.WriteString(lines.Text() + "\n")
		if strings.HasPrefix(lines.Text(), "2. ") {
			interrupted = true
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
		}
	}
	err = cmd.Wait()
	if !interrupted || err == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("interrupted %v, ended with %v", interrupted, err)
	}
	if !strings.Contains(complaint.String(), demo.ErrInterrupted.Error()) || !strings.Contains(seen.String(), "no process, namespace, device, socket or directory") {
		t.Errorf("it says:\n%s%s", seen.String(), complaint.String())
	}
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", dir, err)
	}
	if sockets, err := os.ReadFile("/proc/net/unix"); err != nil || bytes.Contains(sockets, []byte(dir)) {
		t.Errorf("sockets of %s are left (%v)", dir, err)
	}
}
