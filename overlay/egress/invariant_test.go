package egress_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"tulle/overlay/egress"
	"tulle/overlay/packet/packettest"
)

// TestHostIsOutOfReach is invariant 3: whatever the rules, and whatever a container
// puts on its device, nothing comes to a listener of its host.
func TestHostIsOutOfReach(t *testing.T) {
	r := newRig(t)
	r.e.SetSurroundings(&egress.Surroundings{
		Cells:          map[netip.Addr]bool{hostIP: true, worldIP: true},
		Guarded:        map[egress.HostService]bool{{Addr: netip.MustParseAddrPort("192.0.2.2:4789"), Protocol: "udp"}: true},
		GuardedOnCells: map[uint16]bool{9479: true},
	})
	// All the host's addresses and ports of a kind are one listener.
	tcp, tcpConns := tcpServer(t, r.host, "0.0.0.0:7000")
	udp := udpServer(t, r.host, "0.0.0.0:7000")
	tunnel := udpServer(t, r.world, "192.0.2.2:4789")
	_, metrics := tcpServer(t, r.world, "192.0.2.2:9479")
	c := r.container(1, anything(t))

	late := netip.MustParseAddr("198.51.100.7")
	r.addAddress(late)

	// What its kernel lets a container dial.
	for _, to := range []netip.Addr{hostIP, late, netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("192.0.2.255")} {
		if _, err := c.dial(netip.AddrPortFrom(to, tcp.Port()).String()); err == nil {
			t.Errorf("%v can be dialled", to)
		}
	}
	// What a raw socket puts on the wire.
	for _, to := range []string{
		"0.0.0.0", "0.0.0.1", "127.0.0.1", "127.1.2.3", "127.255.255.255", "192.0.2.1", "192.0.2.255", "198.51.100.7",
		"169.254.169.254", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
	} {
		a := netip.MustParseAddr(to)
		before := denied(r)
		c.send(packettest.TCP(netip.AddrPortFrom(c.addr, 4000), netip.AddrPortFrom(a, 7000), 2, 1, 0, nil))
		c.send(packettest.UDP(netip.AddrPortFrom(c.addr, 4000), netip.AddrPortFrom(a, 7000), []byte("x")))
		c.send(packettest.ICMP(c.addr, a, 8, 0, 1, []byte("ping")))
		// A multicast or broadcast SYN is no connection that a stack would see.
		want := uint64(3)
		if a.As4()[0] >= 224 || to == "0.0.0.0" {
			want = 0
		}
		until(t, to+" is refused", func() bool { return denied(r) >= before+want })
	}
	for _, to := range []string{"192.0.2.2:4789", "192.0.2.2:9479"} {
		before := denied(r)
		c.send(packettest.UDP(netip.AddrPortFrom(c.addr, 4000), netip.MustParseAddrPort(to), []byte("forged")))
		until(t, to+" is refused", func() bool { return denied(r) > before })
	}
	if _, err := c.dial("192.0.2.2:9479"); err == nil {
		t.Error("a metrics port of a cell can be dialled")
	}

	select {
	case conn := <-tcpConns:
		t.Errorf("the host accepted a connection to %v", conn.LocalAddr())
	case conn := <-metrics:
		t.Errorf("a cell's metrics accepted a connection to %v", conn.LocalAddr())
	default:
	}
	for _, s := range []interface {
		SetReadDeadline(time.Time) error
		ReadFromUDPAddrPort([]byte) (int, netip.AddrPort, error)
	}{udp, tunnel} {
		s.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, from, err := s.ReadFromUDPAddrPort(make([]byte, 100)); err == nil {
			t.Errorf("a listener got %d bytes from %v", n, from)
		}
	}
	if n := r.e.Stats().Begun; n["tcp"]+n["udp"]+n["icmp"] != 0 {
		t.Errorf("conversations were begun: %v", n)
	}
}

func denied(r *rig) uint64 {
	v := r.e.Stats().Verdicts
	return v["special_address"] + v["host_address"] + v["guarded_port"] + v["cell_address"] + v["no_route"]
}

func (r *rig) addAddress(a netip.Addr) {
	r.t.Helper()
	err := r.host.Do(func() error {
		l, err := netlink.LinkByName(r.veth)
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(netip.PrefixFrom(a, 32).String())
		if err != nil {
			return err
		}
		return netlink.AddrAdd(l, addr)
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

func TestHostServicesAreExact(t *testing.T) {
	r := newRig(t, func(o *egress.Options) {
		for _, s := range []string{"192.0.2.1:7000", "127.0.0.1:7001", "192.0.2.1:9479"} {
			o.HostServices = append(o.HostServices, egress.HostService{Addr: netip.MustParseAddrPort(s), Protocol: "tcp"})
		}
	})
	r.e.SetSurroundings(&egress.Surroundings{Cells: map[netip.Addr]bool{hostIP: true}, GuardedOnCells: map[uint16]bool{9479: true}})
	_, conns := tcpServer(t, r.host, "0.0.0.0:7000")
	_, other := tcpServer(t, r.host, "0.0.0.0:7001")
	_, metrics := tcpServer(t, r.host, "0.0.0.0:9479")
	udp := udpServer(t, r.host, "0.0.0.0:7000")
	c := r.container(1, set(t)) // needs no rule
	near, err := c.dial("192.0.2.1:7000")
	if err != nil {
		t.Fatal(err)
	}
	exchange(t, near, next(t, conns))
	for _, to := range []string{"192.0.2.1:7001", "192.0.2.1:9479"} {
		_, err := c.dial(to)
		refused(t, err)
	}
	c.udp("192.0.2.1:7000").Write([]byte("x"))
	udp.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, _, err := udp.ReadFromUDPAddrPort(make([]byte, 1)); err == nil {
		t.Error("a TCP service's UDP port was reached")
	}
	if len(other)+len(metrics) != 0 {
		t.Error("what is no service was reached")
	}
}

func TestCellsOnlyWhereNamed(t *testing.T) {
	r := newRig(t)
	r.e.SetSurroundings(&egress.Surroundings{Cells: map[netip.Addr]bool{hostIP: true, worldIP: true}})
	server, conns := tcpServer(t, r.world, "192.0.2.2:0")
	c := r.container(1, set(t, allow("tcp", "192.0.2.0/24", "1-65535")))
	_, err := c.dial(server.String())
	refused(t, err)
	c.rules(set(t, allow("tcp", "192.0.2.0/24,192.0.2.2", "1-65535")))
	near, err := c.dial(server.String())
	if err != nil {
		t.Fatal(err)
	}
	far := next(t, conns)
	exchange(t, near, far)
	// A cell that comes later cuts what went there.
	c.rules(set(t, allow("tcp", "192.0.2.0/24", "1-65535")))
	if _, err := far.Read(make([]byte, 1)); err == nil {
		t.Error("the connection lives though the rule is gone")
	}
}
