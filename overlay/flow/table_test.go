package flow

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"unsafe"
)

func key(i int) Key {
	return Key{
		Src:     netip.AddrFrom4([4]byte{10, 255, byte(i >> 8), byte(i)}),
		Dst:     netip.AddrFrom4([4]byte{10, 255, 200, byte(i >> 16)}),
		SrcPort: uint16(i * 7), DstPort: 80, Proto: 6,
	}
}

func newFlow(k Key) *Flow { return &Flow{Key: k, SrcSlot: NoSlot, DstSlot: NoSlot, Role: SourceHere} }

func TestRecordIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(record{}); n != 160 {
		t.Errorf("record is %d bytes, want 160", n)
	}
}

func TestWhatIsEnteredIsFoundBothWays(t *testing.T) {
	table := New(Limits{})
	table.Tick(7)
	want := Flow{
		Key:  Key{Src: netip.MustParseAddr("10.255.1.2"), Dst: netip.MustParseAddr("10.255.2.3"), SrcPort: 4000, DstPort: 80, Proto: 6},
		Role: SourceHere | Weak, SrcTag: 1, DstTag: 1<<32 - 1, SrcIncarnation: 1<<32 | 5, DstIncarnation: 9,
		Peer: 77, SrcSlot: 3, DstSlot: NoSlot, Generation: 1 << 40,
	}
	in := want
	if err := table.Insert(&in, &Segment{Bytes: 40, Flags: syn, Seq: 100}); err != nil {
		t.Fatal(err)
	}
	want.Packets[Forward], want.Bytes[Forward], want.Next[Forward], want.LastSeen = 1, 40, 101, 7
	for d, k := range []Key{want.Key, want.Key.Reverse()} {
		var got Flow
		dir, ok := table.Lookup(&k, &got)
		if !ok || dir != Direction(d) {
			t.Fatalf("%v: found %t, direction %d", k, ok, dir)
		}
		want.ref = got.ref
		if got != want {
			t.Errorf("got\n%+v, want\n%+v", got, want)
		}
	}
	for _, change := range []func(*Key){
		func(k *Key) { k.SrcPort++ }, func(k *Key) { k.DstPort++ }, func(k *Key) { k.Proto = 17 },
		func(k *Key) { k.Src = k.Src.Next() }, func(k *Key) { k.Dst = k.Dst.Next() },
		func(k *Key) { k.SrcPort, k.DstPort = k.DstPort, k.SrcPort },
	} {
		k := want.Key
		change(&k)
		if _, ok := table.Lookup(&k, new(Flow)); ok {
			t.Errorf("found %v", k)
		}
	}
	if n := table.EndpointLen(3); n != 1 {
		t.Errorf("slot 3 has %d flows", n)
	}
}

func TestIPv6Keys(t *testing.T) {
	table := New(Limits{})
	k := Key{Src: netip.MustParseAddr("fd00::1"), Dst: netip.MustParseAddr("fd00::2"), SrcPort: 1, DstPort: 2, Proto: 17}
	if err := table.Insert(newFlow(k), nil); err != nil {
		t.Fatal(err)
	}
	back := k.Reverse()
	var f Flow
	if d, ok := table.Lookup(&back, &f); !ok || d != Backward || f.Key != k {
		t.Errorf("found %t %d %v", ok, d, f.Key)
	}
}

