package fib

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"

	"tulle/policy"
)

var (
	overlay = netip.MustParsePrefix("10.255.0.0/16")
	self    = netip.MustParsePrefix("10.255.1.0/24")
)

func newTable(t testing.TB) *Table {
	t.Helper()
	table, err := New(overlay, self)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func peer(n int) Peer {
	return Peer{
		Name:     fmt.Sprint("cell-", n),
		Underlay: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 4789),
		Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 255, byte(n), 0}), 24), Generation: 1,
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestNewChecksItsNetworks(t *testing.T) {
	for _, c := range []struct {
		overlay, self string
		ok            bool
	}{
		{"10.255.0.0/16", "10.255.3.0/24", true},
		{"10.0.0.0/8", "10.255.3.0/26", true},
		{"10.255.0.0/16", "10.254.3.0/24", false},
		{"10.255.0.0/16", "10.0.0.0/8", false},
		{"0.0.0.0/0", "10.0.0.0/8", false},
		{"fd00::/64", "fd00::/96", false},
	} {
		if _, err := New(netip.MustParsePrefix(c.overlay), netip.MustParsePrefix(c.self)); (err == nil) != c.ok {
			t.Errorf("%s in %s: %v", c.self, c.overlay, err)
		}
	}
}

func TestWhoIsWhere(t *testing.T) {
	table := newTable(t)
	var id uint32
	table.Update(func(b *Builder) {
		id = b.PutPeer(peer(2))
		if !b.PutLocal(Local{Addr: addr("10.255.1.7"), App: "web", Tag: 1, Incarnation: 5, Slot: 3}) {
			t.Error("a local container was refused")
		}
		if !b.PutRemote(Remote{Addr: addr("10.255.2.7"), App: "web", Tag: 1, Incarnation: 6}) {
			t.Error("a remote container was refused")
		}
		for _, a := range []string{"10.255.1.0", "10.255.2.9", "10.254.1.1"} {
			if b.PutLocal(Local{Addr: addr(a)}) {
				t.Errorf("local %s was taken", a)
			}
		}
		for _, a := range []string{"10.255.2.0", "10.255.3.9", "10.255.1.9", "8.8.8.8"} {
			if b.PutRemote(Remote{Addr: addr(a)}) {
				t.Errorf("remote %s was taken", a)
			}
		}
	})
	s := table.Load()
	if l, r, p := s.Lookup(addr("10.255.1.7")); l == nil || l.Slot != 3 || r != nil || p != nil {
		t.Errorf("local: %v %v %v", l, r, p)
	}
	if l, r, p := s.Lookup(addr("10.255.2.7")); l != nil || r == nil || r.Peer != p || p.ID != id || id == 0 {
		t.Errorf("remote: %v %v %v", l, r, p)
	}
	if l, r, p := s.Lookup(addr("10.255.2.8")); l != nil || r != nil || p == nil {
		t.Errorf("in a lease: %v %v %v", l, r, p)
	}
	for _, a := range []string{"10.255.3.1", "10.255.1.8", "8.8.8.8", "::1"} {
		if l, r, p := s.Lookup(addr(a)); l != nil || r != nil || p != nil {
			t.Errorf("%s: %v %v %v", a, l, r, p)
		}
	}
	if peers, locals, remotes := s.Len(); peers != 1 || locals != 1 || remotes != 1 {
		t.Errorf("%d peers, %d locals, %d remotes", peers, locals, remotes)
	}
}

