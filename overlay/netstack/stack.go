package netstack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

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
	// Echo is called likewise with each echo request, of ICMP or ICMPv6: its header
	// from the type on, and payload.
	Echo func(from, to netip.Addr, message []byte)
	// Refused is called likewise with each of SendDatagram's that went to a closed port,
	// as the container says: from and to as they were, and the payload where the
	// container quotes all of it, else nil.
	Refused func(from, to netip.AddrPort, payload []byte)
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

	joinMu sync.Mutex // guards join
	join   packet.Reassembler
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
	// It is given TCP and nothing else, and has no word of its own: no neighbour, router
	// or listener is looked for, no address made, no echo answered.
	s.s = stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			ipv4.NewProtocolWithOptions(ipv4.Options{AllowExternalLoopbackTraffic: true}),
			ipv6.NewProtocolWithOptions(ipv6.Options{AllowExternalLoopbackTraffic: true}),
		},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
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
	s.s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}})
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
	if h.IsFragment() {
		s.joinMu.Lock()
		p = s.join.Add(p, h, time.Now())
		s.joinMu.Unlock()
		var whole packet.Header
		if p == nil || packet.Parse(p, &whole) != nil || whole.IsFragment() || whole.SourceRoute {
			return
		}
		h, v = &whole, &packet.Virtio{}
	}
	// A checksum that the container's kernel left to the device is not there yet, and
	// nothing between it and here could have spoiled the packet.
	if v.Flags&packet.VirtioNeedsChecksum == 0 && !packet.VerifyChecksum(p, h) {
		return
	}
	if h.Proto != packet.ProtoTCP {
		s.message(h, v, p)
		return
	}
	protocol := tcpip.NetworkProtocolNumber(header.IPv4ProtocolNumber)
	var data buffer.Buffer
	switch {
	case !h.IPv6:
		data = buffer.MakeWithData(p)
	case h.HasOptions: // which say nothing that concerns a connection
		protocol, data = header.IPv6ProtocolNumber, buffer.MakeWithData(packet.AppendPlain(nil, p, h))
	default:
		protocol, data = header.IPv6ProtocolNumber, buffer.MakeWithData(p)
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: data})
	defer pkt.DecRef()
	s.link.deliver(protocol, pkt)
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
	case packet.ProtoICMP, packet.ProtoICMPv6:
		request := uint8(header.ICMPv4Echo)
		if h.IPv6 {
			request = uint8(header.ICMPv6EchoRequest)
		}
		if s.opt.Echo != nil && h.IPv6 == (h.Proto == packet.ProtoICMPv6) && h.ICMPType == request {
			s.opt.Echo(h.Src, h.Dst, p[h.HeaderLen:h.TotalLen])
			return
		}
		var q packet.Header
		if s.opt.Refused != nil && h.IsPortUnreachable() && packet.ParseQuoted(p, h, &q) == nil && q.Proto == packet.ProtoUDP && !q.IsFragment() {
			var payload []byte
			if b := p[h.HeaderLen+h.L4Len+q.HeaderLen : h.TotalLen]; len(b) >= q.L4Len+q.PayloadLen {
				payload = b[q.L4Len:][:q.PayloadLen]
			}
			s.opt.Refused(netip.AddrPortFrom(q.Src, q.SrcPort), netip.AddrPortFrom(q.Dst, q.DstPort), payload)
		}
	}
}

// SendDatagram sends the container a datagram, whatever its length: the device
// has no MTU in this direction. Both ends are of one family.
func (s *Stack) SendDatagram(from, to netip.AddrPort, payload []byte) error {
	if len(payload) > packet.MaxLen-headerLen(to.Addr())-packet.UDPHeaderLen {
		return fmt.Errorf("datagram of %d bytes does not fit a packet", len(payload))
	}
	b := make([]byte, packet.VirtioLen, packet.VirtioLen+packet.IPv6HeaderLen+packet.UDPHeaderLen+len(payload))
	return s.opt.Device(packet.AppendUDP(b, from, to, payload))
}

// SendEchoReply sends the container the reply to an echo request: message is an ICMP
// message, of which identifier, number and payload are taken. Both ends are of one
// family.
func (s *Stack) SendEchoReply(from, to netip.Addr, message []byte) error {
	if len(message) < packet.ICMPHeaderLen || len(message) > packet.MaxLen-headerLen(to) {
		return fmt.Errorf("echo reply of %d bytes does not fit a packet", len(message))
	}
	b := make([]byte, packet.VirtioLen, packet.VirtioLen+packet.IPv6HeaderLen+len(message))
	id, seq := binary.BigEndian.Uint16(message[4:6]), binary.BigEndian.Uint16(message[6:8])
	return s.opt.Device(packet.AppendEcho(b, from, to, true, id, seq, message[packet.ICMPHeaderLen:], 0))
}

func headerLen(a netip.Addr) int {
	if a.Is4() {
		return packet.IPv4HeaderLen
	}
	return packet.IPv6HeaderLen
}

// SendUnreachable tells the container that the packet it sent, quoted, did not
// arrive: code is one of package packet's, sender who says so, in the packet's family.
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
