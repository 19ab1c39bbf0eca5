package netstack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"tulle/overlay/packet"
)

// Device takes what the stack sends: a virtio header and a packet, in pieces that
// are the stack's again when it returns. Many goroutines call it.
type Device func(pieces ...[]byte) error

// Options is what a Stack is made of.
type Options struct {
	// MTU of the container's device; it bounds the segments that the container
	// offers, not the super-packets that carry them.
	MTU    int
	Device Device
	// Request is called with every connection that the container opens, each in a
	// goroutine of its own. nil: all are refused.
	Request func(*Request)
	// Datagram is called, in Inject's goroutine, with each UDP datagram. The payload
	// is the caller's again when it returns. nil: they are dropped.
	Datagram func(from, to netip.AddrPort, payload []byte)
	// Echo is called likewise with each ICMP echo request: its header from the type
	// on, and payload.
	Echo func(from, to netip.Addr, message []byte)
	// Pending is how many connections may be neither accepted nor refused; beyond,
	// SYNs are dropped, and come again. 0: 1024.
	Pending int
	// Memory bounds, roughly, what the buffers of all connections hold, in bytes:
	// each gets its part of it. 0: 128 MiB.
	Memory int
}

const nic = tcpip.NICID(1)

// Buffers of one connection, in bytes.
const (
	minBuffer = 16 << 10
	maxBuffer = 2 << 20
)

// Stack is made by New. Its methods may be called from any goroutine.
type Stack struct {
	opt  Options
	s    *stack.Stack
	link *link
	open connections
}

// New makes a Stack.
func New(o Options) (*Stack, error) {
	if o.Device == nil {
		return nil, errors.New("netstack: no device")
	}
	if o.Pending == 0 {
		o.Pending = 1024
	}
	if o.Memory == 0 {
		o.Memory = 128 << 20
	}
	if o.MTU < header.IPv4MinimumMTU {
		return nil, fmt.Errorf("netstack: MTU %d is less than %d", o.MTU, header.IPv4MinimumMTU)
	}
	s := &Stack{opt: o, link: newLink(o.MTU, o.Device)}
	s.s = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocolWithOptions(ipv4.Options{AllowExternalLoopbackTraffic: true})},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := s.configure(); err != nil {
		s.Close()
		return nil, fmt.Errorf("netstack: %s", err)
	}
	return s, nil
}

func (s *Stack) configure() tcpip.Error {
	if err := s.s.CreateNIC(nic, s.link); err != nil {
		return err
	}
	// Every address is this stack's: it answers for the world.
	if err := s.s.SetPromiscuousMode(nic, true); err != nil {
		return err
	}
	if err := s.s.SetSpoofing(nic, true); err != nil {
		return err
	}
	s.s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}})
	sack := tcpip.TCPSACKEnabled(true)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: minBuffer, Default: maxBuffer / 2, Max: maxBuffer}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: minBuffer, Default: maxBuffer / 2, Max: maxBuffer}
	congestion := tcpip.CongestionControlOption("cubic")
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &receive, &send, &congestion} {
		if err := s.s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return err
		}
	}
	forwarder := tcp.NewForwarder(s.s, 0, s.opt.Pending, s.request)
	s.s.SetTransportProtocolHandler(tcp.ProtocolNumber, forwarder.HandlePacket)
	s.s.SetTransportProtocolHandler(udp.ProtocolNumber, s.reassembledUDP)
	s.s.SetTransportProtocolHandler(icmp.ProtocolNumber4, s.reassembledEcho)
	return nil
}

// Close ends the stack and resets every connection that it has. Who reads one
// gets an error.
func (s *Stack) Close() {
	s.open.closeAll()
	s.s.Close()
	s.link.Attach(nil)
	s.s.Wait()
}

// Inject takes a packet that the container sent. h and v are its headers, which
// passed packet's checks; p is copied where it is kept.
func (s *Stack) Inject(h *packet.Header, v *packet.Virtio, p []byte) {
	// A checksum that the container's kernel left to the device is not there yet, and
	// nothing between it and here could have spoiled the packet.
	if v.Flags&packet.VirtioNeedsChecksum == 0 && !packet.VerifyChecksum(p, h) {
		return
	}
	if !h.IsFragment() && h.Proto != packet.ProtoTCP {
		s.message(h, v, p)
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(p)})
	defer pkt.DecRef()
	s.link.deliver(header.IPv4ProtocolNumber, pkt)
}

