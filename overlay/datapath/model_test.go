package datapath

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"tulle/overlay/fib"
	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
	"tulle/policy"
	"tulle/policy/table"
)

// The obvious twin of the data path: each cell has a set of rules and a map of
// flows, and every packet is judged by walking through what the design says.

type modelFlow struct {
	from, to       netip.AddrPort // from opened it
	fromInc, toInc uint64
	fromApp, toApp policy.AppID
	proto          uint8
	seen           uint32
	replied, est   bool
	finFrom, finTo bool
	finAcked       bool
	reset          bool
}

func (f *modelFlow) over() bool { return f.proto == 6 && (f.reset || f.finFrom && f.finTo) }

func (f *modelFlow) life() uint32 {
	switch {
	case f.proto == 17 && f.replied:
		return 120
	case f.proto == 17:
		return 30
	case f.reset:
		return 10
	case f.finFrom && f.finTo && !f.finAcked:
		return 30
	case f.finFrom != f.finTo && f.finAcked:
		return 60
	case f.finFrom || f.finTo:
		return 120
	case f.est:
		return 432000
	case f.replied:
		return 60
	}
	return 120
}

func (f *modelFlow) see(back bool, flags uint8, now uint32) {
	f.seen = now
	if f.proto == 17 {
		f.replied = f.replied || back
		return
	}
	if flags&fRST != 0 {
		f.reset = true
		return
	}
	f.reset = false
	f.replied = f.replied || back
	if !back && flags&fACK != 0 && flags&fSYN == 0 && f.replied {
		f.est = true
	}
	switch {
	case flags&fFIN != 0 && back && !f.finTo:
		f.finTo, f.finAcked = true, false
	case flags&fFIN != 0 && !back && !f.finFrom:
		f.finFrom, f.finAcked = true, false
	case flags&(fFIN|fSYN|fACK) == fACK && (f.finFrom || f.finTo):
		f.finAcked = true
	}
}

type modelCell struct {
	rules map[table.Rule]bool
	flows []*modelFlow
}

type model struct {
	now   uint32
	cells map[*testCell]*modelCell
	who   map[netip.Addr]*container
}

// at is who has an address, of either family: a container's two are one name.
func (m *model) at(a netip.AddrPort) *container { return m.who[fib.Name(a.Addr())] }

func (m *modelCell) allows(from, to policy.AppID, proto uint8, port uint16) bool {
	for r := range m.rules {
		if r.Src == tags[from] && r.Dst == tags[to] && uint8(r.Protocol) == proto && r.Ports.Contains(port) {
			return true
		}
	}
	return false
}

// find is the living flow of a packet, and whether the packet is its responder's.
func (m *model) find(c *modelCell, src, dst netip.AddrPort, proto uint8) (*modelFlow, bool) {
	kept := c.flows[:0]
	for _, f := range c.flows {
		if m.now-f.seen <= f.life() && c.allows(f.fromApp, f.toApp, f.proto, f.to.Port()) &&
			m.at(f.from) != nil && m.at(f.from).incarnation == f.fromInc &&
			m.at(f.to) != nil && m.at(f.to).incarnation == f.toInc {
			kept = append(kept, f)
		}
	}
	c.flows = kept
	for _, f := range c.flows {
		if f.proto == proto && f.from == src && f.to == dst {
			return f, false
		}
		if f.proto == proto && f.from == dst && f.to == src {
			return f, true
		}
	}
	return nil, false
}

