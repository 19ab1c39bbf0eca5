package datapath

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"tulle/overlay/fib"
	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
	"tulle/overlay/tun"
	"tulle/overlay/tun/tuntest"
	"tulle/overlay/udp/udptest"
	"tulle/policy"
	"tulle/policy/table"
)

// live is two cells with their own goroutines, joined by a network in memory.
type live struct {
	t     testing.TB
	ctx   context.Context
	net   *udptest.Network
	cells [2]*liveCell
}

type liveCell struct {
	path     *Path
	fib      *fib.Table
	policies *table.Table
	conn     *udptest.Conn
	subnet   netip.Prefix
}

type liveContainer struct {
	cell *liveCell
	addr netip.Addr
	end  *tuntest.Container
}

func newLive(t testing.TB, change ...func(l *live, i int, o *Options)) *live {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	l := &live{t: t, ctx: ctx, net: udptest.New()}
	for i := range l.cells {
		c := &liveCell{policies: table.New(), subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 255, byte(i + 1), 0}), 24)}
		var err error
		if c.conn, err = l.net.Listen(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(i + 1)}), 0)); err != nil {
			t.Fatal(err)
		}
		if c.fib, err = fib.New(overlayNet, c.subnet); err != nil {
			t.Fatal(err)
		}
		o := Options{Conn: c.conn, FIB: c.fib, Policies: c.policies, Log: slog.New(slog.DiscardHandler)}
		l.cells[i] = c
		for _, f := range change {
			f(l, i, &o)
		}
		if c.path, err = New(o); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.path.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	for i, c := range l.cells {
		other := l.cells[1-i]
		c.fib.Update(func(b *fib.Builder) {
			b.PutPeer(fib.Peer{Name: fmt.Sprint("cell-", 1-i), Underlay: other.conn.Local(), Subnet: other.subnet, Generation: 1})
		})
	}
	return l
}

func (l *live) container(cell int, app policy.AppID, host byte) *liveContainer {
	l.t.Helper()
	c := l.cells[cell]
	a := c.subnet.Addr().As4()
	a[3] = host
	k := &liveContainer{cell: c, addr: netip.AddrFrom4(a)}
	var dev tun.Device
	dev, k.end = tuntest.New()
	if err := c.path.Attach(fib.Local{Addr: k.addr, App: app, Tag: tags[app], Incarnation: 1<<32 | uint64(host)}, dev); err != nil {
		l.t.Fatal(err)
	}
	l.cells[1-cell].fib.Update(func(b *fib.Builder) {
		b.PutRemote(fib.Remote{Addr: k.addr, App: app, Tag: tags[app], Incarnation: 1<<32 | uint64(host)})
	})
	return k
}

func (l *live) start() {
	for _, c := range l.cells {
		c.path.Start()
	}
}

// until takes packets out until one with the payload comes, and returns the
// others.
func (k *liveContainer) until(l *live, payload string) []received {
	l.t.Helper()
	var others []received
	for {
		v, p, err := k.end.Receive(l.ctx)
		if err != nil {
			l.t.Fatalf("%s waits for %q: %v", k.addr, payload, err)
		}
		r := received{v: v, p: p}
		if err := packet.Parse(p, &r.h); err != nil {
			l.t.Fatal(err)
		}
		if r.h.Proto == packet.ProtoUDP && r.payload() == payload {
			return others
		}
		others = append(others, r)
	}
}

func (k *liveContainer) at(port uint16) netip.AddrPort { return netip.AddrPortFrom(k.addr, port) }

