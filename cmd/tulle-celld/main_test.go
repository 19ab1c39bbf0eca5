package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/cmd/internal/promtest"
	"tulle/overlay"
	"tulle/overlay/control"
	"tulle/overlay/datapath"
	"tulle/overlay/holder"
	"tulle/overlay/netcfg"
	"tulle/overlay/netcfg/nstest"
	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/server"
	"tulle/policy/store"
	"tulle/policy/store/sqlite"
)

const programEnv = "TULLE_TEST_CELLD"

// TestMain is the program itself when a test, or the program, starts it.
func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		main()
	}
	nstest.Main(m)
}

// serverFor is a policy server for one cell, whose configuration it writes.
func serverFor(t *testing.T, name string) (config, state, socket string) {
	t.Helper()
	dir := t.TempDir()
	roots, err := ca.Create(filepath.Join(dir, "pki"))
	if err != nil {
		t.Fatal(err)
	}
	certs, err := roots.Server.Certificates([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	cred, err := roots.Cells.IssueCell(name, []ca.Space{ca.AnySpace}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.WriteCell(filepath.Join(dir, "credentials"), cred, roots.Server); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s, err := sqlite.Open(ctx, filepath.Join(dir, "tulle.db"), sqlite.Options{
		Lease: store.LeaseConfig{Network: netip.MustParsePrefix("10.249.0.0/16"), Bits: 24, Lifetime: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	in, err := server.NewInternal(ctx, s, server.InternalOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := server.InternalServer(in, ca.ServerTLS(roots.Cells, certs), slog.New(slog.DiscardHandler))
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.ServeTLS(l, "", "") })
	wg.Go(func() { _ = in.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		_ = srv.Close()
		wg.Wait()
		_ = s.Close()
	})
	config, state, socket = filepath.Join(dir, "celld.yaml"), filepath.Join(dir, "state"), filepath.Join(dir, "run", "celld.sock")
	text := fmt.Sprintf("name: %s\nserver: https://%s\ncredentials: credentials\nstate_dir: state\nsocket: run/celld.sock\n"+
		"underlay: 127.0.0.1\nport: 0\nwireguard: 0\nmetrics: 127.0.0.1:0\nresolvers: [127.0.0.1]\n", name, l.Addr())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return config, state, socket
}

// start runs the program until it says that it is ready.
func start(t *testing.T, config string) (*exec.Cmd, overlay.Ready) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "--config", config)
	cmd.Env = append(os.Environ(), programEnv+"=1")
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		if t.Failed() {
			t.Logf("log:\n%s", log.String())
		}
	})
	var r overlay.Ready
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &r)
	}
	if err != nil || !r.Ready {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		t.Fatalf("ready line %q: %v\n%s", line, err, log.String())
	}
	return cmd, r
}

// threads calls f with the status of every thread of a process.
func threads(t *testing.T, pid int, f func(status string)) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(files) < 2 {
		t.Fatalf("threads of %d: %v, %v", pid, files, err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // the thread has just ended
		}
		if err != nil {
			t.Fatal(err)
		}
		f(string(b))
	}
}

// A container whose attacher keeps nothing: kill -9 of the daemon, and its
// device, its address and its endpoint are there again. Then a stop in order
// that leaves nothing.
func TestKill9(t *testing.T) {
	nstest.NeedTUN(t)
	nstest.NeedNamespaces(t)
	config, state, socket := serverFor(t, "cell-1")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := holder.Stop(ctx, state); err != nil {
			t.Error(err)
		}
	})
	cmd, ready := start(t, config)
	threads(t, cmd.Process.Pid, func(status string) {
		for _, want := range []string{"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1"} {
			if !strings.Contains(status, want) {
				t.Errorf("a thread lacks %q:\n%s", want, status)
			}
		}
	})
	var core unix.Rlimit
	if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_CORE, nil, &core); err != nil || core.Max != 0 {
		t.Errorf("RLIMIT_CORE is %+v, %v", core, err)
	}

	ns := nstest.New(t)
	var tun *os.File
	if err := ns.Do(func() (err error) { tun, err = netcfg.CreateTUN("eth0", 1450); return err }); err != nil {
		t.Fatal(err)
	}
	client, err := control.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	at, err := client.Attach(t.Context(), control.Attach{Container: "c1", App: api.AppRef{Name: "web", Space: "dev", Org: "acme"},
		Device: "eth0", Lifeline: control.LifelineNone}, tun, nil)
	if err != nil {
		t.Fatal(err)
	}
	device := netcfg.Device{Name: "eth0", Address: at.Address, MTU: at.MTU}
	if err := ns.Do(func() error { return netcfg.Configure(device) }); err != nil {
		t.Fatal(err)
	}
	_ = tun.Close()
	_ = client.Close()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := ns.Do(func() error { return netcfg.Check(device) }); err != nil {
		t.Errorf("the device after kill -9: %v", err)
	}

	cmd, again := start(t, config)
	if again.Underlay != ready.Underlay || again.Lease != ready.Lease {
		t.Errorf("ready as %+v, was %+v", again, ready)
	}
	var out, log bytes.Buffer
	if code := run(t.Context(), []string{"list", "--config", config, "--output", "json"}, &out, &log); code != 0 {
		t.Fatalf("list: %s", log.String())
	}
	var list []control.Endpoint
	if err := json.Unmarshal(out.Bytes(), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0].Address != at.Address.Addr() || list[0].Incarnation != at.Incarnation || list[0].Waiting || list[0].AppName != "web" {
		t.Errorf("after kill -9: %+v, attached was %+v", list, at)
	}
	out.Reset()
	if code := run(t.Context(), []string{"list", "--socket", socket}, &out, &log); code != 0 || !strings.Contains(out.String(), "ends by detach alone") {
		t.Errorf("list says %q", out.String())
	}
	if client, err = control.Dial(socket); err != nil {
		t.Fatal(err)
	}
	if err := client.Detach(t.Context(), control.Detach{Container: "c1"}); err != nil {
		t.Error(err)
	}
	_ = client.Close()
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("a stop in order: %v", err)
	}
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket: %v", err)
	}
}

