package e2e

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"tulle/cmd/internal/demo"
	"tulle/cmd/internal/echo"
	"tulle/overlay/control"
	"tulle/overlay/netcfg/nstest"
	"tulle/overlay/packet/packettest"
	"tulle/overlay/vxlan"
	"tulle/policy"
)

const (
	modeWireGuard = "mode: wireguard"
	wg0           = "wg0"
	wg0MTU        = 1440 // on an underlay of 1500; the vxlan device over it has 1390
	wireguardRole = "TULLE_E2E_WIREGUARD"
)

// tunnelKernel lies where no cell's lease leads to, so that add-peer must be told.
var tunnelKernel = netip.MustParseAddr("100.100.0.77")

// TestWireGuardInterop is TestKernelInterop with a tunnel between the cells: the
// other end is wireguard-go on a kernel TUN device, and the kernel's VXLAN-GBP
// over that.
func TestWireGuardInterop(t *testing.T) {
	testInterop(t, modeWireGuard, demo.Port4789, demo.Port51820)
}

// tunnelKey is the other end's, in the words of the library (hex) and of
// add-peer (base64).
type tunnelKey struct{ private, public string }

func newTunnelKey(t *testing.T) tunnelKey {
	t.Helper()
	private := make([]byte, 32)
	for i := range private {
		private[i] = byte(7 * i)
	}
	public, err := curve25519.X25519(private, curve25519.Basepoint)
	if err != nil {
		t.Fatal(err)
	}
	return tunnelKey{hex.EncodeToString(private), base64.StdEncoding.EncodeToString(public)}
}

// startWireGuard starts the library's own device as a process in the host, with
// the Tulle cell as its only peer.
func startWireGuard(t *testing.T, host *nstest.Namespace, key tunnelKey, tulle control.Status) {
	t.Helper()
	if tulle.Mode != "wireguard" || tulle.Key.IsZero() || !tulle.Tunnel.IsValid() || tulle.WireGuard.Port() != 51820 {
		t.Fatalf("status of the cell: mode %s, key %s, tunnel %s, wireguard %s", tulle.Mode, tulle.Key, tulle.Tunnel, tulle.WireGuard)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), wireguardRole+"=1")
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close() // the end of its input ends it
		if err := cmd.Wait(); err != nil {
			t.Errorf("wireguard-go: %v", err)
		}
	})
	fmt.Fprintf(in, "private_key=%s\nlisten_port=51820\npublic_key=%s\nendpoint=%s\nreplace_allowed_ips=true\nallowed_ip=%s/32\n\n",
		key.private, hex.EncodeToString(tulle.Key[:]), tulle.WireGuard, tulle.Tunnel)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("wireguard-go says %q, %v", line, err)
	}
	err = host.Do(func() error {
		link, err := netlink.LinkByName(wg0)
		if err != nil {
			return err
		}
		own := &netlink.Addr{IPNet: &net.IPNet{IP: tunnelKernel.AsSlice(), Mask: net.CIDRMask(32, 32)}}
		if err := errors.Join(netlink.AddrAdd(link, own), netlink.LinkSetUp(link)); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK,
			Dst: &net.IPNet{IP: tulle.Tunnel.AsSlice(), Mask: net.CIDRMask(32, 32)}})
	})
	if err != nil {
		t.Fatalf("%s: %v", wg0, err)
	}
}

// beWireGuard is wireguard-go as its own program has it: a TUN device of the
// kernel's, its own sockets, configured by what stands on its input, until that
// ends.
func beWireGuard() error {
	dev, err := tun.CreateTUN(wg0, wg0MTU)
	if err != nil {
		return err
	}
	d := device.NewDevice(dev, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	defer d.Close()
	in := bufio.NewReader(os.Stdin)
	var config strings.Builder
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		if line == "\n" {
			break
		}
		config.WriteString(line)
	}
	if err := d.IpcSet(config.String()); err != nil {
		return err
	}
	if err := d.Up(); err != nil {
		return err
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, in)
	return err
}

