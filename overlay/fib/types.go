package fib

import (
	"net/netip"
	"sync/atomic"

	"tulle/policy"
)

// Kind says what a peer's control plane tells about it.
type Kind uint8

const (
	// Cell is a Tulle cell: each of its endpoints is published, with its tag.
	Cell Kind = iota
	// Silk is a cell whose endpoints nobody publishes; its lease is all that is
	// known, and the tag on the wire is taken as it is.
	Silk
)

// String is the kind's name as the control plane writes it.
func (k Kind) String() string {
	if k == Silk {
		return "silk"
	}
	return "cell"
}

// Mode is how frames to and from a peer travel.
type Mode uint8

const (
	// VXLAN is plain VXLAN-GBP over UDP.
	VXLAN Mode = iota
	// WireGuard is the same VXLAN-GBP inside a tunnel between the two cells.
	WireGuard
)

// String is the mode's name as the control plane writes it.
func (m Mode) String() string {
	if m == WireGuard {
		return "wireguard"
	}
	return "vxlan"
}

// Local is a container of this cell.
type Local struct {
	Addr      netip.Addr
	Container string // the attacher's id
	App       policy.AppID
	Tag       policy.Tag // NoTag while the app is in no policy
	// Incarnation is the lease's generation<<32 | the journal's counter; never
	// 0, never used twice.
	Incarnation uint64
	// Slot is where the data path keeps the container's device; the data path
	// assigns it.
	Slot int
}

// Remote is a container of another Tulle cell.
type Remote struct {
	Addr        netip.Addr
	App         policy.AppID
	Tag         policy.Tag
	Incarnation uint64 // as Local's
	Peer        *Peer  // whose lease holds Addr; set by the table
}

// SourcePorts is how many ports a cell sends plain VXLAN from, the published one among
// them, so that the ways between two cells, and the queues of their devices, tell flows
// apart (RFC 7348 section 5). They are not any ports, as that RFC has it: at an address
// that a peer shares with others they say whose a frame is.
const SourcePorts = 8

// sourceStride is between two of them. Cells that share an address have ports near each
// other.
const sourceStride = 1009

// SourcePort is a cell's source port of number n, from 0, which is the published one.
func SourcePort(published uint16, n int) uint16 { return published + uint16(n)*sourceStride }

// Peer is another cell.
type Peer struct {
	Name string
	Kind Kind
	Mode Mode
	// Underlay is where its frames are sent. They come from the same address, by one
	// of its SourcePorts. A kernel VTEP sends from any port, so of a Silk peer only the
	// address counts.
	Underlay netip.AddrPort
	// Tunnel is its address inside WireGuard, of that mode alone; the zero Addr if
	// it has none.
	Tunnel netip.Addr
	// Subnet is its lease. The base address is the cell itself.
	Subnet netip.Prefix
	// Generation is the lease's. A peer that comes back under a new one is
	// another peer: nothing of the former holds.
	Generation uint64
	// ID is the table's number for this name, lease and generation; never 0,
	// never used twice while the process lives.
	ID uint32
	// Link is what the data path learned of the way there; the table's, which keeps it
	// as long as underlay address and mode stay.
	Link *Link
}

// Link is what is known of the way to a peer, and may be read and written by anyone.
type Link struct {
	// MTU is the longest packet of a container's that gets there; 0: not known to be
	// smaller than any other.
	MTU atomic.Uint32
	// Used says that packets were sent since somebody last looked.
	Used atomic.Bool
}

// Gateway is the cell's own address, the base of its lease, from which its
// ICMP errors come.
func (p *Peer) Gateway() netip.Addr { return p.Subnet.Addr() }

// Leases says whether an address of either family lies in the peer's lease.
func (p *Peer) Leases(addr netip.Addr) bool { return p.Subnet.Contains(Name(addr)) }
