package egress

import (
	"net/netip"

	"tulle/overlay/trafficlog"
	"tulle/policy"
)

// event is a verdict to be counted and, maybe, logged.
type event struct {
	verdict Verdict
	packet  policy.Packet
	from    netip.AddrPort
	group   string // whose rule it was
	byRule  bool   // the rule wants it logged
	dry     bool   // it was not enforced
}

// report counts a verdict, and has it logged.
func (e *Egress) report(c *container, ev event) {
	e.counts.verdicts[ev.verdict].Add(1)
	if e.opt.Traffic == nil {
		return
	}
	p := &ev.packet
	line := trafficlog.Entry{
		Allowed: ev.verdict == Allowed || ev.dry, DryRun: ev.dry, ByRule: ev.byRule,
		Src: ev.from, Dst: netip.AddrPortFrom(p.To, p.Port),
		Protocol: p.Protocol, Type: p.Type, Code: p.Code, Group: ev.group, Own: &c.logged,
	}
	if p.Protocol == "icmp" {
		line.Src = netip.AddrPortFrom(ev.from.Addr(), 0) // the identifier is no port
	}
	if ev.verdict != Allowed {
		line.Reason = ev.verdict.String()
	}
	e.opt.Traffic.Put(&line)
}
