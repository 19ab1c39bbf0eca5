package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tulle/overlay/netcfg/nstest"
	"tulle/policy"
)

const vtep = "silk-vtep"

// kernelCell is a cell made of what Linux has: a vxlan device with gbp,
// addressed, routed and filtered as silk does it (reference: silk-daemon's VTEP
// and convergence), and one container behind a veth.
//
//	container X.Y.77.2 ── veth ── cell X.Y.77.0 (silk-vtep) ── veth ── 192.0.2.1
type kernelCell struct {
	host, container *nstest.Namespace
	lease           netip.Prefix
	address         netip.Addr // of the container
	underlay        netip.Addr
	mtu             int // of the container's veth
	rules           *nftables.Conn
	table           *nftables.Table
	prerouting      *nftables.Chain
	forward         *nftables.Chain
}

// newKernelCell sets the cell up in host, whose underlay device is already
// there, with one neighbour: the cell that holds peerLease at peerUnderlay.
func newKernelCell(t *testing.T, host *nstest.Namespace, device string, underlay netip.Addr, lease netip.Prefix,
	peerUnderlay netip.Addr, peerLease netip.Prefix, mtu int) *kernelCell {
	t.Helper()
	k := &kernelCell{
		host: host, container: nstest.New(t),
		lease: lease, address: lease.Addr().Next().Next(), underlay: underlay, mtu: mtu,
	}
	nameA, nameB := nstest.Veth(t, host, k.container, netip.Prefix{}, netip.Prefix{})
	steps := []struct {
		what string
		in   *nstest.Namespace
		do   func() error
	}{
		{"vxlan device", host, func() error { return k.addVTEP(device) }},
		{"route to the peer's lease", host, func() error { return k.converge(peerUnderlay, peerLease) }},
		{"forwarding", host, enableForwarding},
		{"container's host end", host, func() error {
			return pointToPoint(nameA, netip.MustParseAddr("169.254.0.1"), k.address, mtu)
		}},
		{"container's end", k.container, func() error {
			if err := pointToPoint(nameB, k.address, netip.MustParseAddr("169.254.0.1"), mtu); err != nil {
				return err
			}
			return defaultVia(nameB, netip.MustParseAddr("169.254.0.1"))
		}},
		{"packet filter", host, k.filter},
	}
	for _, s := range steps {
		if err := s.in.Do(s.do); err != nil {
			t.Fatalf("kernel cell: %s: %v", s.what, err)
		}
	}
	return k
}

// hardwareAddr is ee:ee and the four bytes of a lease's base address.
func hardwareAddr(lease netip.Prefix) net.HardwareAddr {
	return append(net.HardwareAddr{0xee, 0xee}, lease.Addr().AsSlice()...)
}

