package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tulle/cmd/internal/demo"
)

// getterRole makes this test binary a program that gets one URL, as curl would
// (see TestMain): it exits 7 where it is refused, as curl does.
const getterRole = "TULLE_E2E_GET"

func getURL(url string) int {
	client := http.Client{Timeout: 5 * time.Second}
	answer, err := client.Get(url)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 7
	}
	defer answer.Body.Close()
	if _, err := io.Copy(os.Stdout, answer.Body); err != nil {
		return 1
	}
	return 0
}

// TestQuickstart does what docs/quickstart.md tells a newcomer to do on a laptop,
// as an ordinary user where the test may become one.
func TestQuickstart(t *testing.T) {
	needHost(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	home, err := os.MkdirTemp("", "tulle-e2e-home-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	if err := os.Chmod(home, 0o777); err != nil {
		t.Fatal(err)
	}
	network, err := demo.FreeNetwork()
	if err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "HOME="+home, "XDG_RUNTIME_DIR="+home, "XDG_STATE_HOME="+home,
		"PATH="+bin+":"+os.Getenv("PATH"), "TULLE_SERVER=http://"+freeAddress(t))
	var prefix []string
	if os.Geteuid() == 0 {
		prefix = asNobody
	}
	command := func(args ...string) *exec.Cmd {
		args = append(append([]string{}, prefix...), append([]string{filepath.Join(bin, "tulle")}, args...)...)
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = 10 * time.Second
		cmd.Dir, cmd.Env = home, env
		return cmd
	}
	tulle := func(status int, args ...string) string {
		t.Helper()
		cmd := command(args...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if cmd.ProcessState.ExitCode() != status {
			t.Fatalf("tulle %s: %v, want status %d\n%s%s", strings.Join(args, " "), err, status, out, &stderr)
		}
		return string(out)
	}

	listen := strings.TrimPrefix(env[len(env)-1], "TULLE_SERVER=http://")
	var token string
	dev := command("dev", "--network", network.String(), "--listen", listen)
	devOut := background(t, dev)
	for {
		line, err := devOut.ReadString('\n')
		if err != nil {
			t.Fatalf("tulle dev ended: %v", err)
		}
		if _, file, ok := strings.Cut(strings.TrimSpace(line), "TULLE_TOKEN_FILE="); ok {
			env, token = append(env, "TULLE_TOKEN_FILE="+file), file
		}
		if strings.Contains(line, "State and logs are in") {
			break
		}
	}
	backend := command("run", "--app", "backend", "--", filepath.Join(bin, "tulle"), "echo", "--http", ":8080")
	first, err := background(t, backend).ReadString('\n')
	if err != nil {
		t.Fatalf("tulle run: %v", err)
	}
	_, address, ok := strings.Cut(first, `"addrs":["`)
	if !ok {
		t.Fatalf("no address in %s", first)
	}
	address, _, _ = strings.Cut(address, `"`)
	url := "http://" + netip.AddrPortFrom(netip.MustParseAddr(address), 8080).String() + "/"
	env = append(env, getterRole+"="+url)
	get := []string{"run", "--app", "frontend", "--", filepath.Join(bin, self)}

	tulle(7, get...)
	tulle(0, "add-network-policy", "frontend", "backend", "--protocol", "tcp", "--port", "8080")
	if got := tulle(0, get...); !strings.Contains(got, address+":8080") {
		t.Errorf("the backend answered %q", got)
	}
	if got := tulle(0, "network-policies"); !strings.Contains(got, "frontend   backend       tcp        8080") {
		t.Errorf("network-policies:\n%s", got)
	}
	for _, list := range []string{"apps", "endpoints", "cells", "status"} {
		if got := tulle(0, list); !strings.Contains(got, "backend") && list != "cells" || len(got) == 0 {
			t.Errorf("%s:\n%s", list, got)
		}
		if got := tulle(0, list, "--output", "json"); got[0] != '{' && got[0] != '[' {
			t.Errorf("%s --output json:\n%s", list, got)
		}
	}
	tulle(0, "remove-network-policy", "frontend", "backend", "--protocol", "tcp", "--port", "8080")
	tulle(7, get...)
	if got := tulle(0, "remove-network-policy", "frontend", "backend", "--protocol", "tcp", "--port", "8080"); !strings.Contains(got, "Policy does not exist.") {
		t.Errorf("removed twice: %q", got)
	}
	tulle(1, "add-network-policy", "frontend", "nobody")
	// A command of the same user, with the same file system, does not see the token.
	tulle(1, "run", "--app", "frontend", "--", "cat", token)
}

// background starts a command that runs until the test ends, when it must exit by
// itself on an interrupt, and returns its standard output.
func background(t *testing.T, cmd *exec.Cmd) *bufio.Reader {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		// How it ends is its own affair: interrupted programs say so.
		if err := cmd.Wait(); cmd.ProcessState == nil || !cmd.ProcessState.Exited() {
			t.Errorf("%s did not end by itself: %v", cmd, err)
		}
	})
	return bufio.NewReader(out)
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