// Against a map: entering, replacing, deleting, expiring, enumerating.
func TestAgainstAMap(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	table := New(Limits{Flows: 64 * 400})
	twin := map[Key]Flow{}
	now := uint32(0)
	for range 100_000 {
		k := key(rnd.IntN(3000))
		if rnd.IntN(2) == 0 {
			k = k.Reverse()
		}
		old, there := twin[k]
		if !there {
			old, there = twin[k.Reverse()]
		}
		alive := there && now-old.LastSeen <= lifeSynSent
		var f Flow
		switch rnd.IntN(8) {
		case 0, 1:
			f = *newFlow(k)
			f.SrcTag, f.DstTag = 1, 1
			f.Generation = rnd.Uint64()
			if err := table.Insert(&f, nil); err != nil {
				t.Fatal(err)
			}
			delete(twin, k.Reverse())
			f.LastSeen = now
			twin[k] = f
		case 2:
			if _, ok := table.Lookup(&k, &f); ok {
				if !table.Delete(f.Ref(), nil) || table.Delete(f.Ref(), nil) || table.Alive(f.Ref()) {
					t.Fatal("deleting once is deleting once")
				}
				delete(twin, k)
				delete(twin, k.Reverse())
			}
		case 3:
			if rnd.IntN(200) == 0 {
				now += uint32(rnd.IntN(40))
				table.Tick(now)
			}
		default:
			_, ok := table.Lookup(&k, &f)
			if ok != alive || ok && f.Generation != old.Generation {
				t.Fatalf("%v: found %t, want %t", k, ok, alive)
			}
		}
	}
	for range sweepEvery {
		now++
		table.Tick(now)
	}
	want := 0
	for _, f := range twin {
		if now-f.LastSeen <= lifeSynSent {
			want++
		}
	}
	n, pairs := 0, 0
	table.Each(func(f *Flow) { n++ })
	table.EachPair(1, 1, func(*Flow) { pairs++ })
	if n != want || pairs != want {
		t.Errorf("enumerated %d, by pair %d, want %d", n, pairs, want)
	}
}

func TestZeroRefIsNoFlow(t *testing.T) {
	table := New(Limits{})
	var f Flow
	table.Touch(f.Ref(), Forward, &Segment{})
	table.SetGeneration(f.Ref(), 1)
	if table.Alive(f.Ref()) || table.Delete(f.Ref(), nil) {
		t.Error("the zero Ref is a flow")
	}
}

