package overlay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/overlay/holder"
	"tulle/overlay/netcfg"
	"tulle/overlay/netcfg/nstest"
	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/client"
	"tulle/policy/hub"
	"tulle/policy/server"
	"tulle/policy/store"
	"tulle/policy/store/sqlite"
)

const (
	patience  = 20 * time.Second
	holderEnv = "TULLE_TEST_HOLDER"
)

// TestMain is the holder process as well.
func TestMain(m *testing.M) {
	if os.Getenv(holderEnv) != "" {
		if err := holder.Run(context.Background(), os.Args[len(os.Args)-1], os.NewFile(3, "ready")); err != nil {
			os.Exit(1)
		}
		return
	}
	nstest.Main(m)
}

var network = netip.MustParsePrefix("10.250.0.0/16")

// plane is a real policy server over TLS on a real database, that can be stopped
// and started again at the same address.
type plane struct {
	*testing.T
	dir   string
	bits  int
	hub   hub.Options
	roots *ca.Roots
	certs func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	addr  string
	store store.Store
	puts  *puts
	stop  func()

	network netip.Prefix
}

// puts counts the stores of lists of endpoints.
type puts struct {
	store.Store
	mu sync.Mutex
	n  int
}

func (p *puts) SetEndpoints(ctx context.Context, cell string, r api.EndpointsRequest) (api.EndpointsResponse, error) {
	p.mu.Lock()
	p.n++
	p.mu.Unlock()
	return p.Store.SetEndpoints(ctx, cell, r)
}

func (p *puts) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

func newPlane(t *testing.T) *plane { return newPlaneOf(t, 24) }

func newPlaneOf(t *testing.T, bits int) *plane {
	t.Helper()
	return newPlaneWith(t, bits, hub.Options{LiveFor: time.Second})
}

func newPlaneWith(t *testing.T, bits int, h hub.Options) *plane {
	t.Helper()
	nstest.NeedTUN(t)
	nstest.NeedNamespaces(t)
	dir := t.TempDir()
	roots, err := ca.Create(filepath.Join(dir, "pki"))
	if err != nil {
		t.Fatal(err)
	}
	certs, err := roots.Server.Certificates([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{T: t, network: network, dir: dir, bits: bits, hub: h, roots: roots, certs: certs, addr: "127.0.0.1:0"}
	p.start()
	t.Cleanup(func() { p.stop() })
	return p
}

func (p *plane) start() {
	p.Helper()
	s, err := sqlite.Open(context.Background(), filepath.Join(p.dir, "tulle.db"), sqlite.Options{
		Lease: store.LeaseConfig{Network: p.network, Bits: p.bits, Lifetime: time.Hour}})
	if err != nil {
		p.Fatal(err)
	}
	p.puts = &puts{Store: s}
	in, err := server.NewInternal(context.Background(), p.puts, server.InternalOptions{Hub: p.hub, Instances: p.roots.Instances})
	if err != nil {
		p.Fatal(err)
	}
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		p.Fatal(err)
	}
	p.addr = l.Addr().String()
	srv := server.InternalServer(in, ca.ServerTLS(p.roots.Cells, p.certs), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.ServeTLS(l, "", "") })
	wg.Go(func() { _ = in.Run(ctx) })
	p.store = s
	p.stop = sync.OnceFunc(func() {
		cancel()
		_ = srv.Close()
		wg.Wait()
		if err := s.Close(); err != nil {
			p.Errorf("close store: %v", err)
		}
	})
}

func tcp(src, dst policy.AppID, port uint16) policy.Policy {
	return policy.Policy{Source: src, Destination: dst, Protocol: policy.TCP, Ports: policy.PortRange{Start: port, End: port}}
}

func (p *plane) allow(ps ...policy.Policy) {
	p.Helper()
	if _, err := p.store.AddPolicies(p.Context(), ps); err != nil {
		p.Fatal(err)
	}
}

