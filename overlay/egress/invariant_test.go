package egress_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tulle/overlay/egress"
	"tulle/overlay/fib"
	"tulle/overlay/netcfg"
	"tulle/overlay/netcfg/nstest"
	"tulle/overlay/packet/packettest"
)

// TestHostIsOutOfReach is invariant 3: whatever the rules, and whatever a container
// puts on its device, nothing comes to a listener of its host.
func TestHostIsOutOfReach(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		r := newRig(t)
		peerTunnel := netip.AddrPortFrom(fam.world, 4789)
		r.e.SetSurroundings(&egress.Surroundings{
			Cells:          map[netip.Addr]bool{fam.host: true, fam.world: true},
			Guarded:        map[egress.HostService]bool{{Addr: peerTunnel, Protocol: "udp"}: true},
			GuardedOnCells: map[uint16]bool{9479: true},
		})
		// All the host's addresses and ports of a kind are one listener, of both families
		// where the family is IPv6: what reaches it by a mapped address is seen as well.
		all := func(port uint16) string { return at(netip.MustParseAddr(fam.all), port) }
		tcp, tcpConns := tcpServer(t, r.host, all(7000))
		udp := udpServer(t, r.host, all(7000))
		tunnel := udpServer(t, r.world, peerTunnel.String())
		_, metrics := tcpServer(t, r.world, at(fam.world, 9479))
		c := r.container(1, anything(t))
		kept := egress.Forward{Protocol: "tcp", Host: netip.AddrPortFrom(fam.host, 7002), Port: 80}
		if err := r.e.AddForward(c.addr, kept); err != nil {
			t.Fatal(err)
		}

		late := map[string]netip.Addr{"IPv4": netip.MustParseAddr("198.51.100.7"), "IPv6": netip.MustParseAddr("2001:db8:7::7")}[fam.name]
		r.address(r.host, r.veth, netip.PrefixFrom(late, late.BitLen()))

		// What its kernel lets a container dial. A mapped address it turns into IPv4.
		dialled := map[string][]string{
			"IPv4": {"192.0.2.1", "198.51.100.7", "169.254.169.254", "192.0.2.255"},
			"IPv6": {"2001:db8:1::1", "2001:db8:7::7", "::ffff:192.0.2.1", "::ffff:169.254.169.254", "64:ff9b::c000:201", "64:ff9b:1::c000:201",
				"::192.0.2.1", "2002:c000:201::1", "fd74:756c:6c65::c000:201"},
		}
		for _, to := range dialled[fam.name] {
			for _, port := range []uint16{tcp.Port(), 7002} {
				if _, err := c.dial(at(netip.MustParseAddr(to), port)); err == nil {
					t.Errorf("%s, port %d can be dialled", to, port)
				}
			}
		}
		// What a raw socket puts on the wire.
		sent := map[string][]string{
			"IPv4": {"0.0.0.0", "0.0.0.1", "127.0.0.1", "127.1.2.3", "127.255.255.255", "192.0.2.1", "192.0.2.255", "198.51.100.7",
				"169.254.169.254", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"},
			"IPv6": {"::", "::1", "::7f00:1", "::c000:201", "::ffff:192.0.2.1", "::ffff:127.0.0.1", "::ffff:0:7f00:1", "64:ff9b::7f00:1", "64:ff9b::c000:201", "64:ff9b:1::7f00:1",
				"2001:db8:1::1", "2001:db8:7::7", "fe80::1", "fec0::1", "ff01::1", "ff02::1", "ff05::2", "2002:7f00:1::1", "2002:c000:201::1", "2001:0:c000:201::1",
				"fd74:756c:6c65::808:808"},
		}
		self := c.addr
		if fam.name == "IPv6" {
			self = fib.Twin(self)
			link := r.linkLocal(r.host, r.veth)
			sent["IPv6"] = append(sent["IPv6"], link.String())
		}
		for _, to := range sent[fam.name] {
			a := netip.MustParseAddr(to)
			before := denied(r)
			for _, port := range []uint16{7000, 7002} {
				c.send(packettest.TCP(netip.AddrPortFrom(self, 4000), netip.AddrPortFrom(a, port), 2, 1, 0, nil))
				c.send(packettest.UDP(netip.AddrPortFrom(self, 4000), netip.AddrPortFrom(a, port), []byte("x")))
			}
			c.send(packettest.ICMP(self, a, echoRequest(a), 0, 1, []byte("ping")))
			// A multicast or broadcast SYN is no connection that a stack would see, and a
			// mapped address is on no wire.
			want := uint64(5)
			if a.IsMulticast() || a.IsUnspecified() || a.Is4In6() || a.Is4() && a.As4()[0] >= 240 {
				want = 0
			}
			until(t, to+" is refused", func() bool { return denied(r) >= before+want })
		}
		for _, to := range []string{peerTunnel.String(), at(fam.world, 9479)} {
			before := denied(r)
			c.send(packettest.UDP(netip.AddrPortFrom(self, 4000), netip.MustParseAddrPort(to), []byte("forged")))
			until(t, to+" is refused", func() bool { return denied(r) > before })
		}
		if _, err := c.dial(at(fam.world, 9479)); err == nil {
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
	})
}

