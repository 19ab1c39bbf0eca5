package flow

// TCP flags (RFC 9293 3.1).
const (
	fin = 0x01
	syn = 0x02
	rst = 0x04
	ack = 0x10
)

// State is how far a flow is, as bits. They only follow what was seen pass; they
// decide how long the flow is kept and never whether a packet may pass, but for
// one thing: over a flow that is over (see Over), a new SYN is a new flow.
type State uint8

const (
	// Replied: a packet came back (UDP), or a SYN+ACK or anything later (TCP).
	Replied State = 1 << iota
	// Established: the initiator acknowledged.
	Established
	// FinForward and FinBackward: that direction has ended.
	FinForward
	FinBackward
	// Reset: a RST passed and nothing since.
	Reset
	// seenAckForward and seenAckBackward: Acked of that direction holds a number.
	seenAckForward
	seenAckBackward
	// finAcked: something was acknowledged, either way, since the last direction ended.
	finAcked
)

// SeenAck reports whether an acknowledgement was seen in direction d.
func (s State) SeenAck(d Direction) bool { return s&(seenAckForward<<d) != 0 }

// Over reports whether the conversation has ended: reset, or closed both ways.
func (s State) Over() bool {
	return s&Reset != 0 || s&(FinForward|FinBackward) == FinForward|FinBackward
}

// Lifetimes in seconds, after the last packet; the kernel's own for connection
// tracking (nf_conntrack sysctls), which containers' programs are used to. So are
// the states: FIN_WAIT is a direction that has ended, CLOSE_WAIT one whose end was
// acknowledged, LAST_ACK both without that, TIME_WAIT both with it.
const (
	lifeUDP         = 30
	lifeUDPStream   = 120
	lifeSynSent     = 120
	lifeSynReceived = 60
	lifeEstablished = 432000
	lifeFinWait     = 120
	lifeCloseWait   = 60
	lifeLastAck     = 30
	lifeTimeWait    = 120
	lifeReset       = 10 // the kernel's CLOSE
)

const protoTCP = 6 // IANA protocol number

// lifetime is how long a flow in this state is kept after its last packet.
func lifetime(proto uint8, s State) uint32 {
	if proto != protoTCP {
		if s&Replied != 0 {
			return lifeUDPStream
		}
		return lifeUDP
	}
	switch {
	case s&Reset != 0:
		return lifeReset
	case s.Over() && s&finAcked != 0:
		return lifeTimeWait
	case s.Over():
		return lifeLastAck
	case s&(FinForward|FinBackward) != 0 && s&finAcked != 0:
		return lifeCloseWait
	case s&(FinForward|FinBackward) != 0:
		return lifeFinWait
	case s&Established != 0:
		return lifeEstablished
	case s&Replied != 0:
		return lifeSynReceived
	}
	return lifeSynSent
}

// follow is the state after a packet in direction d.
func follow(proto uint8, s State, d Direction, flags uint8) State {
	if proto != protoTCP {
		if d == Backward {
			s |= Replied
		}
		return s
	}
	if flags&rst != 0 {
		return s | Reset
	}
	// Something lives on after a RST that was not accepted.
	s &^= Reset
	if d == Backward {
		s |= Replied
	}
	if flags&ack != 0 {
		s |= seenAckForward << d
		// Only an answered initiator establishes: with SYNs and ACKs of its own
		// alone a container could fill the table for five days.
		if d == Forward && flags&syn == 0 && s&Replied != 0 {
			s |= Established
		}
	}
	switch ended := FinForward << d; {
	case flags&fin != 0 && s&ended == 0:
		s = s&^finAcked | ended
	case flags&(fin|syn|ack) == ack && s&(FinForward|FinBackward) != 0:
		s |= finAcked
	}
	return s
}

// seqLen is the room a segment takes in sequence space.
func seqLen(s *Segment) uint32 {
	n := uint32(s.Len)
	if s.Flags&syn != 0 {
		n++
	}
	if s.Flags&fin != 0 {
		n++
	}
	return n
}

// after reports whether a comes after b in sequence space (RFC 9293 3.4).
func after(a, b uint32) bool { return int32(a-b) > 0 }
