package datapath

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"tulle/overlay/fib"
	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
	"tulle/overlay/udp/udptest"
)

// Many flows go to a peer from several ports, each from one, all to the published
// port; the peer knows whose they are, and each flow's packets come in their order.
func TestFlowsGoFromSeveralPorts(t *testing.T) {
	l := newLive(t, func(l *live, i int, o *Options) {
		at := l.cells[i].conn.Local()
		for n := 1; n < fib.SourcePorts; n++ {
			c, err := l.net.Listen(netip.AddrPortFrom(at.Addr(), fib.SourcePort(at.Port(), n)))
			if err != nil {
				t.Fatal(err)
			}
			o.Beside = append(o.Beside, c)
		}
	})
	web, db := l.container(0, "web", 2), l.container(1, "db", 3)
	for _, c := range l.cells {
		c.policies.Add(rule("web db udp 53"))
	}
	l.start()
	const flows, each = 64, 20
	var mu sync.Mutex
	ports := map[uint16]map[uint16]bool{} // by the flow's own port
	to := map[netip.AddrPort]bool{}
	l.net.SetHook(func(d *udptest.Datagram) udptest.Fate {
		mu.Lock()
		defer mu.Unlock()
		var h packet.Header
		if err := packet.Parse(d.Payload[headroom:], &h); err != nil || h.Proto != packet.ProtoUDP {
			return udptest.Deliver // a probe
		}
		to[d.To] = true
		if ports[h.SrcPort] == nil {
			ports[h.SrcPort] = map[uint16]bool{}
		}
		ports[h.SrcPort][d.From.Port()] = true
		return udptest.Deliver
	})
	for i := range each {
		for f := range uint16(flows) {
			web.end.Send(packettest.UDP(web.at(1000+f), db.at(53), fmt.Appendf(nil, "%02d", i)))
		}
	}
	next := map[uint16]int{}
	for left := flows * each; left > 0; {
		_, p, err := db.end.Receive(l.ctx)
		if err != nil {
			t.Fatal(err)
		}
		r := received{p: p}
		if err := packet.Parse(p, &r.h); err != nil {
			t.Fatal(err)
		}
		for b := r.payload(); len(b) >= 2; b = b[2:] { // several may have been joined
			if want := fmt.Sprintf("%02d", next[r.h.SrcPort]); b[:2] != want {
				t.Fatalf("flow %d: %q came, want %q", r.h.SrcPort, b, want)
			}
			next[r.h.SrcPort]++
			left--
		}
	}
	mu.Lock()
	defer mu.Unlock()
	all := map[uint16]bool{}
	for f, from := range ports {
		if len(from) != 1 {
			t.Errorf("flow %d goes from ports %v", f, from)
		}
		for p := range from {
			all[p] = true
		}
	}
	if len(ports) != flows || len(all) != fib.SourcePorts {
		t.Errorf("%d flows go from ports %v, want %d", len(ports), all, fib.SourcePorts)
	}
	if len(to) != 1 || !to[l.cells[1].conn.Local()] {
		t.Errorf("frames go to %v, want the published port", to)
	}
}