// linkLocal is a namespace's address of that kind on a device, once it is one.
func (r *rig) linkLocal(ns *nstest.Namespace, device string) (found netip.Addr) {
	r.t.Helper()
	err := ns.Do(func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		list, err := netlink.AddrList(l, netlink.FAMILY_V6)
		for _, a := range list {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.IsLinkLocalUnicast() {
				found = ip
			}
		}
		if err != nil || !found.IsValid() {
			return fmt.Errorf("%s has no link-local address: %w", device, err)
		}
		return nstest.Ready(found)
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return found
}

// slowRouter says "away" of an address that became the host's a moment ago.
type slowRouter struct{}

func (slowRouter) Kind(netip.Addr) (netcfg.RouteKind, error) { return netcfg.RouteAway, nil }

// What was added to the host between the question and the connect is seen on the
// connected socket: nobody says a word over it.
func TestConnectedSocketIsJudgedAgain(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		r := newRig(t, func(o *egress.Options) { o.Router = slowRouter{} })
		_, conns := tcpServer(t, r.host, at(fam.host, 7000))
		udp := udpServer(t, r.host, at(fam.host, 7000))
		c := r.container(1, anything(t))
		_, err := c.dial(at(fam.host, 7000))
		refused(t, err)
		if n, err := next(t, conns).Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("the host's listener read %d bytes, %v", n, err)
		}
		conn := c.udp(at(fam.host, 7000))
		conn.Write([]byte("x"))
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("a datagram was answered")
		}
		udp.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, from, err := udp.ReadFromUDPAddrPort(make([]byte, 100)); err == nil {
			t.Errorf("the host's listener got %d bytes from %v", n, from)
		}
		if v := r.e.Stats().Verdicts["host_address"]; v != 2 {
			t.Errorf("%d verdicts of host_address, want 2", v)
		}
	})
}

func denied(r *rig) uint64 {
	v := r.e.Stats().Verdicts
	return v["special_address"] + v["host_address"] + v["guarded_port"] + v["cell_address"] + v["no_route"]
}

func (r *rig) address(ns *nstest.Namespace, device string, a netip.Prefix) {
	r.t.Helper()
	err := ns.Do(func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(a.String())
		if err != nil {
			return err
		}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // good at once, almost
		}
		if err := netlink.AddrAdd(l, addr); err != nil || a.Addr().Is4() {
			return err
		}
		return nstest.Ready(a.Addr())
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

func TestHostServicesAreExact(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		r := newRig(t, func(o *egress.Options) {
			for _, s := range []string{at(fam.host, 7000), "127.0.0.1:7001", "[::1]:7001", at(fam.host, 9479)} {
				o.HostServices = append(o.HostServices, egress.HostService{Addr: netip.MustParseAddrPort(s), Protocol: "tcp"})
			}
		})
		r.e.SetSurroundings(&egress.Surroundings{Cells: map[netip.Addr]bool{fam.host: true}, GuardedOnCells: map[uint16]bool{9479: true}})
		_, conns := tcpServer(t, r.host, at(netip.MustParseAddr(fam.all), 7000))
		_, other := tcpServer(t, r.host, at(netip.MustParseAddr(fam.all), 7001))
		_, metrics := tcpServer(t, r.host, at(netip.MustParseAddr(fam.all), 9479))
		udp := udpServer(t, r.host, at(netip.MustParseAddr(fam.all), 7000))
		c := r.container(1, set(t)) // needs no rule
		near, err := c.dial(at(fam.host, 7000))
		if err != nil {
			t.Fatal(err)
		}
		exchange(t, near, next(t, conns))
		for _, to := range []string{at(fam.host, 7001), at(fam.host, 9479)} {
			_, err := c.dial(to)
			refused(t, err)
		}
		c.udp(at(fam.host, 7000)).Write([]byte("x"))
		udp.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, _, err := udp.ReadFromUDPAddrPort(make([]byte, 1)); err == nil {
			t.Error("a TCP service's UDP port was reached")
		}
		if len(other)+len(metrics) != 0 {
			t.Error("what is no service was reached")
		}
	})
}

func TestCellsOnlyWhereNamed(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		r := newRig(t)
		r.e.SetSurroundings(&egress.Surroundings{Cells: map[netip.Addr]bool{fam.host: true, fam.world: true}})
		server, conns := tcpServer(t, r.world, at(fam.world, 0))
		c := r.container(1, set(t, allow("tcp", fam.net, "1-65535")))
		_, err := c.dial(server.String())
		refused(t, err)
		c.rules(set(t, allow("tcp", fam.net+","+fam.world.String(), "1-65535")))
		near, err := c.dial(server.String())
		if err != nil {
			t.Fatal(err)
		}
		far := next(t, conns)
		exchange(t, near, far)
		// A cell that comes later cuts what went there.
		c.rules(set(t, allow("tcp", fam.net, "1-65535")))
		if _, err := far.Read(make([]byte, 1)); err == nil {
			t.Error("the connection lives though the rule is gone")
		}
	})
}