func (p *plane) deny(ps ...policy.Policy) {
	p.Helper()
	if _, err := p.store.RemovePolicies(p.Context(), ps); err != nil {
		p.Fatal(err)
	}
}

// testLog shows warnings of a failed test.
func testLog(t *testing.T, name string) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t, name}, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

type testWriter struct {
	t    *testing.T
	name string
}

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s %s", w.name, b)
	return len(b), nil
}

// cell is a Daemon that can be stopped and started over its state.
type cell struct {
	*plane
	name   string
	cfg    Config
	daemon *Daemon
	cancel context.CancelFunc
	ended  chan error
}

// credential makes a cell's, and returns where it is.
func (p *plane) credential(name string) (dir string) {
	p.Helper()
	dir = filepath.Join(p.dir, name)
	cred, err := p.roots.Cells.IssueCell(name, []ca.Space{ca.AnySpace}, 0)
	if err != nil {
		p.Fatal(err)
	}
	if err := ca.WriteCell(dir, cred, p.roots.Server); err != nil {
		p.Fatal(err)
	}
	return dir
}

func (p *plane) cell(name, underlay string, change func(*Config)) *cell {
	p.Helper()
	dir := p.credential(name)
	c := &cell{plane: p, name: name, cfg: Config{
		Server: "https://" + p.addr, Credentials: dir, StateDir: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "celld.sock"),
		Underlay: netip.MustParseAddr(underlay), Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")},
		Log:    testLog(p.T, name),
		Client: client.Options{BackoffMin: 5 * time.Millisecond, BackoffMax: 50 * time.Millisecond, AckEvery: 200 * time.Millisecond},
	}}
	if change != nil {
		change(&c.cfg)
	}
	p.Cleanup(func() {
		c.shut()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := holder.Stop(ctx, c.cfg.StateDir); err != nil {
			p.Error(err)
		}
	})
	c.run()
	return c
}

// run starts a daemon and returns when it is ready.
func (c *cell) run() {
	c.Helper()
	if err := c.tryRun(); err != nil {
		c.Fatalf("%s ended at once: %v", c.name, err)
	}
}

func (c *cell) tryRun() error {
	c.Helper()
	c.Setenv(holderEnv, "1")
	cfg := c.cfg
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		c.Fatal(err)
	}
	keeper, err := holder.OpenProcess(holder.Options{Dir: cfg.StateDir, Command: []string{os.Args[0], "holder"}, Log: cfg.Log})
	if err != nil {
		c.Fatal(err)
	}
	cfg.Holder = keeper
	ready := make(chan struct{})
	var once sync.Once
	cfg.Ready = func(Ready) { once.Do(func() { close(ready) }) }
	if c.daemon, err = New(cfg); err != nil {
		c.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel, c.ended = cancel, make(chan error, 1)
	go func() { c.ended <- c.daemon.Run(ctx) }()
	select {
	case <-ready:
		return nil
	case err := <-c.ended:
		cancel()
		c.cancel = nil
		return err
	case <-time.After(patience):
		cancel()
		c.Fatalf("%s is not ready", c.name)
		return nil
	}
}

// shut stops the daemon in order.
func (c *cell) shut() {
	c.Helper()
	if c.cancel == nil {
		return
	}
	c.cancel()
	c.cancel = nil
	if err := <-c.ended; err != nil {
		c.Errorf("%s: %v", c.name, err)
	}
}

func (c *cell) client() *control.Client {
	c.Helper()
	cl, err := control.Dial(c.cfg.Socket)
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { _ = cl.Close() })
	return cl
}

func (c *cell) status() control.Status {
	c.Helper()
	cl := c.client()
	defer cl.Close()
	s, err := cl.Status(c.Context())
	if err != nil {
		c.Fatal(err)
	}
	return s
}

// untilStatus waits for a state of the daemon.
func (c *cell) untilStatus(what string, ok func(control.Status) bool) {
	c.Helper()
	eventually(c.T, c.name+": "+what, func() bool { return ok(c.status()) })
}