// message hands over a datagram or an echo request that is whole.
func (s *Stack) message(h *packet.Header, v *packet.Virtio, p []byte) {
	switch h.Proto {
	case packet.ProtoUDP:
		if s.opt.Datagram == nil {
			return
		}
		from, to := netip.AddrPortFrom(h.Src, h.SrcPort), netip.AddrPortFrom(h.Dst, h.DstPort)
		b := p[h.HeaderLen+h.L4Len:][:h.PayloadLen]
		for size := int(v.GSOSize); v.GSOType != packet.GSONone && len(b) > size; b = b[size:] {
			s.opt.Datagram(from, to, b[:size])
		}
		s.opt.Datagram(from, to, b)
	case packet.ProtoICMP:
		if s.opt.Echo != nil && h.ICMPType == uint8(header.ICMPv4Echo) {
			s.opt.Echo(h.Src, h.Dst, p[h.HeaderLen:h.TotalLen])
		}
	}
}

// reassembledUDP takes a datagram that came in fragments. It is always handled:
// the stack has no word of its own.
func (s *Stack) reassembledUDP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	if s.opt.Datagram == nil {
		return true
	}
	h := header.UDP(pkt.TransportHeader().Slice())
	data := pkt.Data().AsRange().ToSlice()
	if len(h) < header.UDPMinimumSize || int(h.Length()) != len(h)+len(data) {
		return true
	}
	if h.Checksum() != 0 && !h.IsChecksumValid(id.RemoteAddress, id.LocalAddress, pkt.Data().Checksum()) {
		return true
	}
	s.opt.Datagram(addrPort(id.RemoteAddress, id.RemotePort), addrPort(id.LocalAddress, id.LocalPort), data)
	return true
}

// reassembledEcho is reassembledUDP for ICMP.
func (s *Stack) reassembledEcho(_ stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := pkt.TransportHeader().Slice()
	if checksum.Checksum(h, pkt.Data().Checksum()) != 0xffff {
		return true // gVisor hands echo requests over even so
	}
	if s.opt.Echo == nil || len(h) < header.ICMPv4MinimumSize || h[0] != uint8(header.ICMPv4Echo) {
		return true
	}
	ip := pkt.Network()
	data := pkt.Data().AsRange().ToSlice()
	s.opt.Echo(addr(ip.SourceAddress()), addr(ip.DestinationAddress()), append(append(make([]byte, 0, len(h)+len(data)), h...), data...))
	return true
}

// SendDatagram sends the container a datagram, whatever its length: the device
// has no MTU in this direction.
func (s *Stack) SendDatagram(from, to netip.AddrPort, payload []byte) error {
	b := make([]byte, packet.VirtioLen, packet.VirtioLen+packet.IPv4HeaderLen+packet.UDPHeaderLen+len(payload))
	if len(payload) > packet.MaxLen-packet.IPv4HeaderLen-packet.UDPHeaderLen {
		return fmt.Errorf("datagram of %d bytes does not fit an IPv4 packet", len(payload))
	}
	return s.opt.Device(packet.AppendUDP(b, from, to, payload))
}

// SendEchoReply sends the container the reply to an echo request: message is an ICMP
// message, of which identifier, number and payload are taken.
func (s *Stack) SendEchoReply(from, to netip.Addr, message []byte) error {
	if len(message) < packet.ICMPHeaderLen || len(message) > packet.MaxLen-packet.IPv4HeaderLen {
		return fmt.Errorf("echo reply of %d bytes does not fit an IPv4 packet", len(message))
	}
	b := make([]byte, packet.VirtioLen, packet.VirtioLen+packet.IPv4HeaderLen+len(message))
	id, seq := binary.BigEndian.Uint16(message[4:6]), binary.BigEndian.Uint16(message[6:8])
	return s.opt.Device(packet.AppendEcho(b, from, to, true, id, seq, message[packet.ICMPHeaderLen:], 0))
}

// SendUnreachable tells the container that the packet it sent, quoted, did not
// arrive: code is one of package packet's, sender who says so.
func (s *Stack) SendUnreachable(sender netip.Addr, code uint8, quoted []byte) error {
	var h packet.Header
	if err := packet.Parse(quoted, &h); err != nil {
		return err
	}
	b := make([]byte, packet.VirtioLen, packet.VirtioLen+packet.MaxAnswer)
	if b = packet.AppendUnreachable(b, sender, code, quoted, &h); len(b) == packet.VirtioLen {
		return nil // nothing that is answered
	}
	return s.opt.Device(b)
}

func addr(a tcpip.Address) netip.Addr {
	out, _ := netip.AddrFromSlice(a.AsSlice())
	return out
}

func addrPort(a tcpip.Address, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr(a), port) }

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}