func TestEachPairFindsItsFlowsAlone(t *testing.T) {
	table := New(Limits{})
	for i := range 1000 {
		f := newFlow(key(i))
		f.SrcTag, f.DstTag = 1, 2
		if i%10 == 0 {
			f.DstTag = 3
		}
		if err := table.Insert(f, nil); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	table.EachPair(1, 3, func(f *Flow) {
		if f.DstTag != 3 {
			t.Errorf("destination tag %d", f.DstTag)
		}
		if !table.Delete(f.Ref(), nil) {
			t.Error("not deleted")
		}
		n++
	})
	if n != 100 || table.Len() != 900 {
		t.Errorf("%d of the pair, %d left", n, table.Len())
	}
	table.EachPair(1, 3, func(*Flow) { t.Error("a deleted flow") })
	table.EachPair(2, 1, func(*Flow) { t.Error("the other way round") })
}

func TestBounds(t *testing.T) {
	table := New(Limits{Flows: 64 * 2, PerEndpoint: 10, Slots: 4})
	full := 0
	for i := range 1000 {
		switch err := table.Insert(newFlow(key(i)), nil); {
		case errors.Is(err, ErrFull):
			full++
		case err != nil:
			t.Fatal(err)
		}
	}
	if table.Len() > 128 || full != 1000-table.Len() {
		t.Errorf("%d flows, %d refused", table.Len(), full)
	}
	// Expired ones make room, once their numbers have rested.
	for now := uint32(200); now < 220; now++ {
		table.Tick(now)
	}
	if table.Len() != 0 {
		t.Fatalf("%d flows outlived their time", table.Len())
	}
	for i := range 10 {
		f := newFlow(key(i * 1000))
		f.SrcSlot = 1
		if err := table.Insert(f, nil); err != nil && !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
	}
	had := table.EndpointLen(1)
	f := newFlow(key(77777))
	f.SrcSlot, f.DstSlot = 2, 1
	for i := range 20 {
		f.SrcPort = uint16(i)
		if err := table.Insert(f, nil); errors.Is(err, ErrEndpointFull) {
			had = -1
			break
		}
	}
	if had != -1 || table.EndpointLen(1) != 10 || table.EndpointLen(2) > 10 {
		t.Errorf("endpoint has %d flows, want 10", table.EndpointLen(1))
	}
	f.SrcSlot, f.DstSlot = 99, NoSlot
	if err := table.Insert(f, nil); err == nil {
		t.Error("a slot that is none")
	}
	table.Each(func(f *Flow) { table.Delete(f.Ref(), nil) })
	if table.EndpointLen(1) != 0 || table.EndpointLen(2) != 0 || table.Len() != 0 {
		t.Errorf("%d, %d, %d left", table.EndpointLen(1), table.EndpointLen(2), table.Len())
	}
}

// Each state is kept for as long as Linux keeps it by default: nf_conntrack_tcp_timeout_
// syn_sent 120, syn_recv 60, established 432000, fin_wait 120, close_wait 60, last_ack 30,
// time_wait 120, close 10; nf_conntrack_udp_timeout 30, _stream 120.
func TestStatesAndLifetimes(t *testing.T) {
	type seg struct {
		d     Direction
		flags uint8
	}
	f, b := Forward, Backward
	for _, c := range []struct {
		name  string
		proto uint8
		segs  []seg
		life  uint32
		over  bool
	}{
		{"udp", 17, []seg{{f, 0}}, 30, false},
		{"udp, more of the same", 17, []seg{{f, 0}, {f, 0}}, 30, false},
		{"udp answered", 17, []seg{{f, 0}, {b, 0}}, 120, false},
		{"syn", 6, []seg{{f, syn}}, 120, false},
		{"syn ack", 6, []seg{{f, syn}, {b, syn | ack}}, 60, false},
		{"established", 6, []seg{{f, syn}, {b, syn | ack}, {f, ack}}, 432000, false},
		{"an initiator alone does not establish", 6, []seg{{f, syn}, {f, ack}, {f, ack}}, 120, false},
		{"picked up by the server", 6, []seg{{b, ack}, {f, ack}}, 432000, false},
		{"fin wait", 6, []seg{{f, syn}, {b, syn | ack}, {f, ack}, {f, fin | ack}}, 120, false},
		{"close wait", 6, []seg{{f, syn}, {b, syn | ack}, {f, ack}, {f, fin | ack}, {b, ack}}, 60, false},
		{"close wait, and the other end goes on", 6, []seg{{f, syn}, {b, syn | ack}, {f, ack}, {f, fin | ack}, {b, ack}, {b, ack}, {f, ack}}, 60, false},
		{"close wait of the server", 6, []seg{{f, syn}, {b, syn | ack}, {f, ack}, {b, fin | ack}, {f, ack}}, 60, false},
		{"last ack", 6, []seg{{f, syn}, {b, syn | ack}, {f, ack}, {f, fin | ack}, {b, ack}, {b, fin | ack}}, 30, true},
		{"last ack, both at once", 6, []seg{{f, syn}, {b, syn | ack}, {f, ack}, {f, fin | ack}, {b, fin | ack}}, 30, true},
		{"time wait", 6, []seg{{f, syn}, {b, syn | ack}, {f, ack}, {f, fin | ack}, {b, ack}, {b, fin | ack}, {f, ack}}, 120, true},
		{"reset", 6, []seg{{f, syn}, {b, rst | ack}}, 10, true},
		{"reset that was not believed", 6, []seg{{f, syn}, {b, syn | ack}, {f, ack}, {b, rst}, {f, ack}}, 432000, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := New(Limits{})
			fl := newFlow(key(1))
			fl.Proto = c.proto
			for i, s := range c.segs {
				segment := &Segment{Bytes: 40, Flags: s.flags, Backward: s.d == Backward}
				if i == 0 {
					if err := table.Insert(fl, segment); err != nil {
						t.Fatal(err)
					}
					continue
				}
				table.Touch(fl.Ref(), s.d, segment)
			}
			k := fl.Key
			var got Flow
			table.now.Store(c.life)
			if _, ok := table.Lookup(&k, &got); !ok || got.State.Over() != c.over {
				t.Errorf("at its last second: found %t, over %t", ok, got.State.Over())
			}
			table.now.Store(c.life + 1)
			if _, ok := table.Lookup(&k, &got); ok {
				t.Error("found after its time")
			}
			if got := got.Packets[Forward] + got.Packets[Backward]; got != uint64(len(c.segs)) {
				t.Errorf("counted %d packets", got)
			}
		})
	}
}

// A reader has looked at the clock, and before it looks at the flow the clock moves on
// and another packet of the flow comes.
func TestPacketFromTheFutureKeepsAFlow(t *testing.T) {
	table := New(Limits{})
	table.Tick(1000)
	f := newFlow(key(1))
	if err := table.Insert(f, nil); err != nil {
		t.Fatal(err)
	}
	table.now.Store(1001)
	table.Touch(f.Ref(), Forward, &Segment{Flags: ack})
	table.now.Store(1000)
	var got Flow
	if _, ok := table.Lookup(&f.Key, &got); !ok {
		t.Error("a flow that a packet came for after the reader's time counts as expired")
	}
}

