package contain

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/overlay/netcfg"
	"tulle/overlay/netcfg/nstest"
)

const (
	address   = "10.255.7.3/32"
	address6  = "fd74:756c:6c65::aff:703/128"
	mtu       = 1410
	container = "c1"
	patience  = 20 * time.Second
)

// cell is a daemon's local API: the real server over a handler that keeps
// devices, and that can be stopped and started.
type cell struct {
	t                 *testing.T
	dir, socket, key  string
	binary            string // this test binary, where every uid may execute it
	stop              func()
	attaches          chan control.AttachRequest
	gone              chan string // containers whose lifeline ended
	mu                sync.Mutex
	devices           map[string]int // guarded by mu
	refuse            error          // guarded by mu
	resumable         bool           // guarded by mu: what a journal would know
	detached          []string       // guarded by mu
	attachedContainer string         // guarded by mu
}

func newCell(t *testing.T) *cell {
	t.Helper()
	dir, err := os.MkdirTemp("", "contain")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755))
	c := &cell{t: t, dir: dir, socket: filepath.Join(dir, "run", "celld.sock"),
		key: filepath.Join(dir, "state", "cell-key.pem"), binary: filepath.Join(dir, "probe"),
		attaches: make(chan control.AttachRequest, 16), gone: make(chan string, 16),
		devices: map[string]int{}, resumable: true}
	for _, d := range []string{"run", "state"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	// All of it belongs to the uid that the command has: only the masks are
	// between them.
	must(t, os.WriteFile(c.key, []byte("secret"), 0o600))
	if os.Geteuid() == 0 {
		for _, p := range []string{"run", "state", "state/cell-key.pem"} {
			must(t, os.Chown(filepath.Join(dir, p), Nobody, Nobody))
		}
	}
	self, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(c.binary, self, 0o755))
	c.start()
	t.Cleanup(func() {
		c.stop()
		for _, fd := range c.devices {
			_ = unix.Close(fd)
		}
	})
	return c
}

func (c *cell) start() {
	c.t.Helper()
	l, err := control.Listen(c.socket, 0o666)
	must(c.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	s := &control.Server{Handler: c, Log: slog.New(slog.DiscardHandler),
		Authorizer: control.NewAuthorizer(uint32(os.Geteuid()), []control.Grant{control.AnyApp(Nobody)})}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	c.stop = sync.OnceFunc(func() {
		cancel()
		must(c.t, <-served)
	})
}

func (c *cell) Attach(_ context.Context, r control.AttachRequest) (control.Attached, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		return control.Attached{}, c.refuse
	}
	if _, known := c.devices[r.Container]; r.Resume && !(known && c.resumable) {
		return control.Attached{}, control.Errorf(control.CodeNotFound, "no endpoint %s", r.Container)
	}
	if old, ok := c.devices[r.Container]; ok {
		_ = unix.Close(old)
	}
	raw, err := r.TUN.SyscallConn()
	if err != nil {
		return control.Attached{}, err
	}
	var fd int
	if err := raw.Control(func(from uintptr) { fd, _ = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return control.Attached{}, err
	}
	c.devices[r.Container] = fd
	c.attachedContainer = r.Container
	go func() {
		<-r.Gone
		c.gone <- r.Container
	}()
	c.attaches <- r
	return control.Attached{Address: netip.MustParsePrefix(address), Address6: netip.MustParsePrefix(address6), MTU: mtu,
		Resolver: netip.MustParseAddr("169.254.0.2"), App: "guid", Resumed: r.Resume,
		Mask: []string{filepath.Dir(c.key), filepath.Join(c.dir, "not-there")}}, nil
}

func (c *cell) Detach(_ context.Context, _ control.Peer, d control.Detach) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.detached = append(c.detached, d.Container)
	return nil
}

func (c *cell) GC(context.Context, control.Peer, control.GC) (control.Collected, error) {
	return control.Collected{}, nil
}

func (c *cell) List(context.Context) ([]control.Endpoint, error) { return nil, nil }

func (c *cell) Status(context.Context) (control.Status, error) { return control.Status{}, nil }

// dropDevices closes what the daemon has of the devices, as its death would.
func (c *cell) dropDevices() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, fd := range c.devices {
		_ = unix.Close(fd)
		c.devices[name] = -1
	}
}

