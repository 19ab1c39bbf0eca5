package e2e

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tulle/cmd/internal/demo"
	"tulle/overlay/netcfg/nstest"
)

// asNobody runs a program as uid 65534 with no capability, none to gain, and
// no_new_privs.
var asNobody = []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs",
	"--bounding-set=-all", "--inh-caps=-all"}

// demoCommand is `tulle demo` with its directory, which does not exist yet. prefix
// is a program that runs it as somebody else.
func demoCommand(t *testing.T, prefix ...string) (cmd *exec.Cmd, dir string) {
	t.Helper()
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
	args := append(append([]string{}, prefix...), filepath.Join(bin, "tulle"), "demo", "--dir", dir)
	return exec.Command(args[0], args[1:]...), dir
}

// gone checks that a demo left neither its directory nor a socket in it. That no
// process, namespace or device is left it checks itself.
func gone(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", dir, err)
	}
	if sockets, err := os.ReadFile("/proc/net/unix"); err != nil || bytes.Contains(sockets, []byte(dir)) {
		t.Errorf("sockets of %s are left (%v)", dir, err)
	}
}

// TestDemo runs the main job twice at the same time: as whoever runs the tests
// and, where that is root, as an ordinary user without any privilege. Neither
// minds the other, and every check of both passes.
func TestDemo(t *testing.T) {
	needHost(t)
	who := map[string][]string{"as the caller": nil, "as the caller, again": nil}
	if os.Geteuid() == 0 {
		who = map[string][]string{"as root": nil, "as uid 65534 without capabilities": asNobody}
	}
	var wg sync.WaitGroup
	for name, prefix := range who {
		cmd, dir := demoCommand(t, prefix...)
		wg.Go(func() {
			started := time.Now()
			out, err := cmd.CombinedOutput()
			if err != nil || !bytes.Contains(out, []byte("checks as they should be")) {
				t.Errorf("%s: %v\n%s", name, err, out)
			}
			if took := time.Since(started); took > time.Minute {
				t.Errorf("%s: took %s, more than a minute", name, took)
			}
			gone(t, dir)
		})
	}
	wg.Wait()
}

// TestDemoInterrupted: an interrupt in the middle, which a terminal sends to the whole
// process group, takes everything away too.
func TestDemoInterrupted(t *testing.T) {
	needHost(t)
	cmd, dir := demoCommand(t)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	interrupted := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		seen.WriteString(lines.Text() + "\n")
		if strings.HasPrefix(lines.Text(), "2. ") {
			interrupted = true
			if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
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
	gone(t, dir)
}

// TestDemoNobodyReads: a reader that has seen enough, as head has, ends the demo,
// which takes everything away.
func TestDemoNobodyReads(t *testing.T) {
	needHost(t)
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
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "1. ") {
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(complaint.String(), "nobody reads the output any more") {
		t.Errorf("ended with %v:\n%s", err, &complaint)
	}
	gone(t, dir)
}

// TestDemoOnAPoorHost: what the host lacks is named with its mend, and the exit
// status is 1. The host's own modes and switches stay as they are: the closed device
// is one of a mount namespace, the closed switch one of a user namespace.
func TestDemoOnAPoorHost(t *testing.T) {
	nstest.NeedRoot(t)
	const tun, switches = "chmod 0666 /dev/net/tun", "sysctl -w user.max_user_namespaces="
	const closeTUN = `mount -t tmpfs -o mode=0755 none /dev/net && mknod -m 0600 /dev/net/tun c 10 200; `
	const closeNamespaces = `echo 0 > /proc/sys/user/max_user_namespaces; `
	for _, c := range []struct {
		name, script, flag string
		as                 []string
		want, never        string
	}{
		{"TUN closed", closeTUN, "-m", asNobody, tun, switches},
		{"no user namespaces", closeNamespaces, "-Ur", nil, switches, tun},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd, dir := demoCommand(t, c.as...)
			poor := exec.Command("unshare", append([]string{c.flag, "sh", "-ec", c.script + `exec "$@"`, "sh"}, cmd.Args...)...)
			out, err := poor.CombinedOutput()
			if poor.ProcessState.ExitCode() != 1 {
				t.Errorf("%v, want exit status 1", err)
			}
			if !bytes.Contains(out, []byte(c.want)) {
				t.Errorf("does not name the mend %q:\n%s", c.want, out)
			}
			if bytes.Contains(out, []byte(c.never)) {
				t.Errorf("names %q, which mends nothing here:\n%s", c.never, out)
			}
			gone(t, dir)
		})
	}
}

// TestDemoKeep: --keep leaves the world running, what it says to try works, and
// an interrupt takes everything away, which is then no failure.
func TestDemoKeep(t *testing.T) {
	needHost(t)
	cmd, dir := demoCommand(t)
	cmd.Args = append(cmd.Args, "--keep")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var script, seen strings.Builder
	stays := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := lines.Text()
		seen.WriteString(line + "\n")
		trimmed := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "It stays until you press Ctrl-C"):
			stays = true
		case !stays, trimmed == "":
		case strings.HasPrefix(trimmed, "alias tulle="):
			program := strings.TrimPrefix(trimmed, "alias tulle=")
			script.WriteString("tulle() { " + program + " \"$@\"; }\n")
		case strings.HasPrefix(trimmed, "less "):
			// The last one. A pager and curl are for people.
			try := exec.Command("sh", "-e", "-c", script.String())
			if text, err := try.CombinedOutput(); err != nil || !bytes.Contains(text, []byte("frontend")) {
				t.Errorf("what it says to try: %v\n%s\n%s", err, script.String(), text)
			}
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
		case !strings.Contains(trimmed, "curl"):
			script.WriteString(trimmed + "\n")
		}
	}
	if err := cmd.Wait(); err != nil || !stays {
		t.Errorf("stays: %v; after the interrupt: %v\n%s%s", stays, err, seen.String(), &complaint)
	}
	gone(t, dir)
}