// eventually asks again until the answer is yes: for what happens in other
// processes or in the kernel, where no event can be waited for.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

// app is a container with a device of its own.
type app struct {
	*cell
	id   string
	ns   *nstest.Namespace
	tun  *os.File
	conn *control.Client // its lifeline
	at   control.Attached
}

func (c *cell) request(id string, of policy.AppID, l control.Lifeline) control.Attach {
	return control.Attach{Container: id, App: api.AppRef{GUID: of}, Device: "eth0", Lifeline: l}
}

// newTUN makes a device in a namespace of its own, not configured.
func newTUN(t *testing.T) (*nstest.Namespace, *os.File) {
	t.Helper()
	ns := nstest.New(t)
	var f *os.File
	if err := ns.Do(func() (err error) { f, err = netcfg.CreateTUN("eth0", 1450); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return ns, f
}

func (c *cell) attach(id string, of policy.AppID, l control.Lifeline) *app {
	c.Helper()
	return c.attachWith(id, of, l, func(*control.Attach) {})
}

// attachWith is attach with what change asks for as well.
func (c *cell) attachWith(id string, of policy.AppID, l control.Lifeline, change func(*control.Attach)) *app {
	c.Helper()
	r := c.request(id, of, l)
	change(&r)
	a := &app{cell: c, id: id, conn: c.client()}
	a.ns, a.tun = newTUN(c.T)
	var err error
	if a.at, err = a.conn.Attach(c.Context(), r, a.tun, nil); err != nil {
		c.Fatalf("attach %s: %v", id, err)
	}
	a.configure()
	return a
}

func (a *app) configure() {
	a.Helper()
	err := a.ns.Do(func() error {
		return netcfg.Configure(netcfg.Device{Name: "eth0", Address: a.at.Address, Address6: a.at.Address6, MTU: a.at.MTU})
	})
	if err != nil {
		a.Fatal(err)
	}
}

func (a *app) addr() netip.Addr { return a.at.Address.Addr() }

// listen accepts on a port and echoes.
func (a *app) listen(port uint16) {
	a.Helper()
	var l net.Listener
	err := a.ns.Do(func() (err error) {
		l, err = net.Listen("tcp4", netip.AddrPortFrom(a.addr(), port).String())
		return err
	})
	if err != nil {
		a.Fatal(err)
	}
	a.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

// dial connects from a to b.
func (a *app) dial(b *app, port uint16, within time.Duration) (net.Conn, error) {
	var fd int
	err := a.ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(port), Addr: b.addr().As4()})
		if errors.Is(err, unix.EINPROGRESS) {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			n, perr := unix.Poll(p, int(within.Milliseconds()))
			switch {
			case perr != nil:
				err = perr
			case n == 0:
				err = os.ErrDeadlineExceeded
			default:
				code, gerr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
				if err = gerr; code != 0 {
					err = syscall.Errno(code)
				}
			}
		}
		if err != nil {
			_ = unix.Close(fd)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "tcp")
	defer f.Close()
	return net.FileConn(f)
}

// reaches waits until a connection succeeds and carries bytes both ways.
func (a *app) reaches(b *app, port uint16) net.Conn {
	a.Helper()
	var c net.Conn
	eventually(a.T, fmt.Sprintf("%s reaches %s", a.id, b.id), func() (ok bool) {
		var err error
		c, err = a.dial(b, port, time.Second)
		return err == nil
	})
	a.Cleanup(func() { _ = c.Close() })
	a.echo(c)
	return c
}

func (a *app) echo(c net.Conn) {
	a.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("hello")); err != nil {
		a.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		a.Fatalf("echo: %q, %v", b, err)
	}
}

func (a *app) refused(b *app, port uint16) {
	a.Helper()
	c, err := a.dial(b, port, patience)
	if err == nil {
		_ = c.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		a.Errorf("%s to %s: %v, want a refusal", a.id, b.id, err)
	}
}

func codeOf(err error) control.Code {
	var e *control.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}
