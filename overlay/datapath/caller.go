package datapath

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"tulle/overlay/flow"
	"tulle/policy"
)

// Caller is the initiator of a live flow to a container of this cell.
type Caller struct {
	Tag       policy.Tag
	App       policy.AppID // "": a silk peer's, whose endpoints nobody publishes
	Container string       // "": not of this cell
}

// Caller says who opened the TCP connection from peer to a local container's
// port. Only a flow that was allowed, between endpoints that are still the same,
// has one. For any goroutine; it takes no lock.
func (p *Path) Caller(local, peer netip.AddrPort) (Caller, error) {
	key := flow.Key{Src: peer.Addr(), Dst: local.Addr(), SrcPort: peer.Port(), DstPort: local.Port(), Proto: unix.IPPROTO_TCP}
	var f flow.Flow
	d, hit := p.flows.Lookup(&key, &f)
	switch {
	case !hit:
		return Caller{}, ErrNoFlow
	case d != flow.Forward:
		return Caller{}, errOtherWay
	case f.State.Over():
		return Caller{}, errOver
	}
	snap := p.fib.Load()
	here, _, _ := snap.Lookup(local.Addr())
	if here == nil || here.Incarnation != f.DstIncarnation {
		return Caller{}, errOtherEnd
	}
	c := Caller{Tag: f.SrcTag}
	switch l, r, _ := snap.Lookup(peer.Addr()); {
	case l != nil && l.Incarnation == f.SrcIncarnation:
		c.App, c.Container = l.App, l.Container
	case r != nil && r.Incarnation == f.SrcIncarnation:
		c.App = r.App
	case f.SrcIncarnation != 0 || f.SrcTag == policy.NoTag:
		return Caller{}, errOtherEnd
	}
	return c, nil
}

// ErrNoFlow: there is no such connection.
var ErrNoFlow = errors.New("no connection of that peer is known")

// Why nobody else is known.
var (
	errOtherWay = errors.New("the connection was opened by the container itself")
	errOver     = errors.New("the connection is over")
	errOtherEnd = errors.New("one end of the connection is another container by now")
)
