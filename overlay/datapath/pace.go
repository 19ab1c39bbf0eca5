package datapath

import "time"

// A container that sends as many small packets as it can would use up the processors
// that its neighbours' packets need, and the queues that they share with it: at peers'
// sockets, and behind them. So its reader looks, each time that it has done paceUnits
// of work, how long that took; if it was faster than its rate, and a neighbour sent
// anything lately, it waits for the rest of the time. What the container sends then
// queues in its own device, and is lost there.
//
// One that has the cell for itself is not held back, and neither is one that sends or is
// sent in bulk: a super-packet costs nothing here, nor do as many small ones as
// acknowledge those that it is given.
const (
	paceUnits = 256
	// paceRate is what one container may do a second for each processor of the cell.
	paceRate = 10_000
	// paceMemory is for how many ticks a neighbour counts: one that is starved sends
	// little.
	paceMemory = 2

	// What a packet costs: answers, records, and at the other end a stack that begins a
	// connection, cost more than a packet of a known flow.
	pacePacket  = 1
	paceRefusal = 2
	paceNewFlow = 4

	// paceAcks is how many units each super-packet is worth to who is given it, and
	// paceCredit how many super-packets count at most when an account is closed.
	paceAcks   = 2
	paceCredit = paceUnits
)

// pace is a reader's account of its work.
type pace struct {
	units int
	since time.Duration // when the last account was closed
}

// paceTime is how long paceUnits of work take at least.
func paceTime(processors int) time.Duration {
	return paceUnits * time.Second / time.Duration(paceRate*processors)
}

// account is called behind each packet, with what it cost.
func (w *egress) account(units int) {
	if w.pace.units += units; w.pace.units >= paceUnits {
		w.rest()
	}
}

// rest closes an account, and waits if it must.
func (w *egress) rest() {
	a := &w.pace
	if given := w.ep.given.Load(); given > 0 {
		worth := min(given, int32((a.units+paceAcks-1)/paceAcks))
		w.ep.given.Add(-min(given, max(worth, given-paceCredit)))
		if a.units -= paceAcks * int(worth); a.units < paceUnits {
			return
		}
	}
	a.units = 0
	now := w.p.age()
	took := now - a.since
	if took < w.p.paceTime && w.neighbours() {
		w.c.paced.Add(1)
		time.Sleep(w.p.paceTime - took)
		now = w.p.age()
	}
	a.since = now
}

// neighbours says whether another container of this cell sent something lately.
func (w *egress) neighbours() bool {
	now := w.p.flows.Now() + 1
	for _, e := range *w.p.devices.Load() {
		if e == nil || e == w.ep {
			continue
		}
		if seen := e.seen.Load(); seen != 0 && now-seen <= paceMemory {
			return true
		}
	}
	return false
}

// age is how long the Path has been there.
func (p *Path) age() time.Duration { return time.Since(p.begun) }
