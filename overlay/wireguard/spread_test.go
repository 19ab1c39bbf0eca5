package wireguard

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"tulle/overlay/udp/udptest"
)

// spreads makes two cells of four sockets that know each other as what they are.
func spreads(t *testing.T) (*udptest.Network, *cell, *cell) {
	net := udptest.New()
	a, b := newCellWith(t, net, 1, 4), newCellWith(t, net, 2, 4)
	a.meets(b, func(p *Peer) { p.Spread = true })
	b.meets(a, func(p *Peer) { p.Spread = true })
	return net, a, b
}

// Flows go from several ports, each from one; all go to the published port, and the
// peer does not take that for moving about.
func TestFlowsGoFromSeveralPorts(t *testing.T) {
	net, a, b := spreads(t)
	speak(a, b)
	settle(a, b)
	var mu sync.Mutex
	ports, to := map[uint32]map[uint16]bool{}, map[netip.AddrPort]bool{}
	var flow uint32
	net.SetHook(func(d *udptest.Datagram) udptest.Fate {
		mu.Lock()
		defer mu.Unlock()
		to[d.To] = true
		if d.From.Addr() == a.conn.Local().Addr() {
			if ports[flow] == nil {
				ports[flow] = map[uint16]bool{}
			}
			ports[flow][d.From.Port()] = true
		}
		return udptest.Deliver
	})
	const flows = 16
	for range 5 {
		for f := range uint32(flows) {
			mu.Lock()
			flow = f
			mu.Unlock()
			body := fmt.Sprint("flow ", f)
			if err := a.tunnel.Send(b.tunnel.Address(), f, []byte(body), 0); err != nil {
				t.Fatal(err)
			}
			b.expect(a, body)
			b.send(a, "answer")
			a.expect(b, "answer")
		}
	}
	mu.Lock()
	defer mu.Unlock()
	all := map[uint16]bool{}
	for f := range uint32(flows) {
		if len(ports[f]) != 1 {
			t.Errorf("flow %d goes from ports %v", f, ports[f])
		}
		for p := range ports[f] {
			all[p] = true
		}
	}
	if len(all) != 4 {
		t.Errorf("all flows go from ports %v, want four", all)
	}
	if len(to) != 2 || !to[a.conn.Local()] || !to[b.conn.Local()] {
		t.Errorf("datagrams go to %v, want the published ports alone", to)
	}
}

// A peer that is somewhere else than published may be behind a translation that lets
// only answers in: it is sent to from the port that it knows, until it is back.
func TestMovedPeerIsSentToFromOnePort(t *testing.T) {
	net, a, b := spreads(t)
	speak(a, b)
	settle(a, b)
	elsewhere := netip.MustParseAddrPort("198.51.100.7:4444")
	var mu sync.Mutex
	moved, from := true, map[uint16]bool{}
	net.SetHook(func(d *udptest.Datagram) udptest.Fate {
		mu.Lock()
		defer mu.Unlock()
		if d.From == b.conn.Local() && moved {
			d.From = elsewhere
		}
		if d.To == elsewhere {
			d.To = b.conn.Local()
		}
		if d.From.Addr() == a.conn.Local().Addr() {
			from[d.From.Port()] = true
		}
		return udptest.Deliver
	})
	send := func(want int) {
		t.Helper()
		b.send(a, "here")
		a.expect(b, "here")
		mu.Lock()
		clear(from)
		mu.Unlock()
		for f := range uint32(8) {
			if err := a.tunnel.Send(b.tunnel.Address(), f, []byte("there"), 0); err != nil {
				t.Fatal(err)
			}
			b.expect(a, "there")
		}
		mu.Lock()
		defer mu.Unlock()
		if len(from) != want {
			t.Errorf("sent from ports %v, want %d", from, want)
		}
	}
	send(1)
	mu.Lock()
	moved = false
	mu.Unlock()
	send(4)
}