// judge is one cell's verdict about a packet of a known app.
func (m *model) judge(c *modelCell, src, dst netip.AddrPort, proto, flags uint8) bool {
	from, to := m.at(src), m.at(dst)
	tcp := proto == 6
	opens := tcp && flags&fSYN != 0 && flags&fACK == 0
	f, back := m.find(c, src, dst, proto)
	asSent := c.allows(from.app, to.app, proto, dst.Port())
	if f != nil && !(opens && f.over()) {
		if opens && back && !asSent {
			return false
		}
		f.see(back, flags, m.now)
		return true
	}
	next := &modelFlow{proto: proto}
	switch {
	case asSent:
		next.from, next.to, next.fromInc, next.toInc, next.fromApp, next.toApp = src, dst, from.incarnation, to.incarnation, from.app, to.app
		next.see(false, flags, m.now)
	case tcp && flags&fSYN == 0 && c.allows(to.app, from.app, proto, src.Port()):
		next.from, next.to, next.fromInc, next.toInc, next.fromApp, next.toApp = dst, src, to.incarnation, from.incarnation, to.app, from.app
		next.see(true, flags, m.now)
	default:
		return false
	}
	if tcp && flags&fRST != 0 {
		return true
	}
	for i, old := range c.flows {
		if old == f {
			c.flows = append(c.flows[:i], c.flows[i+1:]...)
			break
		}
	}
	c.flows = append(c.flows, next)
	return true
}

// reset is a RST without identity that reaches a cell: by a flow or not at all.
func (m *model) reset(c *modelCell, src, dst netip.AddrPort) {
	if f, back := m.find(c, src, dst, 6); f != nil {
		f.see(back, fRST, m.now)
	}
}

// cut is what removing a rule at a cell does to the others: resets on the wire.
func (m *model) cut(tc *testCell, gone func(*modelFlow) bool) {
	c := m.cells[tc]
	var kept, ended []*modelFlow
	for _, f := range c.flows {
		if gone(f) {
			ended = append(ended, f)
		} else {
			kept = append(kept, f)
		}
	}
	c.flows = kept
	for _, f := range ended {
		if f.proto != 6 || f.over() || m.now-f.seen > f.life() {
			continue
		}
		from, to := m.at(f.from), m.at(f.to)
		if from != nil && from.cell != tc {
			m.reset(m.cells[from.cell], f.to, f.from)
		}
		if to != nil && to.cell != tc {
			m.reset(m.cells[to.cell], f.from, f.to)
		}
	}
}

// Random worlds, packet by packet against the twin: what arrives, who is
// answered, and which flows there are.
func TestAgainstTheObviousEvaluator(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { compareWithModel(t, seed, 6000) })
	}
}