// A number rests also from who read the clock before it moved on.
func TestNumberRestsFromALateReader(t *testing.T) {
	var s shard
	s.init(chunkSize)
	number, _ := s.take(7)
	s.free = append(s.free, resting{number: number, since: 8})
	for _, now := range []uint32{7, 9, 8 + rest} {
		got, ok := s.take(now)
		if again := now == 8+rest; !ok || (got == number) != again {
			t.Errorf("at %d: number %d, %t", now, got, ok)
		}
	}
}

func TestSequenceNumbers(t *testing.T) {
	table := New(Limits{})
	f := newFlow(key(1))
	if err := table.Insert(f, &Segment{Flags: syn, Seq: 1<<32 - 2}); err != nil {
		t.Fatal(err)
	}
	for _, s := range []struct {
		d   Direction
		seg Segment
	}{
		{Backward, Segment{Flags: syn | ack, Seq: 500, Ack: 1<<32 - 1}},
		{Forward, Segment{Flags: ack, Seq: 1<<32 - 1, Ack: 501, Len: 10}}, // wraps
		{Forward, Segment{Flags: ack, Seq: 1<<32 - 1, Ack: 501, Len: 5}},  // again, shorter
		{Backward, Segment{Flags: ack, Seq: 501, Ack: 9, Len: 100}},
		{Backward, Segment{Flags: ack, Seq: 300, Ack: 1<<32 - 1, Len: 10}}, // old
		{Backward, Segment{Flags: fin | ack, Seq: 601, Ack: 9}},
		{Forward, Segment{Flags: rst, Seq: 999999}}, // a RST moves nothing
	} {
		table.Touch(f.Ref(), s.d, &s.seg)
	}
	var got Flow
	if _, ok := table.Lookup(&f.Key, &got); !ok {
		t.Fatal("not found")
	}
	if got.Next != [2]uint32{9, 602} || got.Acked != [2]uint32{501, 9} {
		t.Errorf("next %v acked %v", got.Next, got.Acked)
	}
}

// Readers find the whole flow or none, while others come and go beside it and in
// its place.
func TestLookupsUnderChange(t *testing.T) {
	table := New(Limits{})
	const keep = 64
	for i := range keep {
		f := newFlow(key(i))
		f.SrcIncarnation, f.DstIncarnation, f.Generation = uint64(i), uint64(i), uint64(i)
		if err := table.Insert(f, nil); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for r := range 2 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(r), 1))
			var f Flow
			ahead := make([]Key, 100) // more than are taken at a time
			for {
				select {
				case <-stop:
					return
				default:
				}
				i := rnd.IntN(keep * 8)
				k := key(i)
				if ahead[rnd.IntN(len(ahead))] = k; rnd.IntN(50) == 0 {
					table.Ahead(ahead)
				}
				d, ok := table.Lookup(&k, &f)
				if !ok && i < keep {
					t.Errorf("flow %d was not found", i)
					return
				}
				if ok && (f.SrcIncarnation != uint64(i) || f.DstIncarnation != uint64(i) || f.Key != k) {
					t.Errorf("flow %d reads %+v", i, f)
					return
				}
				if ok {
					table.Touch(f.Ref(), d, &Segment{Bytes: 1, Flags: ack, Seq: rnd.Uint32()})
				}
			}
		})
	}
	rnd := rand.New(rand.NewPCG(9, 9))
	for n := range 20_000 {
		i := keep + rnd.IntN(keep*7)
		f := newFlow(key(i))
		if rnd.IntN(2) == 0 {
			f.SrcIncarnation, f.DstIncarnation = uint64(i), uint64(i)
			if err := table.Insert(f, nil); err != nil {
				t.Fatal(err)
			}
		} else if _, ok := table.Lookup(&f.Key, f); ok {
			table.Delete(f.Ref(), nil)
		}
		if n%200 == 0 {
			table.Tick(uint32(n / 200))
			table.EachPair(0, 0, func(*Flow) {})
		}
	}
	close(stop)
	wg.Wait()
}

