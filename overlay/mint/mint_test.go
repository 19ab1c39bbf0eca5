package mint

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/netcfg/nstest"
)

const (
	publicPort = 61443
	wait       = 20 * time.Second
	childEnv   = "TULLE_MINT_CHILD"
)

func TestMain(m *testing.M) {
	if job := os.Getenv(childEnv); job != "" {
		if err := child(job); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	nstest.Main(m)
}

// container is a namespace with sockets of it and an app that says its name.
func container(t testing.TB, name string) (*nstest.Namespace, *Sockets, netip.AddrPort) {
	t.Helper()
	ns := nstest.New(t)
	var s *Sockets
	var app net.Listener
	err := ns.Do(func() (err error) {
		if s, err = Create(publicPort); err != nil {
			return err
		}
		app, err = listenHere("127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(); app.Close() })
	go func() {
		for {
			c, err := app.Accept()
			if err != nil {
				return
			}
			c.Write([]byte(name))
			c.Close()
		}
	}()
	return ns, s, app.Addr().(*net.TCPAddr).AddrPort()
}

// listenHere listens from the calling thread, which is inside a namespace.
func listenHere(addr string) (net.Listener, error) { return net.Listen("tcp4", addr) }

func says(c *net.TCPConn) (string, error) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(wait))
	b, err := io.ReadAll(c)
	return string(b), err
}

// From the test's own namespace, each container's app is reached at the same
// 127.0.0.1 through its own sockets.
func TestEachContainersOwnLoopback(t *testing.T) {
	for _, name := range []string{"one", "two"} {
		_, s, app := container(t, name)
		if err := s.Check(publicPort); err != nil {
			t.Fatal(err)
		}
		m, err := New(s)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				c, err := m.Dial(t.Context(), app)
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := says(c); err != nil || got != name {
					t.Errorf("the app of %s said %q, %v", name, got, err)
				}
			})
		}
		wg.Wait()
	}
}

// job is what a child process without any right does with the sockets that it
// was started with.
type job struct {
	App   netip.AddrPort
	Count int
	Hang  bool // never end: the parent kills it
}

// child mints and dials; it says "ready" when done.
func child(text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	if !bytes.Contains(status, []byte("CapEff:\t0000000000000000")) || os.Getuid() != 65534 {
		return fmt.Errorf("this process has rights: uid %d", os.Getuid())
	}
	s := FromFiles([]*os.File{os.NewFile(3, "public"), os.NewFile(4, "private"), os.NewFile(5, "spare")})
	if err := s.Check(publicPort); err != nil {
		return err
	}
	m, err := New(s)
	if err != nil {
		return err
	}
	l, err := m.Listen()
	if err != nil {
		return err
	}
	for range j.Count {
		c, err := m.Dial(context.Background(), j.App)
		if err != nil {
			return err
		}
		if got, err := says(c); err != nil || got != "app" {
			return fmt.Errorf("the app said %q, %v", got, err)
		}
	}
	fmt.Println("ready")
	if j.Hang {
		// In the middle of a making, as a crash may find it.
		if _, err := onFD(s.Spare, func(fd int) (any, error) { return nil, unix.Connect(fd, m.private) }); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return err
		}
		select {}
	}
	c, err := l.Accept()
	if err != nil {
		return err
	}
	_, err = c.Write([]byte("hello"))
	return errors.Join(err, c.Close())
}

func startChild(t *testing.T, s *Sockets, j job) (*exec.Cmd, *strings.Builder) {
	t.Helper()
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{childEnv + "=" + string(text)}
	cmd.ExtraFiles = s.Files()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait(); runtime.UnlockOSThread() })
	said := make([]byte, 6)
	if _, err := io.ReadFull(out, said); err != nil || string(said) != "ready\n" {
		cmd.Wait()
		t.Fatalf("the child said %q, %v: %s", said, err, stderr.String())
	}
	return cmd, &stderr
}

