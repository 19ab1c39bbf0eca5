package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/cmd/internal/demo"
	"tulle/cmd/internal/echo"
	"tulle/overlay/control"
	"tulle/overlay/netcfg"
	"tulle/overlay/netcfg/nstest"
	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
	"tulle/policy"
	apitypes "tulle/policy/api"
)

// TestHostileContainer attaches a container whose owner has a raw socket on its
// device and lies: virtio headers with segments of one byte, offsets outside the
// packet, another's source address. The daemon counts, drops, stays up, and the
// neighbours do not notice.
func TestHostileContainer(t *testing.T) {
	nstest.NeedRoot(t)
	nstest.NeedTUN(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	w := newWorld(t)
	if _, err := w.StartServer(ctx); err != nil {
		t.Fatal(err)
	}
	cell, err := w.StartCell(ctx, "cell-1", netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	other, err := w.StartCell(ctx, "cell-2", netip.MustParseAddr("127.0.0.2"))
	if err != nil {
		t.Fatal(err)
	}
	victim, err := w.StartApp(ctx, cell, "victim", 0)
	if err != nil {
		t.Fatal(err)
	}
	far, err := w.StartApp(ctx, other, "victim", 1)
	if err != nil {
		t.Fatal(err)
	}
	own, raw := attachRaw(t, ctx, cell)
	a := api(t, w)
	liar, err := a.AppID(ctx, "liar")
	if err != nil {
		t.Fatal(err)
	}
	id, err := a.AppID(ctx, "victim")
	if err != nil {
		t.Fatal(err)
	}
	// The liar may speak to its victims: the lies must fail for what they are.
	for _, p := range []policy.Policy{
		{Source: liar, Destination: id, Protocol: policy.UDP, Ports: policy.PortRange{Start: 1, End: 65535}},
		{Source: liar, Destination: id, Protocol: policy.TCP, Ports: policy.PortRange{Start: 1, End: 65535}},
		{Source: id, Destination: id, Protocol: policy.TCP, Ports: policy.PortRange{Start: demo.Port, End: demo.Port}},
	} {
		if err := a.Create(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	mustDial := func(when string) {
		t.Helper()
		e, err := victim.Do(ctx, echo.Request{Op: echo.OpDial, Address: far.At(demo.Port), Until: echo.OK, Patience: 10 * time.Second})
		if err != nil || e.Outcome != echo.OK {
			t.Fatalf("%s: victim to its other instance: %+v, %v", when, e, err)
		}
	}
	mustDial("before")
	before, err := demo.ReadMetrics(ctx, cell.Metrics)
	if err != nil {
		t.Fatal(err)
	}

	from := netip.AddrPortFrom(own, 4000)
	for _, target := range []netip.Addr{victim.Addr, far.Addr} {
		to := netip.AddrPortFrom(target, 9)
		big := packettest.TCP(from, to, packet.FlagACK, 1, 1, make([]byte, 60000))
		small := packettest.UDP(from, to, []byte("hello"))
		for name, lie := range map[string]struct {
			header packet.Virtio
			packet []byte
		}{
			"one byte a segment":       {packet.Virtio{Flags: packet.VirtioNeedsChecksum, GSOType: packet.GSOTCPv4, HdrLen: 40, GSOSize: 1, CsumStart: 20, CsumOffset: 16}, big},
			"no segment size":          {packet.Virtio{Flags: packet.VirtioNeedsChecksum, GSOType: packet.GSOTCPv4, HdrLen: 40, CsumStart: 20, CsumOffset: 16}, big},
			"checksum outside":         {packet.Virtio{Flags: packet.VirtioNeedsChecksum, CsumStart: 60000, CsumOffset: 2000}, small},
			"checksum in the header":   {packet.Virtio{Flags: packet.VirtioNeedsChecksum, CsumStart: 0, CsumOffset: 12}, small},
			"checksum in the payload":  {packet.Virtio{Flags: packet.VirtioNeedsChecksum, CsumStart: 28, CsumOffset: 0}, small},
			"header longer than bytes": {packet.Virtio{Flags: packet.VirtioNeedsChecksum, GSOType: packet.GSOTCPv4, HdrLen: 65535, GSOSize: 1400, CsumStart: 20, CsumOffset: 16}, big},
			"tcp that is udp":          {packet.Virtio{Flags: packet.VirtioNeedsChecksum, GSOType: packet.GSOTCPv4, HdrLen: 28, GSOSize: 2, CsumStart: 20, CsumOffset: 6}, small},
			"another's address":        {packet.Virtio{}, packettest.UDP(netip.AddrPortFrom(victim.Addr, 4000), to, []byte("hello"))},
			"nobody's address":         {packet.Virtio{}, packettest.UDP(netip.MustParseAddrPort("8.8.8.8:53"), to, []byte("hello"))},
			"cut off":                  {packet.Virtio{}, small[:22]},
			"all options":              {packet.Virtio{}, packettest.IPv4{Src: own, Dst: target, Proto: 17, Options: make([]byte, 40), Payload: small[20:]}.Bytes()},
		} {
			sent := 0
			for range 20 {
				switch err := raw.send(lie.header, lie.packet); {
				case err == nil:
					sent++
				// The container's own kernel refuses the lies that it sees through.
				case !errors.Is(err, unix.EINVAL):
					t.Fatalf("%s: %v", name, err)
				}
			}
			t.Logf("%s to %s: %d of 20 left the container's kernel", name, target, sent)
		}
	}
	mustDial("after")

	// A datagram behind them all: what was sent before it has been judged.
	after, err := demo.ReadMetrics(ctx, cell.Metrics)
	if err != nil {
		t.Fatal(err)
	}
	for _, reason := range []string{"bad_virtio", "spoofed_source"} {
		label := fmt.Sprintf("reason=%q", reason)
		if b, a := before.Sum("tulle_cell_drops_total", label), after.Sum("tulle_cell_drops_total", label); a <= b {
			t.Errorf("drops for %s: %v before, %v after; moved: %s", reason, b, a, strings.Join(after.Moved(before), " "))
		}
	}
	if status, err := cell.Status(ctx); err != nil || status.PID != cell.PID() {
		t.Errorf("the daemon: %+v, %v", status.PID, err)
	}
}

// rawSocket writes whole packets, with virtio headers of one's own, into a
// container's device, as a container that has CAP_NET_RAW could.
type rawSocket struct {
	fd   int
	addr unix.SockaddrLinklayer
}

// attachRaw makes a namespace with a device, attaches it as the app "liar" and
// returns its address and a raw socket on it.
func attachRaw(t *testing.T, ctx context.Context, cell *demo.Cell) (netip.Addr, *rawSocket) {
	t.Helper()
	ns := nstest.New(t)
	var tun *os.File
	err := ns.Do(func() (err error) {
		tun, err = netcfg.CreateTUN("eth0", 1450)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tun.Close() })
	client, err := control.Dial(cell.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	attached, err := client.Attach(ctx, control.Attach{
		Container: "liar-0", Device: "eth0", Lifeline: control.LifelineConnection,
		App: apitypes.AppRef{Name: "liar", Space: demo.Space, Org: demo.Org},
	}, tun, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &rawSocket{}
	err = ns.Do(func() error {
		err := netcfg.Configure(netcfg.Device{Name: "eth0", Address: attached.Address, MTU: attached.MTU})
		if err != nil {
			return err
		}
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		s.addr = unix.SockaddrLinklayer{Protocol: 0x0008 /* ETH_P_IP in network order */, Ifindex: link.Index}
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(s.fd) })
	return attached.Address.Addr(), s
}

func (s *rawSocket) send(v packet.Virtio, p []byte) error {
	b := make([]byte, 10, 10+len(p))
	v.Encode(b)
	return unix.Sendto(s.fd, append(b, p...), 0, &s.addr)
}