// awaitPacket reads the only device until a packet holds text.
func (c *cell) awaitPacket(text string) {
	c.t.Helper()
	c.mu.Lock()
	fd := c.devices[c.attachedContainer]
	c.mu.Unlock()
	buf := make([]byte, 1<<16+10)
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		n, err := unix.Read(fd, buf)
		if err == unix.EAGAIN {
			_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Until(deadline).Milliseconds())+1)
			if err == nil || err == unix.EINTR {
				continue
			}
		}
		must(c.t, err)
		if bytes.Contains(buf[:n], []byte(text)) {
			return
		}
	}
	c.t.Fatalf("no packet with %q came", text)
}

// supervisor is a `tulle run` process of the test's.
type process struct {
	*exec.Cmd
	t      *testing.T
	in     io.WriteCloser
	out    *bufio.Reader
	errors *bytes.Buffer
}

// run starts a supervisor as uid around the probe.
func (c *cell) run(uid int, mutate func(*supervised, *exec.Cmd), command ...string) *process {
	c.t.Helper()
	o := supervised{Container: container, Socket: c.socket, Dir: c.dir,
		Command: append([]string{c.binary}, command...)}
	p := &process{t: c.t, errors: &bytes.Buffer{}, Cmd: exec.Command(c.binary, "supervise")}
	p.Stderr = p.errors
	if uid != os.Geteuid() {
		p.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	if mutate != nil {
		mutate(&o, p.Cmd)
	}
	options, err := json.Marshal(o)
	must(c.t, err)
	p.Env = append(os.Environ(), optionsVar+"="+string(options), "TULLE_TEST_ENV=kept")
	if p.Stdin == nil {
		p.in, err = p.StdinPipe()
		must(c.t, err)
	}
	if p.Stdout == nil {
		out, err := p.StdoutPipe()
		must(c.t, err)
		p.out = bufio.NewReader(out)
	}
	must(c.t, p.Start())
	c.t.Cleanup(func() {
		if p.ProcessState == nil {
			_ = p.Process.Kill()
			_ = p.Cmd.Wait()
		}
	})
	return p
}

func (p *process) expect(line string) {
	p.t.Helper()
	timer := time.AfterFunc(patience, func() { _ = p.Process.Kill() }) // ends the read
	defer timer.Stop()
	got, err := p.out.ReadString('\n')
	if strings.TrimSpace(got) != line {
		_ = p.Process.Kill()
		_ = p.Cmd.Wait()
		p.t.Fatalf("the command said %q (%v), want %q; errors: %s", got, err, line, p.errors)
	}
}

// status waits for the end.
func (p *process) status() int {
	p.t.Helper()
	timer := time.AfterFunc(patience, func() { _ = p.Process.Kill() })
	defer timer.Stop()
	_ = p.Cmd.Wait() // the state says how
	return p.ProcessState.ExitCode()
}

// eachUser runs the test as root and as an ordinary user, as far as this
// process may.
func eachUser(t *testing.T, f func(t *testing.T, uid int)) {
	t.Helper()
	uids := map[string]int{"ordinary user": os.Geteuid()}
	if os.Geteuid() == 0 {
		uids = map[string]int{"root": 0, "ordinary user": Nobody}
	}
	for name, uid := range uids {
		t.Run(name, func(t *testing.T) {
			needTUN(t, uid)
			f(t, uid)
		})
	}
}

// needTUN skips where that user may not open the TUN device.
func needTUN(t *testing.T, uid int) {
	t.Helper()
	if err := netcfg.CheckTUN(); err != nil {
		nstest.Skip(t, err.Error())
	}
	if info, err := os.Stat(netcfg.TUNPath); err == nil && uid != 0 && info.Mode().Perm()&0o006 != 0o006 {
		nstest.Skip(t, netcfg.ErrTUNClosed.Error())
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func await[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}

func (c *cell) AddPort(context.Context, control.Peer, control.PortAdd) error       { return nil }
func (c *cell) RemovePort(context.Context, control.Peer, control.PortRemove) error { return nil }
func (c *cell) Ports(context.Context) ([]control.ListedPort, error)                { return nil, nil }
func (c *cell) NATWho(context.Context, control.NATWho) ([]control.NATFound, error) { return nil, nil }
func (c *cell) TrafficLog(context.Context, control.Peer, control.TrafficLogSet) (control.TrafficLog, error) {
	return control.TrafficLog{}, nil
}

func (c *cell) AddRules(context.Context, control.Peer, control.RulesAdd) (control.RulesAdded, error) {
	return control.RulesAdded{}, nil
}