// A process of uid 65534 with no capability makes hundreds of sockets in the
// namespace; one that is killed with SIGKILL in the middle of a making leaves the
// next all it needs, and clients that connect meanwhile are served by that one.
func TestMintAsNobodyAcrossRestarts(t *testing.T) {
	nstest.NeedRoot(t)
	ns, s, app := container(t, "app")
	first, _ := startChild(t, s, job{App: app, Count: 300, Hang: true})
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	first.Wait()

	// The port still listens, for nobody yet.
	var client net.Conn
	if err := ns.Do(func() (err error) {
		client, err = net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", publicPort), wait)
		return err
	}); err != nil {
		t.Fatalf("while no process serves: %v", err)
	}
	defer client.Close()
	second, stderr := startChild(t, s, job{App: app, Count: 300})
	client.SetDeadline(time.Now().Add(wait))
	if got, err := io.ReadAll(client); err != nil || string(got) != "hello" {
		t.Errorf("the client that came between two processes got %q, %v", got, err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("the second process: %v: %s", err, stderr.String())
	}
}

// The container itself connects to the private listener, at once and all the
// time; it gets nothing, and minting goes on.
func TestForeignConnectionsAreNotTwins(t *testing.T) {
	ns, s, app := container(t, "app")
	m, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	private := fmt.Sprintf("127.0.0.1:%d", m.private.Port)
	var intruders []net.Conn
	for range 8 {
		if err := ns.Do(func() error {
			c, err := net.DialTimeout("tcp4", private, wait)
			intruders = append(intruders, c)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	c, err := m.Dial(t.Context(), app)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := says(c); err != nil || got != "app" {
		t.Errorf("the app said %q, %v", got, err)
	}
	for _, c := range intruders {
		c.SetDeadline(time.Now().Add(wait))
		if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("an intruder read %d bytes, %v; want its end", n, err)
		}
		c.Close()
	}
}

func TestDialFailures(t *testing.T) {
	_, s, app := container(t, "app")
	m, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	nobody := netip.AddrPortFrom(app.Addr(), 1)
	for range 3 {
		if _, err := m.Dial(t.Context(), nobody); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("dial where nobody listens: %v, want a refusal", err)
		}
	}
	// An app whose backlog is full does not answer: the context ends the wait.
	full, err := socket("full")
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	fd, err := m.socket()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: loopback.As4()}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	at, err := localAddr(fd)
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(loopback, uint16(at.Port))
	for range 8 {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		c, err := m.Dial(ctx, to)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	t.Error("a full backlog took eight connections")
}

// A port that nobody serves any more refuses, also what was waiting, and listens
// again while a connection of before is still there.
func TestStopAndListenAgain(t *testing.T) {
	ns, s, _ := container(t, "app")
	m, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	public := fmt.Sprintf("127.0.0.1:%d", publicPort)
	dial := func() (c net.Conn, err error) {
		err = ns.Do(func() error { c, err = net.DialTimeout("tcp4", public, wait); return err })
		return c, err
	}
	refused := func(when string) {
		t.Helper()
		if c, err := dial(); !errors.Is(err, unix.ECONNREFUSED) {
			if err == nil {
				c.Close()
			}
			t.Errorf("%s: %v, want a refusal", when, err)
		}
	}
	refused("bound only")
	if err := s.StopListening(); err != nil {
		t.Errorf("stop what does not listen: %v", err)
	}
	for range 2 {
		l, err := m.Listen()
		if err != nil {
			t.Fatal(err)
		}
		client, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		served, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer served.Close()
		client.SetDeadline(time.Now().Add(wait))
		served.SetDeadline(time.Now().Add(wait))
		for _, ends := range [][2]net.Conn{{client, served}, {served, client}} {
			ends[0].Write([]byte("x"))
			if n, err := ends[1].Read(make([]byte, 2)); n != 1 || err != nil {
				t.Errorf("read %d bytes, %v", n, err)
			}
		}
		l.Close()
		if err := s.StopListening(); err != nil {
			t.Fatal(err)
		}
		refused("stopped")
	}
}

// The public port is that of both families; who has it for one of them has it.
func TestBothFamilies(t *testing.T) {
	ns, s, _ := container(t, "app")
	m, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	l, err := m.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for network, host := range map[string]string{"tcp4": "127.0.0.1", "tcp6": "::1"} {
		var c net.Conn
		if err := ns.Do(func() (err error) {
			c, err = net.DialTimeout(network, net.JoinHostPort(host, fmt.Sprint(publicPort)), wait)
			return err
		}); err != nil {
			t.Errorf("%s: %v", network, err)
			continue
		}
		defer c.Close()
		served, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		defer served.Close()
		if got := served.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(); got.String() != host {
			t.Errorf("over %s the peer is %s", network, got)
		}
		other := nstest.New(t)
		if err := other.Do(func() error {
			taken, err := net.Listen(network, net.JoinHostPort(host, fmt.Sprint(publicPort)))
			if err != nil {
				return err
			}
			defer taken.Close()
			if s, err := Create(publicPort); !errors.Is(err, ErrPortTaken) {
				s.Close()
				t.Errorf("beside a listener on %s: %v", host, err)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// Nothing is shared by SO_REUSEPORT. An app that listens on the port before a proxy
// does keeps it: the proxy is told, and steps back.
func TestAppListensFirst(t *testing.T) {
	ns, s, _ := container(t, "app")
	for _, f := range s.Files() {
		if got, err := onFD(f, func(fd int) (int, error) { return unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT) }); err != nil || got != 0 {
			t.Errorf("the %s socket has SO_REUSEPORT %d, %v", f.Name(), got, err)
		}
	}
	m, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	var app net.Listener
	if err := ns.Do(func() (err error) {
		app, err = net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", publicPort)) // with SO_REUSEADDR, as ours
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if l, err := m.Listen(); !errors.Is(err, ErrPortTaken) {
		if err == nil {
			l.Close()
		}
		t.Errorf("beside an app that listens: %v", err)
	}
	app.Close()
	l, err := m.Listen()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestPortTakenAndCheck(t *testing.T) {
	ns, s, _ := container(t, "app")
	m, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	l, err := m.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := ns.Do(func() error {
		_, err := Create(publicPort)
		return err
	}); !errors.Is(err, ErrPortTaken) {
		t.Errorf("a port that is taken: %v", err)
	}
	if err := s.Check(publicPort + 1); err == nil {
		t.Error("another port passed")
	}
	own, err := Create(publicPort)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if err := own.Check(publicPort); err == nil || !strings.Contains(err.Error(), "own network namespace") {
		t.Errorf("sockets of this process's namespace: %v", err)
	}
	mixed := &Sockets{Public: s.Public, Private: s.Private, Spare: own.Spare}
	if err := mixed.Check(publicPort); err == nil || !strings.Contains(err.Error(), "different") {
		t.Errorf("sockets of two namespaces: %v", err)
	}
	pipe, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer w.Close()
	if err := (&Sockets{Public: s.Public, Private: s.Private, Spare: pipe}).Check(publicPort); err == nil {
		t.Error("a pipe passed for a socket")
	}
	twice, err := s.Duplicate()
	if err != nil {
		t.Fatal(err)
	}
	defer twice.Close()
	if !s.Same(twice) || s.Same(own) || s.Same(nil) {
		t.Error("Same does not tell sockets apart")
	}
}

func BenchmarkDial(b *testing.B) {
	_, s, app := container(b, "app")
	m, err := New(s)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		c, err := m.Dial(b.Context(), app)
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}