func TestUnderlayOfPeers(t *testing.T) {
	table := newTable(t)
	silk := peer(3)
	silk.Kind = Silk
	table.Update(func(b *Builder) { b.PutPeer(peer(2)); b.PutPeer(silk) })
	find := func(s string) string {
		if p := table.Load().PeerByUnderlay(netip.MustParseAddrPort(s)); p != nil {
			return p.Name
		}
		return ""
	}
	for from, want := range map[string]string{
		"192.0.2.2:4789": "cell-2", "192.0.2.2:5798": "cell-2", "192.0.2.2:11852": "cell-2", "192.0.2.2:12861": "", "192.0.2.2:4790": "", "192.0.2.2:3780": "", "192.0.2.2:9": "", "192.0.2.3:4789": "cell-3", "192.0.2.3:51000": "cell-3", "192.0.2.9:4789": "",
	} {
		if got := find(from); got != want {
			t.Errorf("%s is %q, want %q", from, got, want)
		}
	}
	// Cells that share an address are told apart by their ports.
	beside := peer(5)
	beside.Underlay = netip.MustParseAddrPort("192.0.2.2:6807")
	table.Update(func(b *Builder) { b.PutPeer(beside) })
	for from, want := range map[string]string{
		"192.0.2.2:4789": "cell-2", "192.0.2.2:5798": "cell-2", "192.0.2.2:6807": "cell-5", "192.0.2.2:13870": "cell-5", "192.0.2.2:14879": "",
	} {
		if got := find(from); got != want {
			t.Errorf("%s is %q beside another cell, want %q", from, got, want)
		}
	}
	before := table.Load()
	table.Update(func(b *Builder) { b.DeletePeer("cell-5") })
	if find("192.0.2.2:6807") != "cell-2" {
		t.Errorf("a port of a cell that is gone is %q", find("192.0.2.2:6807"))
	}
	if p := before.PeerByUnderlay(netip.MustParseAddrPort("192.0.2.2:6807")); p == nil || p.Name != "cell-5" {
		t.Errorf("an earlier snapshot has changed: %v", p)
	}
	moved := peer(2)
	moved.Underlay = netip.MustParseAddrPort("192.0.2.22:4789")
	table.Update(func(b *Builder) { b.PutPeer(moved) })
	if find("192.0.2.2:4789") != "" || find("192.0.2.22:4789") != "cell-2" {
		t.Error("the old underlay address is still the peer's")
	}
}

// A peer keeps its number and its containers while it is who it was.
func TestPeerIdentity(t *testing.T) {
	table := newTable(t)
	put := func(p Peer) (id uint32) {
		table.Update(func(b *Builder) { id = b.PutPeer(p) })
		return id
	}
	first := put(peer(2))
	table.Update(func(b *Builder) { b.PutRemote(Remote{Addr: addr("10.255.2.7"), App: "web"}) })
	moved := peer(2)
	moved.Underlay, moved.Mode = netip.MustParseAddrPort("192.0.2.77:1"), WireGuard
	if id := put(moved); id != first {
		t.Errorf("a new address made it another peer")
	}
	_, r, p := table.Load().Lookup(addr("10.255.2.7"))
	if r == nil || r.Peer != p || p.Mode != WireGuard {
		t.Errorf("its container: %v %v", r, p)
	}
	again := peer(2)
	again.Generation = 2
	if id := put(again); id == first || id == 0 {
		t.Errorf("a new generation is number %d, as the old", id)
	}
	if _, r, _ := table.Load().Lookup(addr("10.255.2.7")); r != nil {
		t.Error("a container outlived its cell's lease")
	}
	if _, _, remotes := table.Load().Len(); remotes != 0 {
		t.Errorf("%d remotes are counted", remotes)
	}
	for _, subnet := range []string{"10.255.1.0/24", "10.255.0.0/16", "10.255.1.128/25", "11.0.0.0/24", "10.0.0.0/8"} {
		p := peer(9)
		p.Subnet = netip.MustParsePrefix(subnet)
		if id := put(p); id != 0 {
			t.Errorf("a peer got %s", subnet)
		}
	}
	table.Update(func(b *Builder) { b.DeletePeer("cell-2") })
	if _, _, p := table.Load().Lookup(addr("10.255.2.1")); p != nil {
		t.Error("a deleted peer still has its lease")
	}
}

// A lease that goes from one peer to another in either order of the news.
func TestLeaseChangesHands(t *testing.T) {
	for _, order := range []string{"new first", "old first"} {
		table := newTable(t)
		other := peer(2)
		other.Name, other.Underlay = "cell-x", netip.MustParseAddrPort("192.0.2.99:1")
		table.Update(func(b *Builder) {
			b.PutPeer(peer(2))
			b.PutRemote(Remote{Addr: addr("10.255.2.1"), App: "web"})
		})
		table.Update(func(b *Builder) {
			if order == "new first" {
				b.PutPeer(other)
				b.DeletePeer("cell-2")
			} else {
				b.DeletePeer("cell-2")
				b.PutPeer(other)
			}
		})
		if _, r, p := table.Load().Lookup(addr("10.255.2.1")); p == nil || p.Name != "cell-x" || r != nil {
			t.Errorf("%s: the lease is %v's, with %v in it", order, p, r)
		}
	}
}

