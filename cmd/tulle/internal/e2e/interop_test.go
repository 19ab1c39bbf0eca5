package e2e

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"tulle/cmd/internal/demo"
	"tulle/cmd/internal/echo"
	"tulle/overlay/netcfg"
	"tulle/overlay/netcfg/nstest"
	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
	"tulle/policy"
)

const insideNamespace = "TULLE_E2E_INSIDE"

var (
	underlayTulle  = netip.MustParsePrefix("192.0.2.1/24")
	underlayKernel = netip.MustParsePrefix("192.0.2.2/24")
)

// kernelApp is the app on the kernel's cell. Nobody registers it: its policies
// name it, and that gives it a tag.
const kernelApp policy.AppID = "77777777-aaaa-4bbb-8ccc-000000000077"

// TestKernelInterop holds a Tulle cell against a cell of the Linux kernel's,
// port 4789 on both sides. The test runs itself in a network namespace of its
// own, which is the Tulle host.
func TestKernelInterop(t *testing.T) { testInterop(t, "mode: vxlan", demo.Port4789) }

// testInterop runs the whole test, with a Tulle cell of these settings.
func testInterop(t *testing.T, settings ...string) {
	nstest.NeedRoot(t)
	nstest.NeedTUN(t)
	if os.Getenv(insideNamespace) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=3m")
		cmd.Env = append(os.Environ(), insideNamespace+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := netcfg.LoopbackUp(); err != nil {
		t.Fatal(err)
	}
	in := newInterop(t, settings)
	t.Run("tulle reaches kernel", in.tulleReachesKernel)
	t.Run("kernel reaches tulle", in.kernelReachesTulle)
	t.Run("errors of allowed flows cross", in.errorsCross)
	t.Run("echo is refused and answered", in.echoIsRefused)
	t.Run("no tag, no new flow", in.untaggedIsRefused)
	t.Run("another app's tag, no new flow", in.wrongTagIsRefused)
	t.Run("bulk arrives whole", in.bulk)
	if in.wireguard {
		t.Run("plain frames are refused", in.plainIsRefused)
	} else {
		t.Run("no container forges a frame", in.forgeryIsRefused)
	}
}

// interop is the two cells, one container on each, and a policy each way.
type interop struct {
	ctx     context.Context
	kernel  *kernelCell
	cell    *demo.Cell
	tulle   *demo.Instance
	tags    map[policy.AppID]policy.Tag
	tulleID policy.AppID
	w       *demo.World
	// wireguard: between the two cells is a tunnel.
	wireguard bool
}

func newInterop(t *testing.T, settings []string) *interop {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	w := newWorld(t)
	network := w.Network.Addr().As4()
	kernelLease := netip.PrefixFrom(netip.AddrFrom4([4]byte{network[0], network[1], 77, 0}), 24)
	if _, err := w.StartServer(ctx); err != nil {
		t.Fatal(err)
	}
	in := &interop{ctx: ctx, w: w, wireguard: slices.Contains(settings, modeWireGuard)}
	var key tunnelKey
	var flags []string
	if in.wireguard {
		key = newTunnelKey(t)
		flags = []string{"--mode", "wireguard", "--key", key.public, "--tunnel", tunnelKernel.String()}
	}
	if err := w.AddPeer(ctx, "silk-77", underlayKernel.Addr(), kernelLease, flags...); err != nil {
		t.Fatal(err)
	}
	host := nstest.New(t)
	device := vethToHere(t, host)
	var err error
	if in.cell, err = w.StartCell(ctx, "cell-1", underlayTulle.Addr(), settings...); err != nil {
		t.Fatal(err)
	}
	if in.tulle, err = w.StartApp(ctx, in.cell, "web", 0); err != nil {
		t.Fatal(err)
	}
	status, err := in.cell.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if in.wireguard {
		startWireGuard(t, host, key, status)
		in.kernel = newKernelCell(t, host, wg0, tunnelKernel, kernelLease, status.Tunnel, status.Lease, 1390)
	} else {
		in.kernel = newKernelCell(t, host, device, underlayKernel.Addr(), kernelLease, underlayTulle.Addr(), status.Lease, 1450)
	}

	a := api(t, w)
	if in.tulleID, err = a.AppID(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	for _, p := range []policy.Policy{
		{Source: in.tulleID, Destination: kernelApp, Protocol: policy.TCP, Ports: policy.PortRange{Start: 7000, End: 7010}},
		{Source: in.tulleID, Destination: kernelApp, Protocol: policy.UDP, Ports: policy.PortRange{Start: 7000, End: 7010}},
		{Source: kernelApp, Destination: in.tulleID, Protocol: policy.TCP, Ports: policy.PortRange{Start: demo.Port, End: demo.Port}},
		{Source: kernelApp, Destination: in.tulleID, Protocol: policy.UDP, Ports: policy.PortRange{Start: demo.FirstUDP, End: demo.LastUDP + 1}},
	} {
		if err := a.Create(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	if in.tags, err = a.Tags(ctx); err != nil {
		t.Fatal(err)
	}
	in.kernel.policies(t, in.tags[kernelApp], in.tags[in.tulleID])
	// The policies are on the cell when the first packet passes.
	serve(t, in.kernel.container, 7000)
	in.do(t, echo.Request{Op: echo.OpDial, Address: in.at(7000), Until: echo.OK, Patience: 10 * time.Second})
	return in
}

// at is a port of the kernel's container.
func (in *interop) at(port uint16) string {
	return netip.AddrPortFrom(in.kernel.address, port).String()
}

// do runs a request inside the Tulle container and wants it to come out well.
func (in *interop) do(t *testing.T, r echo.Request) echo.Event {
	t.Helper()
	return in.want(t, echo.OK, r)
}

func (in *interop) want(t *testing.T, outcome echo.Outcome, r echo.Request) echo.Event {
	t.Helper()
	e, err := in.tulle.Do(in.ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	if e.Outcome != outcome {
		t.Fatalf("%s %s: %s (%s), want %s", r.Op, r.Address, e.Outcome, e.Error, outcome)
	}
	return e
}

// vethToHere joins host and the test's own namespace, with the underlay
// addresses, and returns the device's name in host.
func vethToHere(t *testing.T, host *nstest.Namespace) string {
	t.Helper()
	const there = "under0"
	joinHere(t, host, there, "under1", underlayKernel, underlayTulle)
	return there
}

// joinHere joins host and the test's own namespace by a veth pair.
func joinHere(t *testing.T, host *nstest.Namespace, there, mine string, theirs, ours netip.Prefix) {
	t.Helper()
	here, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	up := func(name string, ip netip.Prefix) error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip.Addr().AsSlice(), Mask: net.CIDRMask(ip.Bits(), ip.Addr().BitLen())}}
		if ip.Addr().Is4() {
			return errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link))
		}
		addr.Flags = unix.IFA_F_NODAD
		return errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link), nstest.Ready(ip.Addr()))
	}
	err = host.Do(func() error {
		err := netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: there}, PeerName: mine, PeerNamespace: netlink.NsFd(int(here.Fd())),
		})
		return errors.Join(err, up(there, theirs))
	})
	if err := errors.Join(err, up(mine, ours)); err != nil {
		t.Fatalf("underlay: %v", err)
	}
}