// Root asks another user's daemon, whose socket only root's rights open.
func TestRootAsksAnotherUsersDaemon(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "celld.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if os.Getuid() == 0 {
		for _, path := range []string{socket, dir} {
			if err := os.Chown(path, 65534, 65534); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	opened := make(chan struct{}, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			opened <- struct{}{}
			_ = c.Close()
		}
	}()
	for _, command := range []string{"status", "list", "rotate-key", "traffic-log"} {
		cmd := exec.Command(os.Args[0], command, "--socket", socket)
		cmd.Env = append(os.Environ(), programEnv+"=1")
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Errorf("%s: a daemon that says nothing was believed", command)
		}
		select {
		case <-opened:
		default:
			t.Errorf("%s did not open the socket: %s", command, out)
		}
	}
	if os.Getuid() != 0 {
		return
	}
	// What is no asker has no such right, and says why.
	cmd := exec.Command(os.Args[0], "release", "--config", filepath.Join(dir, "celld.yaml"))
	cmd.Env = append(os.Environ(), programEnv+"=1")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "permission denied; tulle-celld gives up root's rights") {
		t.Errorf("release: %v, %s", err, out)
	}
}

// What does not ask a daemon gives up root's rights before it reads anything.
func TestOnlyAskersKeepTheirRights(t *testing.T) {
	for line, want := range map[string]bool{
		"status": true, "--config celld.yaml list": true, "rotate-key --socket status": true, "traffic-log c2c=on": true,
		"": false, "--config status": false, "--config=status": false, "explode": false, "holder status": false,
		"join --token status --out list": false, "release --config status": false, "version": false,
	} {
		if got := asks(strings.Fields(line)); got != want {
			t.Errorf("asks(%q) = %v", line, got)
		}
	}
}

func TestCommandLine(t *testing.T) {
	cases := []struct {
		name string
		args []string
		code int
		says string
	}{
		{"nothing", []string{}, 2, "--config FILE is missing"},
		{"unknown flag", []string{"--explode"}, 2, "explode"},
		{"unknown command", []string{"explode"}, 2, "explode"},
		{"no file", []string{"--config", "/nonexistent/celld.yaml"}, 1, "/nonexistent/celld.yaml"},
		{"nobody there", []string{"status", "--socket", "/nonexistent/celld.sock"}, 1, "no cell daemon listens on /nonexistent/celld.sock: start tulle-celld, or name its socket"},
		{"output", []string{"list", "--output", "xml"}, 2, "xml"},
		{"version", []string{"version"}, 0, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var out, log bytes.Buffer
			if code := run(t.Context(), c.args, &out, &log); code != c.code || !strings.Contains(log.String(), c.says) {
				t.Errorf("exit %d, %q; want %d and %q", code, log.String(), c.code, c.says)
			}
		})
	}
}

// What an operator watches is on the page from the first container on, and in
// Prometheus' own terms.
func TestMetricsPage(t *testing.T) {
	nstest.NeedTUN(t)
	nstest.NeedNamespaces(t)
	config, state, socket := serverFor(t, "cell-1")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := holder.Stop(ctx, state); err != nil {
			t.Error(err)
		}
	})
	_, ready := start(t, config)
	ns := nstest.New(t)
	var tun *os.File
	if err := ns.Do(func() (err error) { tun, err = netcfg.CreateTUN("eth0", 1450); return err }); err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	client, err := control.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	at, err := client.Attach(t.Context(), control.Attach{Container: "some-container", App: api.AppRef{Name: "web", Space: "dev", Org: "acme"},
		Device: "eth0", Lifeline: control.LifelineConnection}, tun, nil)
	if err != nil {
		t.Fatal(err)
	}
	page := promtest.Page(t, ready.Metrics)
	promtest.Needs(t, page, "tulle_cell_packets_total", "tulle_cell_bytes_total", "tulle_cell_drops_total", "tulle_cell_flows",
		"tulle_cell_policies", "tulle_cell_revision", "tulle_cell_update_seconds", "tulle_cell_peers", "tulle_cell_attach_seconds",
		"tulle_cell_watch_lag_seconds", "tulle_cell_watch_connected", "tulle_cell_endpoints", "tulle_cell_addresses")
	// Every reason has its series before the first drop, and no other label varies.
	for _, direction := range []string{"egress", "ingress"} {
		for r := datapath.Passed + 1; r < datapath.NumReasons; r++ {
			if line := fmt.Sprintf("tulle_cell_drops_total{direction=%q,reason=%q} ", direction, r); !strings.Contains(page, line) {
				t.Errorf("no line %s", line)
			}
		}
	}
	for _, name := range []string{"some-container", at.Address.Addr().String(), string(at.App)} {
		if strings.Contains(page, name) {
			t.Errorf("the page names %s: its size follows the containers", name)
		}
	}
}