func TestSetTag(t *testing.T) {
	table := newTable(t)
	table.Update(func(b *Builder) {
		b.PutPeer(peer(2))
		b.PutLocal(Local{Addr: addr("10.255.1.7"), App: "web", Slot: 4, Incarnation: 1})
		b.PutRemote(Remote{Addr: addr("10.255.2.7"), App: "web", Incarnation: 2})
		b.PutRemote(Remote{Addr: addr("10.255.2.8"), App: "db", Incarnation: 3})
	})
	old := table.Load()
	table.Update(func(b *Builder) { b.SetTag("web", 9) })
	s := table.Load()
	l, _, _ := s.Lookup(addr("10.255.1.7"))
	_, r, _ := s.Lookup(addr("10.255.2.7"))
	_, db, _ := s.Lookup(addr("10.255.2.8"))
	if l.Tag != 9 || l.Slot != 4 || r.Tag != 9 || r.Peer == nil || db.Tag != policy.NoTag {
		t.Errorf("%v %v %v", l, r, db)
	}
	if l, _, _ := old.Lookup(addr("10.255.1.7")); l.Tag != policy.NoTag {
		t.Error("a published snapshot changed")
	}
}

// Random changes against maps; and no snapshot ever changes after its time.
func TestAgainstMaps(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	table := newTable(t)
	peers, ends := map[string]Peer{}, map[netip.Addr]Remote{}
	// Leases of all sizes, which do not overlap.
	subnets := []string{"10.255.2.0/24", "10.255.4.0/22", "10.255.8.0/26", "10.255.8.64/26", "10.255.9.9/32", "10.255.128.0/20"}
	holder := func(a netip.Addr) string {
		for n, p := range peers {
			if p.Subnet.Contains(a) {
				return n
			}
		}
		return ""
	}
	random := func() netip.Addr {
		p := netip.MustParsePrefix(subnets[rnd.IntN(len(subnets))])
		a := p.Addr().As4()
		n := uint32(a[2])<<8 | uint32(a[3]) + uint32(rnd.IntN(1<<(32-p.Bits())))
		return netip.AddrFrom4([4]byte{a[0], a[1], byte(n >> 8), byte(n)})
	}
	type old struct {
		s *Snapshot
		a netip.Addr
		r *Remote
		p *Peer
	}
	var history []old
	for range 3000 {
		table.Update(func(b *Builder) {
			for range 1 + rnd.IntN(4) {
				a := random()
				switch rnd.IntN(8) {
				case 0:
					i := rnd.IntN(len(subnets))
					p := Peer{Name: fmt.Sprint(i), Subnet: netip.MustParsePrefix(subnets[i]), Generation: uint64(rnd.IntN(3)), Underlay: netip.AddrPortFrom(addr("192.0.2.1"), uint16(1+i))}
					if was, ok := peers[p.Name]; ok && was.Generation != p.Generation {
						for a := range ends {
							if p.Subnet.Contains(a) {
								delete(ends, a)
							}
						}
					}
					peers[p.Name] = p
					b.PutPeer(p)
				case 1:
					n := fmt.Sprint(rnd.IntN(len(subnets)))
					for a := range ends {
						if holder(a) == n {
							delete(ends, a)
						}
					}
					delete(peers, n)
					b.DeletePeer(n)
				case 2:
					delete(ends, a)
					b.DeleteRemote(a)
				default:
					h := holder(a)
					r := Remote{Addr: a, App: policy.AppID(fmt.Sprint(rnd.IntN(5))), Incarnation: rnd.Uint64()}
					ok := h != "" && peers[h].Subnet.Addr() != a
					if ok {
						ends[a] = r
					}
					if b.PutRemote(r) != ok {
						t.Fatalf("%s: taken %t", a, !ok)
					}
				}
			}
		})
		s := table.Load()
		for range 5 {
			a := random()
			_, r, p := s.Lookup(a)
			want, known := ends[a]
			if (r != nil) != known || known && (r.Incarnation != want.Incarnation || r.App != want.App || r.Peer != p) {
				t.Fatalf("%s: %+v, want %t %+v", a, r, known, want)
			}
			if h := holder(a); h == "" && p != nil || h != "" && (p == nil || p.Name != h || p.Generation != peers[h].Generation) {
				t.Fatalf("%s is in the lease of %+v, want %q", a, p, h)
			}
			history = append(history, old{s, a, r, p})
		}
		if np, _, nr := s.Len(); np != len(peers) || nr != len(ends) {
			t.Fatalf("%d peers, %d remotes, want %d, %d", np, nr, len(peers), len(ends))
		}
	}
	n := 0
	table.Load().Remotes(func(r *Remote) { n++ })
	if n != len(ends) {
		t.Errorf("visited %d remotes, want %d", n, len(ends))
	}
	for _, h := range history {
		if _, r, p := h.s.Lookup(h.a); r != h.r || p != h.p {
			t.Fatal("a published snapshot changed")
		}
	}
	apps := 0
	for _, set := range table.apps {
		apps += len(set)
	}
	if apps != len(ends) {
		t.Errorf("%d containers are kept by app, want %d", apps, len(ends))
	}
}

