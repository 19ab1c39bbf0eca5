package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestMain lets this program play those that `tulle dev` starts, when it is
// called by their names.
func TestMain(m *testing.M) {
	switch name := filepath.Base(os.Args[0]); name {
	case serverBinary, cellBinary, proxyBinary:
		if err := play(name, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// Under the race detector each of the many children would sleep a second at
	// its end, for goroutines that none of them has.
	if os.Getenv("GORACE") == "" {
		os.Setenv("GORACE", "atexit_sleep_ms=0")
	}
	os.Exit(m.Run())
}

// play keeps to what the real programs promise: init refuses a directory that
// is there, issue-cell writes a directory, a daemon says that it is ready and
// ends at SIGTERM. A configuration that names the network 10.66.0.0/16, or a
// socket called broken, is one that fails.
func play(name string, args []string) error {
	flag := func(name string) string {
		for i, a := range args[:max(0, len(args)-1)] {
			if a == name {
				return args[i+1]
			}
		}
		return ""
	}
	switch args[0] {
	case "init":
		if flag("--network") == "10.66.0.0/16" {
			return errors.New("no such network")
		}
		if err := os.Mkdir(flag("--dir"), 0o700); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(flag("--dir"), "admin.token"), []byte("secret\n"), 0o600)
	case "issue-cell":
		return os.Mkdir(flag("--out"), 0o700)
	}
	if name == proxyBinary {
		ended := make(chan os.Signal, 1)
		signal.Notify(ended, syscall.SIGTERM)
		fmt.Println(`{"ready":true,"cell":true,"metrics":"127.0.0.1:4"}`)
		<-ended
		return nil
	}
	config, err := os.ReadFile(flag("--config"))
	if err != nil {
		return err
	}
	if strings.Contains(string(config), "broken") {
		return errors.New("the socket is broken")
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	if err := os.WriteFile(filepath.Join(filepath.Dir(flag("--config")), name+".pid"), []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		return err
	}
	fmt.Println(`{"ready":true,"external":"127.0.0.1:1","internal":"127.0.0.1:2","metrics":"127.0.0.1:3"}`)
	<-ended
	return nil
}

// programs is a directory with this program under its names.
func programs(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{serverBinary, cellBinary, proxyBinary} {
		if err := os.Symlink(self, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func devOf(t *testing.T) devOptions {
	dir := filepath.Join(t.TempDir(), "it's here") // a path that YAML must quote
	return devOptions{dir: dir, bin: programs(t), external: "127.0.0.1:0", socket: filepath.Join(dir, "celld.sock"),
		underlay: netip.MustParseAddr("127.0.0.1"), network: netip.MustParsePrefix("10.255.0.0/16"),
		announced: func(devWorld) error { return errors.New("nothing was to be announced") }}
}

// pid is the process that a daemon wrote down.
func pid(t *testing.T, path string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(string(b))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// gone checks that the processes have ended and been waited for.
func gone(t *testing.T, pids ...int) {
	t.Helper()
	for _, p := range pids {
		if err := syscall.Kill(p, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d is still there: %v", p, err)
		}
	}
}

func TestDevRunsUntilInterruptedAndAgain(t *testing.T) {
	o := devOf(t)
	for round := range 2 {
		ctx, interrupt := context.WithCancel(context.Background())
		var pids []int
		o.announced = func(w devWorld) error {
			want := devWorld{"http://127.0.0.1:1", filepath.Join(o.dir, "server", "admin.token"), o.socket, o.dir, "127.0.0.1:3", "127.0.0.1:3", "127.0.0.1:4"}
			if w != want {
				t.Errorf("announced %+v, want %+v", w, want)
			}
			pids = []int{pid(t, filepath.Join(o.dir, "server", serverBinary+".pid")), pid(t, filepath.Join(o.dir, cellBinary+".pid"))}
			if err := runDev(ctx, o); err == nil || !strings.Contains(err.Error(), "another tulle dev runs in "+o.dir) {
				t.Errorf("a second one in the same directory: %v", err)
			}
			interrupt()
			return nil
		}
		if err := runDev(ctx, o); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if len(pids) != 2 {
			t.Fatalf("round %d: not announced", round)
		}
		gone(t, pids...)
	}
}

func TestDevEndsWithItsPrograms(t *testing.T) {
	for _, name := range []string{"server/" + serverBinary, cellBinary} {
		o := devOf(t)
		var other int
		o.announced = func(devWorld) error {
			other = pid(t, filepath.Join(o.dir, "server", serverBinary+".pid"))
			return syscall.Kill(pid(t, filepath.Join(o.dir, name+".pid")), syscall.SIGKILL)
		}
		err := runDev(context.Background(), o)
		if err == nil || !strings.Contains(err.Error(), filepath.Base(name)+" ended: signal: killed") {
			t.Errorf("%s was killed: %v", name, err)
		}
		gone(t, other)
	}
}

func TestDevSaysWhatWentWrong(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*devOptions)
		want   string
	}{
		{"init fails", func(o *devOptions) { o.network = netip.MustParsePrefix("10.66.0.0/16") }, "no such network"},
		{"the cell fails", func(o *devOptions) { o.socket = "/broken" }, "tulle-celld ended: exit status 1:\n  the socket is broken"},
		{"no programs", func(o *devOptions) { o.bin = "/nonexistent" }, "/nonexistent/tulle-policy-server"},
		{"no directory", func(o *devOptions) { o.dir = "/dev/null/x" }, "/dev/null"},
	} {
		o := devOf(t)
		c.change(&o)
		if err := runDev(context.Background(), o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want it to hold %q", c.name, err, c.want)
		}
	}
	// What failed at the first start must not stand in the way of the next.
	o := devOf(t)
	network := o.network
	o.network = netip.MustParsePrefix("10.66.0.0/16")
	if err := runDev(context.Background(), o); err == nil {
		t.Fatal("init did not fail")
	}
	ctx, interrupt := context.WithCancel(context.Background())
	o.network, o.announced = network, func(devWorld) error { interrupt(); return nil }
	if err := runDev(ctx, o); err != nil {
		t.Errorf("after a failed init: %v", err)
	}
}

func TestDevCommand(t *testing.T) {
	s := newServer(t)
	if got := s.tulle("dev --underlay nowhere"); got.status != 1 || !strings.HasPrefix(got.err, "Incorrect Usage: --underlay: ") {
		t.Errorf("got %+v", got)
	}
	if got := s.tulle("dev"); got.status != 1 || !strings.Contains(got.err, "give --dir") {
		t.Errorf("without a home: %+v", got)
	}
	var text strings.Builder
	devText(&text, devWorld{Server: "http://127.0.0.1:1", TokenFile: "/t", Socket: "/s"})
	if want := "export TULLE_SERVER=http://127.0.0.1:1 TULLE_TOKEN_FILE=/t\n"; !strings.Contains(text.String(), want) {
		t.Errorf("%s\nlacks %s", text.String(), want)
	}
}
