package runtimes

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tulle/cmd/internal/demo"
	"tulle/overlay/control"
	"tulle/overlay/netcfg"
	"tulle/overlay/netcfg/nstest"
	"tulle/policy"
)

func TestMain(m *testing.M) {
	if os.Getenv(hostRole) != "" {
		if err := beHost(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// needs are the programs of Debian's packages podman, uidmap, slirp4netns, runc,
// containerd, busybox-static and containernetworking-plugins.
var needs = []string{"podman", "newuidmap", "slirp4netns", "runc", "containerd", "ctr", "busybox", "/usr/lib/cni/tuning", "nsenter", "useradd"}

// needRuntimes skips unless they can be started here.
func needRuntimes(t *testing.T) {
	t.Helper()
	nstest.NeedRoot(t)
	nstest.NeedTUN(t)
	for _, p := range needs {
		if _, err := exec.LookPath(p); err != nil {
			nstest.Skip(t, p+" is not here; make test installs it as root: "+err.Error())
		}
	}
	st, err := os.Stat(netcfg.TUNPath)
	must(t, err)
	if st.Mode().Perm()&0o006 != 0o006 {
		nstest.Skip(t, "rootless podman needs "+netcfg.TUNPath+" open to ordinary users, as make test has it")
	}
}

// build makes the binaries.
func build(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tulle-runtimes-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755))
	args := append(append([]string{"build", "-trimpath"}, raceFlags...), "-o", dir+string(filepath.Separator))
	for _, b := range append([]string{"tulle-cni", "tulle-netavark", "tulle-garden"}, demo.Binaries...) {
		args = append(args, "tulle/cmd/"+b)
	}
	cmd := exec.Command("go", append(args, "github.com/containernetworking/cni/cnitool")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	buildGet(t, dir)
	return dir
}

// world is two hosts with a cell each.
type world struct {
	t     *testing.T
	demo  *demo.World
	hosts [2]*host
	image string // root file system
	bin   string // our binaries
}

func newWorld(t *testing.T) *world {
	t.Helper()
	keepCgroups(t)
	bin := build(t)
	w := &world{t: t, image: rootfs(t, bin), bin: bin}
	var err error
	w.demo, err = demo.NewWorld(demo.Options{BinDir: bin, User: userID})
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			w.demo.DumpLogs(t.Output())
		}
		if err := w.demo.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err = w.demo.StartServer(ctx)
	must(t, err)
	for i := range w.hosts {
		cell, err := w.demo.StartCell(ctx, fmt.Sprintf("cell-%d", i+1), netip.AddrFrom4([4]byte{127, 0, 0, byte(i + 1)}))
		must(t, err)
		_, err = w.demo.StartProxy(ctx, cell)
		must(t, err)
		w.hosts[i] = newHost(t, cell, bin)
	}
	return w
}

// rootfs is a root file system of busybox, as a directory and beside it, .tar.
func rootfs(t *testing.T, bin string) string {
	t.Helper()
	top := t.TempDir()
	must(t, os.Chmod(filepath.Dir(top), 0o755))
	must(t, os.Chmod(top, 0o755))
	dir := filepath.Join(top, "rootfs")
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "run", "www", "var"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	path, err := exec.LookPath("busybox")
	must(t, err)
	b, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "bin/busybox"), b, 0o755))
	b, err = os.ReadFile(filepath.Join(bin, getter))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "bin", getter), b, 0o755))
	for _, name := range []string{"sh", "httpd", "nc", "sleep", "cat"} {
		must(t, os.Symlink("busybox", filepath.Join(dir, "bin", name)))
	}
	must(t, os.WriteFile(filepath.Join(dir, "www/index.html"), []byte("hello"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "etc/resolv.conf"), []byte("nameserver 169.254.0.2\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "etc/hosts"), nil, 0o644))
	if out, err := exec.Command("tar", "-C", dir, "-cf", dir+".tar", ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	return dir
}

// What a container runs.
var (
	serve = []string{"httpd", "-f", "-p", "8080", "-h", "/www"}
	idle  = []string{"sleep", "3600"}
)

// get is what a client runs. (The static busybox's wget crashes: it wants the C
// library's plug-ins for names.)
func get(addr netip.Addr) []string {
	return []string{"sh", "-c", `printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 10 ` + addr.String() + ` 8080`}
}

// endpoint waits for nothing: the attach is answered before the container runs.
func (h *host) endpoint(t *testing.T, match func(control.Endpoint) bool) control.Endpoint {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := h.cell.Status(ctx)
	must(t, err)
	for _, e := range s.Endpoints {
		if match(e) {
			return e
		}
	}
	t.Fatalf("no such endpoint on %s; there are %+v", h.cell.Name, s.Endpoints)
	return control.Endpoint{}
}

func ofApp(name string) func(control.Endpoint) bool {
	return func(e control.Endpoint) bool { return e.AppName == name }
}

// gone fails unless the host has no endpoint left.
func (h *host) gone(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := h.cell.Status(ctx)
	must(t, err)
	if len(s.Endpoints) != 0 {
		t.Errorf("%s still has %+v", h.cell.Name, s.Endpoints)
	}
}

// meet is the point of it all: a client on one cell reaches a server on another
// exactly while a policy lets it. ask runs a command in the client's container.
func (w *world) meet(t *testing.T, client, server control.Endpoint, ask func(...string) (string, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	a, err := w.demo.Client()
	must(t, err)
	refused := func(when string) {
		t.Helper()
		if out, err := ask(get(server.Address)...); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s the client got %q, %v", when, out, err)
		}
	}
	refused("without a policy")
	p := policy.Policy{Source: client.App, Destination: server.App, Protocol: policy.TCP, Ports: policy.PortRange{Start: 8080, End: 8080}}
	must(t, a.Enforce(ctx, p))
	if out, err := ask(get(server.Address)...); err != nil || !strings.HasSuffix(out, "hello") {
		t.Errorf("with a policy the client got %q, %v", out, err)
	}
	must(t, a.Revoke(ctx, p))
	refused("after the policy")
}
