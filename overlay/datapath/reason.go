package datapath

// Reason says why a packet was dropped. The zero Reason is that it passed.
type Reason uint8

// The reasons, by the stage that finds them.
const (
	Passed Reason = iota

	// Bytes.
	BadVirtio
	BadPacket
	NotIP
	SourceRoute
	TinyFragment
	TTLExpired
	TooBig

	// Who sends, and to what.
	SpoofedSource
	Multicast
	EndpointGone
	OutsideOverlay
	ResolverPort
	CellAddress
	NoRoute
	NoEndpoint

	// Tunnel.
	NotStarted
	UnknownPeer
	WrongMode
	BadFrame
	WrongVNI
	WrongMAC
	Congested
	OutsideLease
	WrongTag
	NotOurs

	// Verdict.
	NoPolicy
	NoIdentity
	NotAllowedProtocol
	ICMPDenied
	ICMPUnrelated
	FlowsFull
	EndpointFlowsFull

	// Fragments.
	FragmentDenied
	FragmentOverlap
	FragmentsFull
	FragmentExpired

	// Output.
	DeviceWrite
	Bandwidth
	SendError

	// NumReasons is the number of reasons.
	NumReasons
)

var reasons = [NumReasons]struct{ name, explanation string }{
	Passed:             {"passed", "The packet passed."},
	BadVirtio:          {"bad_virtio", "The container asked for an offload that does not fit its packet."},
	BadPacket:          {"bad_packet", "The packet's headers or lengths are broken."},
	NotIP:              {"not_ip", "The packet is not of an IP version that containers have here."},
	SourceRoute:        {"source_route", "The packet has a source route or an IPv6 routing header, which is never followed."},
	TinyFragment:       {"tiny_fragment", "A fragment hides its transport header, so no verdict about it is possible."},
	TTLExpired:         {"ttl_expired", "The packet's time to live ended here."},
	TooBig:             {"too_big", "The packet does not fit the path to the other cell."},
	SpoofedSource:      {"spoofed_source", "The packet's source is not the address of the container that sent it."},
	Multicast:          {"multicast", "The packet goes to a multicast or broadcast address; the overlay has neither."},
	EndpointGone:       {"endpoint_gone", "The container that sent the packet has been detached."},
	OutsideOverlay:     {"outside_overlay", "The destination lies outside the overlay network; this cell does not forward there."},
	ResolverPort:       {"resolver_port", "The resolver's address was asked for something other than DNS over UDP."},
	CellAddress:        {"cell_address", "The destination is a cell's own overlay address, where no container is."},
	NoRoute:            {"no_route", "No cell leases the network of the destination."},
	NoEndpoint:         {"no_endpoint", "No container that this cell knows has the destination's address: there is none, or no policy joins its app with an app here."},
	NotStarted:         {"not_started", "The frame came before this cell's first policy table was published."},
	UnknownPeer:        {"unknown_peer", "The frame came from an underlay address that is no peer's."},
	WrongMode:          {"wrong_mode", "The frame came in another tunnel mode than the control plane gave this peer."},
	BadFrame:           {"bad_frame", "The datagram is not a VXLAN frame with an IP packet of its kind inside."},
	WrongVNI:           {"wrong_vni", "The frame belongs to another VXLAN network."},
	WrongMAC:           {"wrong_mac", "The frame is addressed to another tunnel endpoint."},
	Congested:          {"congested", "The network marked the frame for congestion, and the sender of the packet in it does not understand such marks."},
	OutsideLease:       {"outside_lease", "The packet's source lies outside the lease of the cell that sent it, or is that cell's own address."},
	WrongTag:           {"wrong_tag", "The frame's tag is not the one of the app that has the source address."},
	NotOurs:            {"not_ours", "The destination lies outside this cell's lease."},
	NoPolicy:           {"no_policy", "No policy allows the source's app to reach the destination's app on this protocol and port."},
	NoIdentity:         {"no_identity", "The source, or its app, is not known here, and the packet belongs to no known flow."},
	NotAllowedProtocol: {"protocol", "Policies allow TCP and UDP only."},
	ICMPDenied:         {"icmp_denied", "No policy allows ICMP between containers."},
	ICMPUnrelated:      {"icmp_unrelated", "The ICMP error quotes no packet of a known flow between these two."},
	FlowsFull:          {"flows_full", "The cell's flow table is full."},
	EndpointFlowsFull:  {"endpoint_flows_full", "The container has as many flows as one may have."},
	FragmentDenied:     {"fragment_denied", "The packet is a fragment of a datagram that was refused or is not known."},
	FragmentOverlap:    {"fragment_overlap", "The fragment overlaps another of its datagram."},
	FragmentsFull:      {"fragments_full", "Too many incomplete datagrams, of this source or in all."},
	FragmentExpired:    {"fragment_expired", "The fragment's datagram was not completed in time, so it was let go."},
	DeviceWrite:        {"device_write", "The container's device did not take the packet."},
	Bandwidth:          {"bandwidth", "The container is sent more than its bandwidth limit, and enough waits for it already."},
	SendError:          {"send_error", "The socket to the other cell did not take the packet."},
}

// String is the reason as a metric's label.
func (r Reason) String() string {
	if r >= NumReasons {
		return "unknown"
	}
	return reasons[r].name
}

// Explain is the reason in a sentence.
func (r Reason) Explain() string {
	if r >= NumReasons {
		return "The reason has no name."
	}
	return reasons[r].explanation
}