// serve echoes TCP and UDP on a port of a namespace until the test ends.
func serve(t *testing.T, in *nstest.Namespace, port uint16) {
	t.Helper()
	address := ":" + strconv.Itoa(int(port))
	var l net.Listener
	var u net.PacketConn
	err := in.Do(func() (err error) {
		if l, err = net.Listen("tcp", address); err != nil {
			return err
		}
		u, err = net.ListenPacket("udp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	go func() {
		b := make([]byte, 65535)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			u.WriteTo(b[:n], from)
		}
	}()
}

// dial opens a socket inside the kernel's container.
func (in *interop) dial(network, address string) (net.Conn, error) {
	var c net.Conn
	err := in.kernel.container.Do(func() (err error) {
		c, err = net.DialTimeout(network, address, 5*time.Second)
		return err
	})
	if err == nil {
		c.SetDeadline(time.Now().Add(5 * time.Second))
	}
	return c, err
}

func (in *interop) tulleReachesKernel(t *testing.T) {
	tagged, replies, rejected := in.kernel.matched(t)
	in.do(t, echo.Request{Op: echo.OpDial, Address: in.at(7000), Timeout: 5 * time.Second})
	in.do(t, echo.Request{Op: echo.OpUDP, Address: in.at(7000), Bytes: 1000, Timeout: 5 * time.Second})
	// Two datagrams and segments that the kernel may have joined: at least a SYN
	// and a datagram matched Tulle's tag, and nothing came without it.
	tagged2, replies2, rejected2 := in.kernel.matched(t)
	if tagged2 < tagged+2 || replies2 != replies || rejected2 != rejected {
		t.Errorf("kernel's filter: tag matched %d to %d, replies %d to %d, rejected %d to %d: all should match the tag",
			tagged, tagged2, replies, replies2, rejected, rejected2)
	}
	in.want(t, echo.Refused, echo.Request{Op: echo.OpDial, Address: in.at(6999), Timeout: 5 * time.Second})
}

func (in *interop) kernelReachesTulle(t *testing.T) {
	c, err := in.dial("tcp4", in.tulle.At(demo.Port))
	if err != nil {
		t.Fatalf("with the tag of an allowed app: %v", err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(c)
	if err != nil || !strings.Contains(string(body), "web/0") {
		t.Fatalf("answer %q, error %v", body, err)
	}
	u, err := in.dial("udp4", in.tulle.At(demo.FirstUDP))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if got := pingPong(t, u); got != nil {
		t.Fatalf("udp echo: %v", got)
	}
	if c, err := in.dial("tcp4", in.tulle.At(demo.SecondPort)); !errors.Is(err, syscall.ECONNREFUSED) {
		if err == nil {
			c.Close()
		}
		t.Fatalf("a port without policy: %v, want connection refused", err)
	}
}

func pingPong(t *testing.T, c net.Conn) error {
	t.Helper()
	sent := []byte("to and fro")
	if _, err := c.Write(sent); err != nil {
		return err
	}
	got := make([]byte, 100)
	n, err := c.Read(got)
	if err == nil && string(got[:n]) != string(sent) {
		t.Errorf("echo %q, want %q", got[:n], sent)
	}
	return err
}

// errorsCross: a datagram of an allowed flow to a port where nobody listens is
// answered by the container itself, and the answer finds its way back.
func (in *interop) errorsCross(t *testing.T) {
	in.want(t, echo.Refused, echo.Request{Op: echo.OpUDP, Address: in.at(7005), Bytes: 10, Timeout: 5 * time.Second})
	u, err := in.dial("udp4", in.tulle.At(demo.LastUDP+1))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if err := pingPong(t, u); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("datagram to a closed port: %v, want connection refused", err)
	}
}

func (in *interop) echoIsRefused(t *testing.T) {
	var c *icmp.PacketConn
	err := in.kernel.container.Do(func() (err error) {
		c, err = icmp.ListenPacket("ip4:icmp", "0.0.0.0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ask := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: 77, Seq: 1, Data: []byte("hello?")}}
	b, err := ask.Marshal(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteTo(b, &net.IPAddr{IP: in.tulle.Addr.AsSlice()}); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	got := make([]byte, 1500)
	n, from, err := c.ReadFrom(got)
	if err != nil {
		t.Fatalf("no answer to an echo request: %v", err)
	}
	m, err := icmp.ParseMessage(1, got[:n])
	if err != nil {
		t.Fatal(err)
	}
	cell := in.tulle.Addr.As4()
	cell[3] = 0
	if m.Type != ipv4.ICMPTypeDestinationUnreachable || m.Code != 3 || from.String() != netip.AddrFrom4(cell).String() {
		t.Fatalf("answer %v code %d from %v, want port unreachable from %v", m.Type, m.Code, from, netip.AddrFrom4(cell))
	}
	quoted, ok := m.Body.(*icmp.DstUnreach)
	if !ok || len(quoted.Data) < 28 || binary.BigEndian.Uint16(quoted.Data[24:]) != 77 {
		t.Fatalf("answer quotes %v, want our request", m.Body)
	}
}

func (in *interop) untaggedIsRefused(t *testing.T) {
	in.kernel.policies(t, 0, in.tags[in.tulleID])
	defer in.kernel.policies(t, in.tags[kernelApp], in.tags[in.tulleID])
	if c, err := in.dial("tcp4", in.tulle.At(demo.Port)); !errors.Is(err, syscall.ECONNREFUSED) {
		if err == nil {
			c.Close()
		}
		t.Fatalf("a new flow without tag: %v, want connection refused", err)
	}
	// Replies come without a tag too, and pass.
	in.do(t, echo.Request{Op: echo.OpDial, Address: in.at(7000), Timeout: 5 * time.Second})
	in.do(t, echo.Request{Op: echo.OpUDP, Address: in.at(7000), Bytes: 1000, Timeout: 5 * time.Second})
}

// wrongTagIsRefused: the mark set on the kernel's side is what is judged, not the
// address: the same container under a tag that no policy knows is refused.
func (in *interop) wrongTagIsRefused(t *testing.T) {
	in.kernel.policies(t, 0x7777, in.tags[in.tulleID])
	defer in.kernel.policies(t, in.tags[kernelApp], in.tags[in.tulleID])
	if c, err := in.dial("tcp4", in.tulle.At(demo.Port)); !errors.Is(err, syscall.ECONNREFUSED) {
		if err == nil {
			c.Close()
		}
		t.Fatalf("a new flow with another app's tag: %v, want connection refused", err)
	}
}

// forgeryIsRefused: a datagram to the kernel's port 4789 from the Tulle cell's address
// is a frame of that cell, with whatever tag it says; the kernel believes it. A
// container whose rules allow anything, that very address too, gets none out.
func (in *interop) forgeryIsRefused(t *testing.T) {
	var app net.PacketConn
	if err := in.kernel.container.Do(func() (err error) {
		app, err = net.ListenPacket("udp4", ":7001")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	app.SetDeadline(time.Now().Add(20 * time.Second))
	status, err := in.cell.Status(in.ctx)
	if err != nil {
		t.Fatal(err)
	}
	// frame is one of the Tulle container's, with its tag.
	frame := func(says string) []byte {
		b := []byte{0x88, 0, 0, 0, 0, 0, 1, 0}
		binary.BigEndian.PutUint16(b[2:], uint16(in.tags[in.tulleID]))
		b = append(append(b, hardwareAddr(in.kernel.lease)...), hardwareAddr(status.Lease)...)
		b = append(b, 0x08, 0x00)
		return append(b, packettest.UDP(netip.AddrPortFrom(in.tulle.Addr, 4000), netip.AddrPortFrom(in.kernel.address, 7001), []byte(says))...)
	}
	tunnel := netip.AddrPortFrom(underlayKernel.Addr(), 4789)
	host, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(underlayTulle.Addr(), 0)), net.UDPAddrFromAddrPort(tunnel))
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	// arrives is what a frame of the host's own says, and all that came before it.
	arrives := func(says string) {
		t.Helper()
		if _, err := host.Write(frame(says)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		if n, _, err := app.ReadFrom(b); err != nil || string(b[:n]) != says {
			t.Fatalf("the kernel's app read %q, %v, want %q", b[:n], err, says)
		}
	}
	arrives("the kernel believes the host")

	own, raw := attachRaw(t, in.ctx, in.cell)
	group := policy.SecurityGroup{GUID: "g1", Name: "anything", RunningDefault: true, Rules: []policy.SecurityRule{
		{Protocol: "all", Destination: "0.0.0.0/0"}, {Protocol: "udp", Destination: tunnel.Addr().String(), Ports: "1-65535"},
	}}
	if err := api(t, in.w).PutGroup(in.ctx, group); err != nil {
		t.Fatal(err)
	}
	// A port beside the tunnel's is reached, so the rules hold.
	var beside net.PacketConn
	if err := in.kernel.host.Do(func() (err error) {
		beside, err = net.ListenPacket("udp4", netip.AddrPortFrom(tunnel.Addr(), 4790).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer beside.Close()
	beside.SetDeadline(time.Now().Add(20 * time.Second))
	reached := make(chan error, 1)
	go func() {
		_, _, err := beside.ReadFrom(make([]byte, 100))
		reached <- err
	}()
	from := netip.AddrPortFrom(own, 4000)
	for again := time.NewTicker(20 * time.Millisecond); ; {
		if err := raw.send(packet.Virtio{}, packettest.UDP(from, netip.AddrPortFrom(tunnel.Addr(), 4790), []byte("hello"))); err != nil {
			t.Fatal(err)
		}
		select {
		case err = <-reached:
		case <-again.C:
			continue
		}
		break
	}
	if err != nil {
		t.Fatalf("the port beside the tunnel's: %v", err)
	}
	const verdicts = "tulle_cell_egress_verdicts_total"
	refusals := func() float64 {
		t.Helper()
		m, err := demo.ReadMetrics(in.ctx, in.cell.Metrics)
		if err != nil {
			t.Fatal(err)
		}
		return m.Sum(verdicts, `verdict="guarded_port"`)
	}
	before := refusals()
	for range 10 {
		if err := raw.send(packet.Virtio{}, packettest.UDP(from, tunnel, frame("forged"))); err != nil {
			t.Fatal(err)
		}
	}
	for again := time.NewTicker(20 * time.Millisecond); refusals() < before+10; <-again.C {
		if in.ctx.Err() != nil {
			t.Fatalf("%v refusals, want 10", refusals()-before)
		}
	}
	arrives("and nobody else")
}

// bulk downloads enough for super-packets, joined frames and the kernel's own
// offloads to take part.
func (in *interop) bulk(t *testing.T) {
	const size = 64 << 20
	c, err := in.dial("tcp4", in.tulle.At(demo.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	request, err := http.NewRequestWithContext(in.ctx, http.MethodGet, fmt.Sprintf("http://web/download?bytes=%d", size), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := request.Write(c); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(c), request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if err := echo.Verify(answer.Body, size); err != nil {
		t.Fatal(err)
	}
}
