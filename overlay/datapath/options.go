package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"time"

	"tulle/overlay/fib"
	"tulle/overlay/flow"
	"tulle/overlay/packet"
	"tulle/overlay/udp"
	"tulle/policy/table"
)

// Options is what a Path is made of. FIB, Policies, Conn and Log must be there.
type Options struct {
	// VNI of the overlay network; 0 is 1, as silk has it.
	VNI uint32
	// MTU is the longest inner IPv4 packet sent to a peer, in bytes. A longer one
	// is answered with ICMP "fragmentation needed", a longer TCP super-packet
	// split smaller. 0: whatever the socket takes.
	MTU int
	// Conn is the VXLAN socket. The Path closes it.
	Conn udp.Conn
	// Beside are sockets that VXLAN is sent from as well, each flow from one of all. What
	// comes to them is not read. The Path closes them.
	Beside []udp.Conn
	// IPv4Only drops IPv6, which otherwise containers have at their addresses' twins.
	IPv4Only bool
	// Tunnel carries frames to and from the peers of mode WireGuard. The daemon makes
	// it with Path.FromTunnel as its receiver, before or after, and closes it before
	// the Path. nil: this cell has no such peers.
	Tunnel Tunnel
	// FIB tells who is where, the overlay network and the own lease. Containers of
	// this cell are entered and taken out by Attach and Detach alone; tags and all
	// of other cells by the daemon.
	FIB *fib.Table
	// Policies has the rules between apps.
	Policies *table.Table
	// Reach has what stands in for the far app's tag where nobody tells it (silk
	// peers' containers): a rule (app, table.Any) for each policy whose source is
	// app, and (table.Any, app) for each whose destination is app; the latter lets
	// an app's replies be picked up after a restart. nil: none.
	Reach *table.Table
	// Resolver is given a copy of each DNS query that a container sends to
	// ResolverAddr or ResolverAddr6, and answers with Path.Reply from the one that src
	// is of the family of. It must not block. nil: no resolver.
	Resolver     func(ep *fib.Local, src netip.AddrPort, query []byte)
	ResolverAddr netip.Addr
	// ResolverAddr6 is the zero Addr where there is none.
	ResolverAddr6 netip.Addr
	// Outside carries what goes to no container and to no cell. nil: it is refused.
	Outside Outside
	Limits  Limits
	// Processors is how many this cell has for its work; 0: runtime.GOMAXPROCS.
	Processors int
	// Ticks drives the Path's clock, once a second; nil: a ticker of its own. A
	// test gives a channel that nothing is sent on, and calls Tick.
	Ticks <-chan time.Time
	Log   *slog.Logger
}

// Tunnel sends frames to peers by their tunnel addresses, as Conn does by their
// underlay addresses; it is the wireguard package's. The flow says which packets keep
// their order.
type Tunnel interface {
	// Send sends b in frames of segment bytes, or one.
	Send(to netip.Addr, flow uint32, b []byte, segment int) error
	// SendTrain sends the frames in b, which lie as Room says. All of b is rewritten.
	SendTrain(to netip.Addr, flow uint32, b []byte, frame int) error
	// Room is what there must be around frames of n bytes in a train: before the
	// first, from one to the next, and behind the last one in b's capacity.
	Room(n int) (before, stride, after int)
}

// Outside takes the packets that leave the overlay, and whatever goes to
// ResolverAddr but DNS over UDP.
type Outside interface {
	// Carry takes a packet of ep's, whose source is ep's address; h and v were held
	// against it. It is called by the reader of ep's device, and must not block; all
	// it is given is the caller's again when it returns. What it refuses it answers
	// itself, by Path.Deliver; false means that nobody takes ep's packets.
	Carry(ep *fib.Local, h *packet.Header, v *packet.Virtio, p []byte) bool
}

// Limits bound what others can make the Path keep or send.
type Limits struct {
	Flow flow.Limits
	// Answers is how many ICMP errors one source address is sent a second. 0: 100.
	Answers int
	// Fragments is how many incomplete datagrams ingress keeps, egress a quarter
	// of it for each container; one source may have a quarter of either. 0: 1024.
	Fragments int
	// FragmentBytes bounds, likewise, fragments that wait for their first. 0: 1 MiB.
	FragmentBytes int
}

// ErrOptions is the kind of every error about Options.
var ErrOptions = errors.New("options of the data path")

func (o *Options) complete() error {
	var missing string
	switch {
	case o.Conn == nil:
		missing = "Conn"
	case o.FIB == nil:
		missing = "FIB"
	case o.Policies == nil:
		missing = "Policies"
	case o.Log == nil:
		missing = "Log"
	}
	if missing != "" {
		return fmt.Errorf("%w: %s is missing", ErrOptions, missing)
	}
	if o.Reach == nil {
		o.Reach = table.New()
	}
	if o.Processors <= 0 {
		o.Processors = runtime.GOMAXPROCS(0)
	}
	if o.VNI == 0 {
		o.VNI = 1
	}
	if o.Limits.Answers <= 0 {
		o.Limits.Answers = 100
	}
	if o.Limits.Fragments <= 0 {
		o.Limits.Fragments = 1024
	}
	if o.Limits.FragmentBytes <= 0 {
		o.Limits.FragmentBytes = 1 << 20
	}
	return nil
}
