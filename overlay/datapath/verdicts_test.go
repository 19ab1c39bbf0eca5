package datapath

import (
	"fmt"
	"testing"

	"tulle/overlay/flow"
	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
)

// told is what a cell has gathered, in words.
func (v *Verdicts) told() []string {
	var all []string
	for t := (Told{}); v.Take(&t); {
		direction := "out"
		if t.Ingress {
			direction = "in"
		}
		all = append(all, fmt.Sprintf("%s %d %s:%d>%s:%d tag %d icmp %d/%d %v", direction, t.Proto, t.Src, t.SrcPort, t.Dst, t.DstPort, t.Tag, t.ICMPType, t.ICMPCode, t.Reason))
	}
	return all
}

func expectTold(t *testing.T, where string, v *Verdicts, want ...string) {
	t.Helper()
	if got := v.told(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s is told\n%q, want\n%q", where, got, want)
	}
}

// TestVerdictsAreTold: a flow once, where its destination is; a refusal where it
// falls; and of either only what was asked for.
func TestVerdictsAreTold(t *testing.T) {
	pairs(t, func(t *testing.T, w *world, client, server *container) {
		here, there := client.cell.path, server.cell.path
		// Nobody asks: nothing is kept from before.
		client.send(packettest.TCP(client.at(3999), server.at(80), fSYN, 1, 0, nil))
		client.expect(fmt.Sprintf("tcp %s>%s RA", server.at(80), client.at(3999)))

		atSource, atDestination := NewVerdicts(true, true), NewVerdicts(true, true)
		here.Tell(atSource)
		there.Tell(atDestination)
		local := here == there
		direction := "out"
		if local {
			atSource, direction = atDestination, "in"
		}
		client.send(packettest.TCP(client.at(4000), server.at(80), fSYN, 1, 0, nil))
		client.expect(fmt.Sprintf("tcp %s>%s RA", server.at(80), client.at(4000)))
		expectTold(t, "source", atSource, fmt.Sprintf("%s 6 %s:4000>%s:80 tag %d icmp 0/0 no_policy", direction, client.addr, server.addr, tags["web"]))

		w.allow("web db tcp 80")
		connect(client, 4000, server, 80)
		server.send(packettest.TCP(server.at(80), client.at(4000), fACK|fPSH, 501, 101, []byte("hello")))
		client.expect(fmt.Sprintf("tcp %s>%s PA", server.at(80), client.at(4000)))
		expectTold(t, "destination", atDestination, fmt.Sprintf("in 6 %s:4000>%s:80 tag %d icmp 0/0 passed", client.addr, server.addr, tags["web"]))
		if !local {
			expectTold(t, "source", atSource)
		}

		// Only what is asked for.
		there.Tell(NewVerdicts(false, true))
		connect(client, 4001, server, 80)
		expectTold(t, "destination, of refusals alone", there.verdicts.Load())
		here.Tell(NewVerdicts(true, false))
		client.send(packettest.UDP(client.at(4000), server.at(80), []byte("x")))
		client.expect(client.refused(client.cell))
		expectTold(t, "source, of flows alone", here.verdicts.Load())
		here.Tell(nil)
		there.Tell(nil)
	})
}

// The destination's refusal, and of a ping its type.
func TestRefusalsAreToldWhereTheyFall(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	client, server := a.container("web", 2), b.container("db", 3)
	a.policies.Add(rule("web db tcp 80")) // the source's word alone
	v := NewVerdicts(true, true)
	b.path.Tell(v)
	client.send(packettest.TCP(client.at(4000), server.at(80), fSYN, 1, 0, nil))
	client.expect(fmt.Sprintf("tcp %s>%s RA", server.at(80), client.at(4000)))
	expectTold(t, "destination", v, fmt.Sprintf("in 6 %s:4000>%s:80 tag %d icmp 0/0 no_policy", client.addr, server.addr, tags["web"]))

	v = NewVerdicts(true, true)
	a.path.Tell(v)
	client.send(packettest.ICMP(client.addr, server.addr, 8, 0, 7<<16|1, nil))
	expectTold(t, "source", v, fmt.Sprintf("out 1 %s:0>%s:0 tag %d icmp 8/0 icmp_denied", client.addr, server.addr, tags["web"]))
	// A packet that is broken or forged is nobody's refusal.
	client.send(packettest.TCP(server.at(80), client.at(80), fSYN, 1, 0, nil))
	expectTold(t, "source, of a forged packet", v)
}

// Nobody takes: what there is no room for is counted, and costs no memory.
func TestTellingDoesNotAllocate(t *testing.T) {
	s := newStage(t)
	p := packettest.TCP(s.client.at(4000), s.server.at(81), fSYN, 1, 0, nil)
	w := s.client.ep.w
	s.client.ep.dev = &sink{}
	refusal := func() {
		packet.Virtio{}.Encode(w.buf[virtioAt:])
		w.read(packet.VirtioLen + copy(w.buf[headroom:], p))
	}
	v := NewVerdicts(true, true)
	s.client.cell.path.Tell(v)
	if n := testing.AllocsPerRun(2*toldRoom, refusal); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if got, lost := len(v.told()), v.Lost(); got != toldRoom || lost < toldRoom {
		t.Errorf("%d are there and %d are lost, of %d", got, lost, 2*toldRoom)
	}
	flows := s.client.cell.path.FlowCount()
	told := 0
	if n := testing.AllocsPerRun(100, func() {
		w.flow.Role = flow.DestinationHere
		w.tellFlow()
		told++
	}); n != 0 {
		t.Errorf("%v allocations for a flow", n)
	}
	if got := len(v.told()); got != told || s.client.cell.path.FlowCount() != flows {
		t.Errorf("%d of %d flows are told", got, told)
	}
}