func (k *kernelCell) addVTEP(device string) error {
	under, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = vtep
	attrs.HardwareAddr = hardwareAddr(k.lease)
	link := &netlink.Vxlan{
		LinkAttrs:    attrs,
		VxlanId:      1,
		Port:         4789,
		GBP:          true,
		SrcAddr:      k.underlay.AsSlice(),
		VtepDevIndex: under.Attrs().Index,
	}
	if err := netlink.LinkAdd(link); err != nil {
		return err
	}
	addr := &netlink.Addr{
		IPNet: &net.IPNet{IP: k.lease.Addr().AsSlice(), Mask: net.CIDRMask(16, 32)},
		Scope: unix.RT_SCOPE_LINK,
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// converge adds what silk-daemon adds for each foreign lease.
func (k *kernelCell) converge(underlay netip.Addr, lease netip.Prefix) error {
	link, err := netlink.LinkByName(vtep)
	if err != nil {
		return err
	}
	base := net.IP(lease.Addr().AsSlice())
	index := link.Attrs().Index
	err = netlink.RouteReplace(&netlink.Route{
		LinkIndex: index,
		Dst:       &net.IPNet{IP: base, Mask: net.CIDRMask(lease.Bits(), 32)},
		Gw:        base,
		Src:       k.lease.Addr().AsSlice(),
	})
	if err != nil {
		return fmt.Errorf("route: %w", err)
	}
	err = netlink.NeighSet(&netlink.Neigh{
		LinkIndex: index, State: netlink.NUD_PERMANENT, Type: unix.RTN_UNICAST,
		IP: base, HardwareAddr: hardwareAddr(lease),
	})
	if err != nil {
		return fmt.Errorf("neighbour: %w", err)
	}
	err = netlink.NeighSet(&netlink.Neigh{
		LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
		IP: underlay.AsSlice(), HardwareAddr: hardwareAddr(lease),
	})
	if err != nil {
		return fmt.Errorf("forwarding entry: %w", err)
	}
	return nil
}

// enableForwarding is about the calling thread's network namespace.
func enableForwarding() error {
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
}

func pointToPoint(name string, own, peer netip.Addr, mtu int) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		return err
	}
	return netlink.AddrAdd(link, &netlink.Addr{
		IPNet: &net.IPNet{IP: own.AsSlice(), Mask: net.CIDRMask(32, 32)},
		Peer:  &net.IPNet{IP: peer.AsSlice(), Mask: net.CIDRMask(32, 32)},
	})
}

func defaultVia(name string, gw netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice()})
}

// The filter of a silk cell, as far as these tests look: packets of the
// container are marked with its app's tag; from the overlay only the tag allowed
// and replies pass, the rest is rejected.
func (k *kernelCell) filter() error {
	k.rules = &nftables.Conn{NetNS: int(k.host.File().Fd())}
	k.table = k.rules.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "silk"})
	k.prerouting = k.rules.AddChain(&nftables.Chain{
		Name: "mark", Table: k.table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle,
	})
	k.forward = k.rules.AddChain(&nftables.Chain{
		Name: "overlay", Table: k.table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	return k.rules.Flush()
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// policies replaces both chains: the container's packets get tag own (0: none),
// and of what comes in from the overlay the tag allowed passes.
func (k *kernelCell) policies(t *testing.T, own, allowed policy.Tag) {
	t.Helper()
	k.rules.FlushChain(k.prerouting)
	k.rules.FlushChain(k.forward)
	k.rules.AddRule(&nftables.Rule{Table: k.table, Chain: k.prerouting, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: k.address.AsSlice()},
		&expr.Immediate{Register: 1, Data: native(uint32(own))},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}})
	fromOverlay := func(more ...expr.Any) {
		name := make([]byte, unix.IFNAMSIZ)
		copy(name, vtep)
		k.rules.AddRule(&nftables.Rule{Table: k.table, Chain: k.forward, Exprs: append([]expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
		}, more...)})
	}
	fromOverlay(
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: native(uint32(allowed))},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictAccept},
	)
	fromOverlay(
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: native(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED), Xor: native(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: native(0)},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictAccept},
	)
	fromOverlay(
		&expr.Counter{},
		&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3},
	)
	if err := k.rules.Flush(); err != nil {
		t.Fatalf("packet filter: %v", err)
	}
}

// matched is how many packets hit the rule for the allowed tag, the rule for
// replies and the reject, since policies was called.
func (k *kernelCell) matched(t *testing.T) (tagged, replies, rejected uint64) {
	t.Helper()
	rules, err := k.rules.GetRules(k.table, k.forward)
	if err != nil {
		t.Fatalf("packet filter: %v", err)
	}
	var counts []uint64
	for _, r := range rules {
		for _, e := range r.Exprs {
			if c, ok := e.(*expr.Counter); ok {
				counts = append(counts, c.Packets)
			}
		}
	}
	if len(counts) != 3 {
		t.Fatalf("packet filter: %d counters, want 3", len(counts))
	}
	return counts[0], counts[1], counts[2]
}
