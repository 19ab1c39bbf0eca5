package flow

import (
	"net/netip"

	"tulle/policy"
)

// Key is a conversation as one of its packets shows it.
type Key struct {
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
	Proto            uint8
}

// Reverse is the key of a packet the other way.
func (k Key) Reverse() Key {
	return Key{Src: k.Dst, Dst: k.Src, SrcPort: k.DstPort, DstPort: k.SrcPort, Proto: k.Proto}
}

// Role says which ends of a flow are containers of this cell.
type Role uint8

const (
	// SourceHere: the initiator is a container of this cell.
	SourceHere Role = 1 << iota
	// DestinationHere: the responder is a container of this cell.
	DestinationHere
	// Weak: the flow was judged by what its source app may reach at all, because
	// nobody tells which app the far end is.
	Weak
)

// Direction of a packet in its flow.
type Direction uint8

const (
	// Forward is initiator to responder.
	Forward Direction = iota
	// Backward is responder to initiator.
	Backward
)

// Flow is one flow, as a copy. Src is the initiator's end.
type Flow struct {
	Key
	Role             Role
	SrcTag, DstTag   policy.Tag
	SrcIncarnation   uint64 // 0: not known (a silk peer's container)
	DstIncarnation   uint64
	Peer             uint32 // fib.Peer.ID of the far end; 0 if both ends are here
	SrcSlot, DstSlot int    // of the ends that are here, for their limits; else NoSlot
	Generation       uint64 // of the policy table it was last judged by
	Packets, Bytes   [2]uint64
	Next             [2]uint32 // per direction: the sequence number after the last byte sent that way
	Acked            [2]uint32 // per direction: the last acknowledgement sent that way
	State            State
	LastSeen         uint32 // tick
	ref              Ref
}

// Ref is where the flow lies, for the calls that change it.
func (f *Flow) Ref() Ref { return f.ref }

// NoSlot stands for an end that is not of this cell.
const NoSlot = -1

// FromHere reports whether a packet in direction d leaves from an end of this cell.
func (f *Flow) FromHere(d Direction) bool {
	if d == Forward {
		return f.Role&SourceHere != 0
	}
	return f.Role&DestinationHere != 0
}

// ToHere reports whether a packet in direction d goes to an end of this cell.
func (f *Flow) ToHere(d Direction) bool { return f.FromHere(1 - d) }

// Ref names a record. It is good while the flow lives and for two ticks after.
type Ref struct {
	shard   uint16
	number  uint32
	version uint32
}

// Segment is what a packet tells about its flow's progress.
type Segment struct {
	Bytes    int // of the IP packet
	Flags    uint8
	Seq, Ack uint32
	Len      int  // of the TCP payload
	Backward bool // for Insert: the first packet seen is the responder's
}

// Limits bound the table.
type Limits struct {
	// Flows in the whole table; each of the 64 shards takes its part. 0: 1,048,576.
	Flows int
	// PerEndpoint is for one container of this cell, as either end. 0: 65,536.
	PerEndpoint int
	// Slots is the number of containers, the largest slot and one. 0: 65,536.
	Slots int
}