// A cell isn't deaf for good because the kernel was out of memory for a moment.
func TestSocketThatFailsIsReadAgain(t *testing.T) {
	var socket udptest.Failing
	socket.Left.Store(4)
	l := newLive(t, func(_ *live, i int, o *Options) {
		if i == 1 {
			socket.Conn = o.Conn
			o.Conn = &socket
		}
	})
	a, b := l.container(0, "web", 2), l.container(1, "db", 3)
	for _, c := range l.cells {
		c.policies.Add(rule("web db udp 9"))
	}
	l.start()
	a.end.Send(packettest.UDP(a.at(1), b.at(9), []byte("hello")))
	b.until(l, "hello")
	if left := socket.Left.Load(); left >= 0 {
		t.Errorf("%d errors were not met", left)
	}
}

// Two apps without any policy never meet: both ends send to each other from fixed
// ports at once, whatever can open, answer or go on with a conversation, through a
// network that repeats and reorders. Beside them an allowed flow runs.
func TestTwoAppsWithoutPolicyNeverMeet(t *testing.T) {
	for name, cellOf := range map[string][2]int{"same cell": {0, 0}, "across cells": {0, 1}} {
		t.Run(name, func(t *testing.T) {
			l := newLive(t)
			var mu sync.Mutex
			rnd := rand.New(rand.NewPCG(1, 2))
			l.net.SetHook(func(*udptest.Datagram) udptest.Fate {
				mu.Lock()
				defer mu.Unlock()
				if rnd.IntN(10) == 0 {
					return udptest.Duplicate
				}
				return udptest.Deliver
			})
			a, b := l.container(cellOf[0], "web", 2), l.container(cellOf[1], "db", 3)
			third := [2]*liveContainer{l.container(cellOf[0], "other", 4), l.container(cellOf[1], "other", 5)}
			for _, c := range l.cells {
				c.policies.Add(rule("other other udp 9"))
				c.policies.Add(rule("web other udp 9"))
				c.policies.Add(rule("other db udp 9"))
			}
			l.start()
			const packets = 5000
			flags := []uint8{fSYN, fSYN | fACK, fACK, fACK | fPSH, fFIN | fACK, fRST, fRST | fACK}
			var wg sync.WaitGroup
			for _, ends := range [][2]*liveContainer{{a, b}, {b, a}} {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(uint64(ends[0].addr.As4()[3]), 3))
					from, to := ends[0].at(7000), ends[1].at(7000)
					for range packets {
						if rnd.IntN(2) == 0 {
							ends[0].end.Send(packettest.UDP(from, to, []byte("forbidden")))
						} else {
							ends[0].end.Send(packettest.TCP(from, to, flags[rnd.IntN(len(flags))], rnd.Uint32N(4), rnd.Uint32N(4), []byte("forbidden")))
						}
						for ends[0].end.Pending() > 1000 {
							check(l, ends[0])
						}
					}
				})
			}
			wg.Wait()
			// Each device is read in order, and so is the socket: behind these there
			// is nothing on its way any more.
			a.end.Send(packettest.UDP(a.at(1), third[1].at(9), []byte("a is done")))
			third[1].until(l, "a is done")
			third[1].end.Send(packettest.UDP(third[1].at(1), b.at(9), []byte("look")))
			for _, r := range b.until(l, "look") {
				refusal(t, r)
			}
			b.end.Send(packettest.UDP(b.at(9), third[1].at(1), []byte("b is done")))
			third[1].until(l, "b is done")
			third[0].end.Send(packettest.UDP(third[0].at(1), third[1].at(9), []byte("all is done")))
			third[1].until(l, "all is done")
			for _, k := range []*liveContainer{a, b} {
				for k.end.Pending() > 0 {
					check(l, k)
				}
			}
			var dropped uint64
			for _, c := range l.cells {
				dropped += c.path.Stats().Egress.Drops[NoPolicy]
			}
			if dropped != 2*packets {
				t.Errorf("%d packets refused at their source, want all %d", dropped, 2*packets)
			}
		})
	}
}

// check takes one packet out and fails if it is more than a refusal.
func check(l *live, k *liveContainer) {
	_, p, err := k.end.Receive(l.ctx)
	if err != nil {
		l.t.Error(err)
		return
	}
	r := received{p: p}
	if err := packet.Parse(p, &r.h); err != nil {
		l.t.Error(err)
		return
	}
	refusal(l.t, r)
}

