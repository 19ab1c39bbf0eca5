package datapath

import (
	"bytes"
	"net/netip"

	"tulle/overlay/fib"
	"tulle/overlay/packet"
)

const dnsPort = 53

// toResolver hands a query over. What is no DNS over UDP is for whoever ends the
// container's connections outside, if there is one.
func (w *egress) toResolver(snap *fib.Snapshot, p []byte) Reason {
	h := &w.h
	if w.p.resolver == nil || h.Proto != packet.ProtoUDP || h.DstPort != dnsPort || h.IsFragment() || w.v.GSOType != packet.GSONone {
		return w.toOutside(snap, p, ResolverPort)
	}
	own := snap.Local(h.Src)
	if own == nil || own.Incarnation != w.ep.incarnation {
		return EndpointGone
	}
	query := p[h.HeaderLen+h.L4Len:][:h.PayloadLen]
	w.p.resolver(own, netip.AddrPortFrom(h.Src, h.SrcPort), bytes.Clone(query))
	w.c.pass(len(p))
	return Passed
}

// maxDatagram is the longest UDP payload over IPv4.
const maxDatagram = packet.MaxLen - packet.IPv4HeaderLen - packet.UDPHeaderLen

// Reply gives a container the resolver's answer: a datagram from from to to, a
// container's address. Without such a container, or for a payload that no
// datagram holds, nothing happens.
func (p *Path) Reply(to, from netip.AddrPort, payload []byte) {
	local := p.fib.Load().Local(to.Addr())
	if local == nil || len(payload) > maxDatagram {
		return
	}
	e := p.device(local)
	if e == nil {
		return
	}
	b := make([]byte, headroom, headroom+packet.IPv6HeaderLen+packet.UDPHeaderLen+len(payload))
	b = packet.AppendUDP(b, from, to, payload)
	p.controlMu.Lock()
	defer p.controlMu.Unlock()
	if r := p.control.deliver(e, b); r != Passed {
		p.undelivered.drop(r)
	}
}