// Readers see an update whole: two containers that change together agree.
func TestReadersSeeWholeUpdates(t *testing.T) {
	table := newTable(t)
	set := func(n uint64) {
		table.Update(func(b *Builder) {
			b.PutPeer(peer(2))
			b.PutRemote(Remote{Addr: addr("10.255.2.1"), App: "a", Incarnation: n})
			b.PutLocal(Local{Addr: addr("10.255.1.1"), App: "b", Incarnation: n})
		})
	}
	set(1)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s := table.Load()
				_, r, _ := s.Lookup(addr("10.255.2.1"))
				l := s.Local(addr("10.255.1.1"))
				if r.Incarnation != l.Incarnation {
					t.Errorf("%d and %d in one snapshot", r.Incarnation, l.Incarnation)
					return
				}
			}
		})
	}
	for n := range uint64(20_000) {
		set(n + 2)
	}
	close(stop)
	wg.Wait()
}

func TestLookupDoesNotAllocate(t *testing.T) {
	table := large(t)
	a := addr("10.255.77.7")
	from := netip.MustParseAddrPort("192.0.2.77:4789")
	if n := testing.AllocsPerRun(1000, func() {
		s := table.Load()
		if _, r, _ := s.Lookup(a); r == nil || s.PeerByUnderlay(from) == nil {
			t.Fatal("not found")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// large has 254 peers with 236 containers each, some 60,000.
func large(t testing.TB) *Table {
	table := newTable(t)
	table.Update(func(b *Builder) {
		for n := 2; n < 256; n++ {
			b.PutPeer(peer(n))
			for i := 1; i <= 236; i++ {
				b.PutRemote(Remote{Addr: netip.AddrFrom4([4]byte{10, 255, byte(n), byte(i)}), App: policy.AppID(fmt.Sprint(n % 50)), Incarnation: 1})
			}
		}
	})
	return table
}

func BenchmarkLookup(b *testing.B) {
	table := large(b)
	rnd := rand.New(rand.NewPCG(1, 1))
	addrs := make([]netip.Addr, 1<<14)
	for i := range addrs {
		addrs[i] = netip.AddrFrom4([4]byte{10, 255, byte(2 + rnd.IntN(250)), byte(1 + rnd.IntN(236))})
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		table.Load().Lookup(addrs[i&(1<<14-1)])
	}
}

// One container of 60,000 comes.
func BenchmarkUpdateOneOf60000(b *testing.B) {
	table := large(b)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		table.Update(func(bl *Builder) {
			bl.PutRemote(Remote{Addr: netip.AddrFrom4([4]byte{10, 255, byte(2 + i%250), byte(1 + i%236)}), App: "x", Incarnation: uint64(i)})
		})
	}
}

func BenchmarkPutPeerOf254(b *testing.B) {
	table := large(b)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		table.Update(func(bl *Builder) { bl.PutPeer(peer(2 + i%250)) })
	}
}