func compareWithModel(t *testing.T, seed uint64, steps int) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t)
	m := &model{cells: map[*testCell]*modelCell{}, who: map[netip.Addr]*container{}}
	many := func(o *Options) { o.Limits.Answers = 1 << 30 }
	var all []*container
	for n := 1; n <= 2+int(seed%2); n++ {
		c := w.cell(n, many)
		if seed%4 < 2 {
			c.path.in.crowd = 0 // looking ahead changes nothing
		}
		m.cells[c] = &modelCell{rules: map[table.Rule]bool{}}
	}
	apps := []policy.AppID{"web", "db", "other"}
	for i, c := range w.cells {
		for j := range 3 {
			k := c.container(apps[(i+j)%3], byte(2+j))
			all, m.who[k.addr] = append(all, k), k
		}
	}
	var rules []table.Rule
	for _, r := range []string{"web db tcp 1-2", "web db udp 2", "db web tcp 3", "db other udp 1-3", "other web tcp 2", "other other tcp 1", "web web udp 1"} {
		rules = append(rules, rule(r))
	}
	incarnation := uint64(1 << 40)
	flagSets := []uint8{fSYN, fSYN, fSYN | fACK, fACK, fACK, fACK | fPSH, fFIN | fACK, fRST, fRST | fACK, 0}

	for step := range steps {
		switch op := rnd.IntN(100); {
		case op < 6: // a policy comes or goes, everywhere or on one cell yet
			r := rules[rnd.IntN(len(rules))]
			add := rnd.IntN(2) == 0
			everywhere := rnd.IntN(3) > 0
			first := rnd.IntN(len(w.cells))
			for i := range w.cells {
				c := w.cells[(first+i)%len(w.cells)]
				if i > 0 && !everywhere {
					break
				}
				if add {
					c.policies.Add(r)
					m.cells[c].rules[r] = true
					continue
				}
				mc := m.cells[c]
				c.policies.Remove(r)
				delete(mc.rules, r)
				c.path.Cut([]Pair{{r.Src, r.Dst}})
				w.pump()
				m.cut(c, func(f *modelFlow) bool { return !mc.allows(f.fromApp, f.toApp, f.proto, f.to.Port()) })
			}
		case op < 7: // a container is replaced, at the same address
			i := rnd.IntN(len(all))
			old := all[i]
			old.cell.path.Detach(old.addr)
			w.pump()
			delete(m.who, old.addr)
			for _, c := range w.cells {
				if c != old.cell {
					c.fib.Update(func(b *fib.Builder) { b.DeleteRemote(old.addr) })
					c.path.CutEndpoint(old.addr, old.incarnation)
				}
				m.cut(c, func(f *modelFlow) bool {
					return fib.Name(f.from.Addr()) == old.addr || fib.Name(f.to.Addr()) == old.addr
				})
			}
			w.pump()
			incarnation++
			all[i] = old.cell.containerAt(apps[rnd.IntN(3)], old.addr.As4()[3], incarnation)
			m.who[old.addr] = all[i]
		case op < 10:
			m.now += []uint32{1, 5, 31, 65, 130}[rnd.IntN(5)]
			for _, c := range w.cells {
				c.path.Tick(m.now)
			}
		default:
			src, dst := all[rnd.IntN(len(all))], all[rnd.IntN(len(all))]
			if src == dst {
				continue
			}
			s, d := src.at(uint16(1+rnd.IntN(3))), dst.at(uint16(1+rnd.IntN(3)))
			if rnd.IntN(2) == 0 {
				s, d = twin(s), twin(d)
			}
			for _, k := range all {
				k.got()
			}
			proto, flags := uint8(17), uint8(0)
			mark := fmt.Appendf(nil, "step %d", step)
			p := packettest.UDP(s, d, mark)
			if rnd.IntN(3) > 0 {
				proto, flags = 6, flagSets[rnd.IntN(len(flagSets))]
				p = packettest.TCP(s, d, flags, rnd.Uint32(), rnd.Uint32(), mark)
			}
			there := m.judge(m.cells[src.cell], s, d, proto, flags)
			if there && src.cell != dst.cell {
				there = m.judge(m.cells[dst.cell], s, d, proto, flags)
				if !there && proto == 6 && flags&fRST == 0 {
					m.reset(m.cells[src.cell], d, s)
				}
			}
			answered := !there && flags&fRST == 0
			src.send(p)

			what := fmt.Sprintf("step %d: %d %s (%s) > %s (%s) %s", step, proto, s, src.app, d, dst.app, flagNames(flags))
			for _, k := range all {
				got := k.got()
				switch {
				case k == dst && there:
					if len(got) != 1 || got[0].payload() != string(mark) {
						t.Fatalf("%s: should arrive, got %v", what, got)
					}
				case k == src && answered:
					if len(got) != 1 || got[0].h.Proto == packet.ProtoTCP && got[0].h.TCPFlags&fRST == 0 {
						t.Fatalf("%s: should be refused, got %v", what, got)
					}
				case len(got) != 0:
					t.Fatalf("%s: %s got %v", what, k.addr, got)
				}
			}
		}
		for i, c := range w.cells {
			mc := m.cells[c]
			m.find(mc, netip.AddrPort{}, netip.AddrPort{}, 0)
			n := 0
			c.path.flows.Each(func(f *flowFlow) {
				if c.path.allowsFlow(f) {
					n++
				}
			})
			if n != len(mc.flows) {
				t.Fatalf("step %d: cell %d has %d flows, the model %d", step, i, n, len(mc.flows))
			}
		}
	}
}

// twin is the IPv6 one of an address.
func twin(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(fib.Twin(a.Addr()), a.Port()) }