// plainIsRefused: the kernel's cell sends a frame that would be right in mode
// vxlan, from its own address and port. It is counted and goes nowhere.
func (in *interop) plainIsRefused(t *testing.T) {
	const counter = `tulle_cell_drops_total{direction="ingress",reason="wrong_mode"} `
	before := metric(t, in.ctx, in.cell.Metrics, counter)
	src := netip.AddrPortFrom(in.kernel.address, 1000)
	dst := netip.AddrPortFrom(in.tulle.Addr, demo.FirstUDP)
	lease := in.tulle.Addr.As4()
	lease[3] = 0
	f := vxlan.Frame{GroupID: uint16(in.tags[kernelApp]), VNI: 1,
		DstMAC: vxlan.MACFor(netip.AddrFrom4(lease)), SrcMAC: vxlan.MACFor(in.kernel.lease.Addr())}
	b := make([]byte, vxlan.Overhead)
	f.Encode(b)
	b = append(b, packettest.UDP(src, dst, []byte("in plain"))...)
	err := in.kernel.host.Do(func() error {
		c, err := net.Dial("udp4", netip.AddrPortFrom(underlayTulle.Addr(), 4789).String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for metric(t, in.ctx, in.cell.Metrics, counter) != before+1 {
		if in.ctx.Err() != nil {
			t.Fatal("the plain frame was not counted")
		}
	}
	// The tunnel goes on.
	in.do(t, echo.Request{Op: echo.OpUDP, Address: in.at(7000), Bytes: 1000, Timeout: 5 * time.Second})
}

// metric reads one counter; one that is not there has never counted.
func metric(t *testing.T, ctx context.Context, address, name string) (value int) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), name); ok {
			if _, err := fmt.Sscan(rest, &value); err != nil {
				t.Fatal(err)
			}
		}
	}
	return value
}

// TestWireGuardCells: two cells of mode wireguard and one of mode vxlan. Strangers
// never meet in the tunnel either, a download through it arrives whole, and the
// cells of mode wireguard say loudly that the third is plain.
func TestWireGuardCells(t *testing.T) {
	nstest.NeedTUN(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	w := newWorld(t)
	if _, err := w.StartServer(ctx); err != nil {
		t.Fatal(err)
	}
	var cells []*demo.Cell
	for i, mode := range []string{modeWireGuard, modeWireGuard, "mode: vxlan"} {
		c, err := w.StartCell(ctx, fmt.Sprintf("cell-%d", i+1), netip.AddrFrom4([4]byte{127, 0, 0, byte(i + 1)}), mode)
		if err != nil {
			t.Fatal(err)
		}
		cells = append(cells, c)
	}
	left, right := newStranger(t, cells[0], "left", 0), newStranger(t, cells[1], "right", 0)
	l, r := meet(t, left, right, 2*time.Second)
	if l.Datagrams+r.Datagrams+l.Connected+r.Connected != 0 {
		t.Errorf("strangers met: left %+v, right %+v", l, r)
	}
	if min(l.Sent, r.Sent) < 500 || min(l.Tries, r.Tries) < 100 {
		t.Errorf("too few attempts to mean anything: left %+v, right %+v", l, r)
	}
	downloads(t, ctx, w, cells)

	for i, plain := range [][]string{{"cell-3"}, {"cell-3"}, nil} {
		s, err := cells[i].Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(s.Plain, plain) {
			t.Errorf("%s: plain peers %v, want %v", s.Cell, s.Plain, plain)
		}
		log, err := os.ReadFile(cells[i].Log())
		if err != nil {
			t.Fatal(err)
		}
		if said := strings.Contains(string(log), "PLAIN TEXT"); said != (plain != nil) {
			t.Errorf("%s: the log speaks of plain text: %t", s.Cell, said)
		}
	}
}

// downloads: from the first cell, of each of the others, every byte checked.
func downloads(t *testing.T, ctx context.Context, w *demo.World, cells []*demo.Cell) {
	t.Helper()
	front, err := w.StartApp(ctx, cells[0], "front", 0)
	if err != nil {
		t.Fatal(err)
	}
	var backs []*demo.Instance
	for i, c := range cells[1:] {
		back, err := w.StartApp(ctx, c, "back", i)
		if err != nil {
			t.Fatal(err)
		}
		backs = append(backs, back)
	}
	a := api(t, w)
	var ids [2]policy.AppID
	for i, name := range []string{"front", "back"} {
		if ids[i], err = a.AppID(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	p := policy.Policy{Source: ids[0], Destination: ids[1], Protocol: policy.TCP, Ports: policy.PortRange{Start: demo.Port, End: demo.Port}}
	if err := a.Create(ctx, p); err != nil {
		t.Fatal(err)
	}
	for i, back := range backs {
		to := back.At(demo.Port)
		if _, err := front.Do(ctx, echo.Request{Op: echo.OpDial, Address: to, Until: echo.OK, Patience: 10 * time.Second}); err != nil {
			t.Fatal(err)
		}
		e, err := front.Do(ctx, echo.Request{Op: echo.OpDownload, Address: to, Bytes: 64 << 20})
		if err != nil || e.Outcome != echo.OK || e.Bytes != 64<<20 {
			t.Errorf("download from %s: %+v, %v", cells[i+1].Name, e, err)
		}
	}
}
