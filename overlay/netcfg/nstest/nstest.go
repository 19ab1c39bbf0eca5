// Package nstest gives tests network namespaces and TUN devices of their own.
//
// It is the only place where a test is skipped: through Skip, with one loud
// line, and never with CI=true, where a missing right is a failure. A package
// whose tests need namespaces but not the host's root calls Main from TestMain:
// an ordinary user's test binary then runs inside a user namespace where New
// and Veth work.
//
// Nothing outlives a test: a namespace is held by a descriptor of this process,
// not by a mount, and goes with it.
package nstest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tulle/overlay/netcfg"
)

// Skip skips the test with one loud line; with CI=true it fails it.
func Skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CANNOT RUN (CI=true makes that a failure): %s", why)
	}
	fmt.Fprintf(os.Stderr, "SKIPPED %s: %s\n", t.Name(), why)
	t.Skip(why)
}

// NeedRoot skips unless the test runs as root of the host, not of a user
// namespace.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 || inUserNamespace() {
		Skip(t, "needs root on the host")
	}
}

// NeedTUN skips unless TUN devices can be made in namespaces of the test's own.
func NeedTUN(t testing.TB) {
	t.Helper()
	NeedNamespaces(t)
	if err := netcfg.CheckTUN(); err != nil {
		Skip(t, err.Error())
	}
}

// NeedNamespaces skips unless New works: as root, or in a user namespace of
// one's own (Main).
func NeedNamespaces(t testing.TB) {
	t.Helper()
	if err := netcfg.OnThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }); err != nil {
		Skip(t, fmt.Sprintf("network namespaces: %v", err))
	}
}

// Main runs the tests and exits. For an ordinary user who may create user
// namespaces it runs them in a new user and network namespace as its root.
func Main(m *testing.M) {
	const inside = "TULLE_NSTEST_INSIDE"
	if os.Getenv(inside) != "" {
		// A new network namespace begins with lo down; tests listen on 127.0.0.1.
		if err := netcfg.LoopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if os.Geteuid() == 0 {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	runtime.LockOSThread() // Pdeathsig is about the thread that starts the child
	if err := cmd.Start(); err != nil {
		os.Exit(m.Run()) // no user namespaces here: what needs them says so
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	go func() {
		for s := range signals {
			cmd.Process.Signal(s) // a child that is gone already needs no signal
		}
	}()
	if err := cmd.Wait(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() > 0 {
			os.Exit(exit.ExitCode())
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Namespace is a network namespace that ends with its test.
type Namespace struct{ file *os.File }

// New makes a network namespace with lo up. It needs root, or Main.
func New(t testing.TB) *Namespace {
	t.Helper()
	NeedNamespaces(t)
	n := &Namespace{}
	err := netcfg.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := netcfg.LoopbackUp(); err != nil {
			return err
		}
		var err error
		n.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() { n.file.Close() })
	return n
}

// Do runs f on a thread inside the namespace and throws the thread away.
// Goroutines that f starts are not inside; sockets that f opens stay there.
func (n *Namespace) Do(f func() error) error { return netcfg.Do(n.file, f) }

// Path names the namespace for other processes of the same user, as CNI_NETNS
// does. It is good as long as this process and the test last.
func (n *Namespace) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// File is the namespace's descriptor; it stays the Namespace's.
func (n *Namespace) File() *os.File { return n.file }

// TUN makes a configured TUN device in the namespace: up, with the default
// route. The descriptor is closed at cleanup if the test has not done so.
func (n *Namespace) TUN(t testing.TB, name string, addr netip.Prefix, mtu int) *os.File {
	t.Helper()
	return n.Device(t, netcfg.Device{Name: name, Address: addr, MTU: mtu})
}

// Device is TUN for a device of both families.
func (n *Namespace) Device(t testing.TB, d netcfg.Device) *os.File {
	t.Helper()
	NeedTUN(t)
	var file *os.File
	err := n.Do(func() (err error) {
		if file, err = netcfg.CreateTUN(d.Name, d.MTU); err != nil {
			return err
		}
		if err := netcfg.Configure(d); err != nil || !d.Address6.IsValid() {
			return err
		}
		return Ready(d.Address6.Addr())
	})
	if err != nil {
		t.Fatalf("TUN %s: %v", d.Name, err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// Ready waits until the calling thread's namespace takes packets for an IPv6 address
// that it was given: the kernel's route to it comes from a work queue, a moment after
// the address, and what comes before is lost.
func Ready(a netip.Addr) error {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		routes, err := netlink.RouteGet(a.AsSlice())
		if err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
	}
	return fmt.Errorf("%v never became an address of this namespace", a)
}

var veths atomic.Uint32

// Veth joins two namespaces by a veth pair with the addresses given (zero: none)
// and returns the names of the two ends, both up.
func Veth(t testing.TB, a, b *Namespace, ipA, ipB netip.Prefix) (nameA, nameB string) {
	t.Helper()
	id := veths.Add(1)
	nameA, nameB = fmt.Sprintf("va%d", id), fmt.Sprintf("vb%d", id)
	err := a.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: nameA},
			PeerName:      nameB,
			PeerNamespace: netlink.NsFd(int(b.file.Fd())),
		})
	})
	if err != nil {
		t.Fatalf("veth pair: %v", err)
	}
	for _, end := range []struct {
		n    *Namespace
		name string
		ip   netip.Prefix
	}{{a, nameA, ipA}, {b, nameB, ipB}} {
		if err := end.n.Do(func() error { return up(end.name, end.ip) }); err != nil {
			t.Fatalf("veth end %s: %v", end.name, err)
		}
	}
	return nameA, nameB
}

func up(name string, ip netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if ip.IsValid() {
		addr, err := netlink.ParseAddr(ip.String())
		if err != nil {
			return err
		}
		if ip.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // good at once, almost
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil || !ip.Addr().Is6() {
		return err
	}
	return Ready(ip.Addr())
}

// inUserNamespace reports whether uid 0 here is somebody else outside.
func inUserNamespace() bool {
	m, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false
	}
	var in, out, n uint64
	_, err = fmt.Sscan(string(m), &in, &out, &n)
	return err != nil || in != 0 || out != 0 || n < 1<<32-1
}
