package datapath

import (
	"fmt"
	"slices"
	"testing"

	"tulle/overlay/fib"
	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
	"tulle/overlay/shape"
	"tulle/overlay/tun/tuntest"
)

// carrier notes what it is given, and takes it unless it is asked not to.
type carrier struct {
	refuse bool
	got    []string
}

func (c *carrier) Carry(ep *fib.Local, h *packet.Header, v *packet.Virtio, p []byte) bool {
	c.got = append(c.got, fmt.Sprintf("%s/%d %d>%s:%d %d bytes", ep.App, ep.Incarnation, h.Proto, h.Dst, h.DstPort, len(p)))
	return !c.refuse
}

func TestOutside(t *testing.T) {
	w := newWorld(t)
	out := &carrier{}
	a := w.cell(1, func(o *Options) { o.Outside = out })
	k := a.container("web", 2)
	carried := func(want ...string) {
		t.Helper()
		if fmt.Sprint(out.got) != fmt.Sprint(want) {
			t.Errorf("carried %q, want %q", out.got, want)
		}
		out.got = nil
	}
	who := fmt.Sprintf("web/%d", k.incarnation)

	k.send(packettest.TCP(k.at(4000), addrPort("203.0.113.1:443"), fSYN, 1, 0, nil))
	carried(who + " 6>203.0.113.1:443 40 bytes")
	k.send(packettest.TCP(k.at(4000), addrPort("169.254.0.2:53"), fSYN, 1, 0, nil))
	carried(who + " 6>169.254.0.2:53 40 bytes")
	k.send(packettest.UDP(k.at(4000), addrPort("169.254.0.2:54"), []byte("x")))
	carried(who + " 17>169.254.0.2:54 29 bytes")
	// A later fragment has no ports; whoever joins them judges.
	k.send(packettest.IPv4{Src: k.addr, Dst: addrPort("203.0.113.1:0").Addr(), Proto: 17, Offset: 1480, Payload: make([]byte, 16)}.Bytes())
	carried(who + " 17>203.0.113.1:0 36 bytes")
	k.expect()

	// What is the overlay's, the resolver's, nobody's or another's is not carried.
	k.send(packettest.UDP(k.at(4000), addrPort("169.254.0.2:53"), []byte("query")))
	k.send(packettest.TCP(k.at(4000), addrPort("10.255.1.77:80"), fSYN, 1, 0, nil))
	k.send(packettest.UDP(k.at(4000), addrPort("239.1.1.1:53"), nil))
	k.send(packettest.UDP(k.at(4000), addrPort("255.255.255.255:67"), nil))
	k.send(packettest.TCP(addrPort("10.255.1.9:4000"), addrPort("203.0.113.1:443"), fSYN, 1, 0, nil))
	carried()
	k.take()

	out.refuse = true
	k.send(packettest.TCP(k.at(4000), addrPort("203.0.113.1:443"), fSYN, 1, 0, nil))
	k.expect(fmt.Sprintf("icmp %s>%s 3/13", a.subnet.Addr(), k.addr))
	k.send(packettest.TCP(k.at(4000), addrPort("169.254.0.2:80"), fSYN, 1, 0, nil))
	k.expect("tcp 169.254.0.2:80>" + k.at(4000).String() + " RA")
}

func TestDeliver(t *testing.T) {
	w := newWorld(t)
	a := w.cell(1)
	k := a.container("web", 2)
	from := addrPort("203.0.113.1:53")
	b := packettest.UDP(from, k.at(4000), []byte("hello"))
	header := make([]byte, packet.VirtioLen)
	if r := a.path.Deliver(k.addr, k.incarnation, header, b[:20], b[20:]); r != Passed {
		t.Fatalf("deliver: %v", r)
	}
	if got := k.expect(fmt.Sprintf("udp %s>%s", from, k.at(4000))); got[0].payload() != "hello" {
		t.Errorf("payload %q", got[0].payload())
	}
	// A predecessor's traffic never comes to who has its address now.
	if r := a.path.Deliver(k.addr, k.incarnation+1, header, b); r != NoEndpoint {
		t.Errorf("another incarnation: %v", r)
	}
	if r := a.path.Deliver(addrPort("10.255.1.9:0").Addr(), k.incarnation, header, b); r != NoEndpoint {
		t.Errorf("nobody: %v", r)
	}
	k.expect()
}

// What comes from outside, or from the resolver, beyond a container's bandwidth is
// counted as what comes from other containers is.
func TestUndeliveredIsCounted(t *testing.T) {
	w := newWorld(t)
	a := w.cell(1)
	a.path.started.Store(false) // nobody reads the device
	addr := addrPort("10.255.1.2:4000")
	dev, _ := tuntest.New()
	slow := shape.Wrap(dev, shape.Limits{Ingress: shape.Rate{Rate: 1, Burst: 1500 * 8}})
	if err := a.path.Attach(fib.Local{Addr: addr.Addr(), App: "web", Incarnation: 7}, slow); err != nil {
		t.Fatal(err)
	}
	b := append(make([]byte, packet.VirtioLen), packettest.UDP(addrPort("203.0.113.1:53"), addr, make([]byte, 60000))...)
	before, refused := a.path.Stats(), 0
	for range 10 {
		switch r := a.path.Deliver(addr.Addr(), 7, b); r {
		case Passed:
		case Bandwidth:
			refused++
		default:
			t.Fatalf("deliver: %v", r)
		}
	}
	if refused == 0 {
		t.Fatal("everything was taken")
	}
	a.path.Reply(addr, addrPort("169.254.0.2:53"), make([]byte, 60000))
	a.dropped(before, slices.Repeat([]Reason{Bandwidth}, refused+1)...)
}