func refusal(t testing.TB, r received) {
	if r.h.Proto == packet.ProtoICMP || r.h.Proto == packet.ProtoTCP && r.h.TCPFlags&fRST != 0 && r.payload() == "" {
		return
	}
	t.Errorf("a byte got through: %s %q", r, r.payload())
}

// Policies, tags, peers and containers change while packets run; when the last
// removal's Cut has returned, nothing passes any more.
func TestChangesUnderTraffic(t *testing.T) {
	l := newLive(t)
	a, b := l.container(0, "web", 2), l.container(1, "db", 3)
	l.start()
	r := rule("web db udp 53")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, s := range []struct {
		k    *liveContainer
		p, q []byte
	}{
		{a, packettest.UDP(a.at(1), b.at(53), []byte("query")), packettest.TCP(a.at(1), b.at(53), fACK, 1, 1, nil)},
		{b, packettest.UDP(b.at(53), a.at(1), []byte("reply")), packettest.TCP(b.at(53), a.at(1), fACK, 1, 1, nil)},
	} {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s.k.end.Send(s.p)
				s.k.end.Send(s.q)
				for s.k.end.Pending() > 100 {
					if _, _, err := s.k.end.Receive(l.ctx); err != nil {
						return
					}
				}
				runtime.Gosched()
			}
		})
	}
	for i := range 200 {
		for j, c := range l.cells {
			c.policies.Add(r)
			if i%10 == 0 {
				dev, _ := tuntest.New()
				ep := fib.Local{Addr: c.subnet.Addr().Next().Next().Next().Next(), App: "web", Tag: tags["web"], Incarnation: uint64(i + 1)}
				if err := c.path.Attach(ep, dev); err != nil {
					t.Fatal(err)
				}
				c.path.Detach(ep.Addr)
			}
			c.fib.Update(func(bl *fib.Builder) {
				other := l.cells[1-j]
				bl.PutPeer(fib.Peer{Name: fmt.Sprint("cell-", 1-j), Underlay: other.conn.Local(), Subnet: other.subnet, Generation: 1})
				bl.SetTag("other", policy.Tag(100+i))
			})
			c.path.Tick(uint32(i))
			c.path.Stats()
		}
		for _, c := range l.cells {
			c.policies.Remove(r)
			c.path.Cut([]Pair{{r.Src, r.Dst}})
		}
		for j, c := range l.cells {
			c.path.flows.Each(func(f *flowFlow) {
				t.Errorf("round %d: cell %d still has a flow %v", i, j, f.Key)
			})
		}
	}
	close(stop)
	wg.Wait()
}

func TestAttachDetachClose(t *testing.T) {
	before := runtime.NumGoroutine()
	l := newLive(t)
	c := l.cells[0]
	k := l.container(0, "web", 2)
	dev, _ := tuntest.New()
	for name, ep := range map[string]fib.Local{
		"the same address":   {Addr: k.addr, Incarnation: 1},
		"the cell's address": {Addr: c.subnet.Addr(), Incarnation: 1},
		"another's lease":    {Addr: l.cells[1].subnet.Addr().Next(), Incarnation: 1},
	} {
		if err := c.path.Attach(ep, dev); err == nil {
			t.Errorf("%s: attached", name)
		}
	}
	l.start()
	other := l.container(0, "web", 3)
	c.path.Detach(k.addr)
	<-k.end.Closed()
	for range 2 {
		for _, c := range l.cells {
			if err := c.path.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	<-other.end.Closed()
	if err := c.path.Attach(fib.Local{Addr: k.addr, Incarnation: 2}, dev); err != ErrClosed {
		t.Errorf("attached to a closed path: %v", err)
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines left", n-before)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("a path without a socket")
	}
}