// A packet of a known flow waits for nobody, whoever has the locks; a new flow waits for
// its shard alone.
func TestKnownFlowsNeedNoLock(t *testing.T) {
	table := New(Limits{})
	var keys []Key
	for i := range 1000 {
		keys = append(keys, key(i))
		if err := table.Insert(newFlow(keys[i]), nil); err != nil {
			t.Fatal(err)
		}
	}
	for i := range table.shards {
		table.shards[i].mu.Lock()
	}
	table.Ahead(keys)
	for _, k := range keys {
		var f Flow
		d, ok := table.Lookup(&k, &f)
		if !ok || !table.Alive(f.Ref()) {
			t.Fatalf("%v is not found", k)
		}
		table.Touch(f.Ref(), d, &Segment{Bytes: 1, Flags: ack})
		table.SetGeneration(f.Ref(), 1)
	}
	const held = 7
	for i := range table.shards {
		if i != held {
			table.shards[i].mu.Unlock()
		}
	}
	for i, entered := 1000, 0; entered < 1000; i++ {
		k := key(i)
		n := nameOf(&k)
		if n.hash(&table.seed)>>(64-shardBits) == held {
			continue
		}
		if err := table.Insert(newFlow(k), nil); err != nil {
			t.Fatal(err)
		}
		entered++
	}
	table.shards[held].mu.Unlock()
}

func TestLookupDoesNotAllocate(t *testing.T) {
	table := New(Limits{})
	f := newFlow(key(1))
	if err := table.Insert(f, nil); err != nil {
		t.Fatal(err)
	}
	k := f.Key
	seg := Segment{Bytes: 100, Flags: ack}
	keys := make([]Key, 100)
	if n := testing.AllocsPerRun(1000, func() {
		table.Ahead(keys)
		if d, ok := table.Lookup(&k, f); ok {
			table.Touch(f.Ref(), d, &seg)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A million flows fit 256 MiB, index and all.
func TestMemoryOfAMillionFlows(t *testing.T) {
	const flows, bar = 1_000_000, 256 << 20
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	table := New(Limits{}) // 1<<20: a shard has some more than others
	for i := range flows {
		f := newFlow(key(i))
		f.SrcTag, f.DstTag = 1, 2
		if err := table.Insert(f, nil); err != nil {
			t.Fatalf("flow %d: %v", i, err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	size := after.HeapAlloc - before.HeapAlloc
	t.Logf("%d MiB, %d bytes a flow", size>>20, size/flows)
	if table.Len() != flows || size > bar {
		t.Errorf("%d flows take %d MiB, the bar is %d", table.Len(), size>>20, bar>>20)
	}
	runtime.KeepAlive(table)
}

func BenchmarkLookup(b *testing.B) {
	for name, n := range map[string]int{"1,000": 1000, "1,000,000": 1_000_000} {
		b.Run(name, func(b *testing.B) {
			table := New(Limits{Flows: n + n/8 + 64*200})
			for i := range n {
				if err := table.Insert(newFlow(key(i)), nil); err != nil {
					b.Fatal(err)
				}
			}
			rnd := rand.New(rand.NewPCG(1, 1))
			keys := make([]Key, 1<<16)
			for i := range keys {
				keys[i] = key(rnd.IntN(n))
			}
			var f Flow
			seg := Segment{Bytes: 100, Flags: ack}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				d, _ := table.Lookup(&keys[i&(1<<16-1)], &f)
				table.Touch(f.Ref(), d, &seg)
			}
		})
	}
}

func BenchmarkInsertDelete(b *testing.B) {
	table := New(Limits{})
	f := newFlow(key(1))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		f.Key = key(i & 0xffffff)
		if err := table.Insert(f, nil); err != nil {
			b.Fatal(err)
		}
		table.Delete(f.Ref(), nil)
		if i%100_000 == 0 {
			table.Tick(uint32(i / 10_000))
		}
	}
}

func BenchmarkCutOneOfAMillion(b *testing.B) {
	table := New(Limits{Flows: 1_200_000})
	for i := range 1_000_000 {
		f := newFlow(key(i))
		f.SrcTag, f.DstTag = 1, 2
		if i%10_000 == 0 {
			f.DstTag = 3
		}
		if err := table.Insert(f, nil); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		n := 0
		table.EachPair(1, 3, func(*Flow) { n++ })
		if n != 100 {
			b.Fatal(n)
		}
	}
}
