package netstack

import (
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"tulle/overlay/packet"
	"tulle/overlay/tun"
)

// gsoSize is the longest super-packet that the stack sends, as gVisor counts:
// it keeps a whole TCP header's longest form free itself.
const gsoSize = packet.MaxLen

// link is the stack's network device: the container's, seen from behind.
type link struct {
	mtu        uint32
	device     Device
	dispatcher atomic.Pointer[stack.NetworkDispatcher]
}

func newLink(mtu int, device Device) *link { return &link{mtu: uint32(mtu), device: device} }

// deliver gives the stack a packet of the container's.
func (l *link) deliver(protocol tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	if d := l.dispatcher.Load(); d != nil {
		(*d).DeliverNetworkPacket(protocol, pkt)
	}
}

// WritePackets implements stack.LinkWriter. A packet that the device does not take
// is lost, as on any wire: TCP sends it again.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	o := outs.Get().(*out)
	defer outs.Put(o)
	for _, pkt := range pkts.AsSlice() {
		o.write(l.device, pkt)
	}
	return pkts.Len(), nil
}

// out is the scratch of one write.
type out struct {
	header [packet.VirtioLen]byte
	pieces [][]byte
}

var outs = sync.Pool{New: func() any { return &out{pieces: make([][]byte, 0, tun.MaxPieces)} }}

func (o *out) write(device Device, pkt *stack.PacketBuffer) {
	var v packet.Virtio
	if g := pkt.GSOOptions; g.Type != stack.GSONone {
		v.HdrLen = uint16(pkt.HeaderSize())
		if g.NeedsCsum {
			v.Flags = packet.VirtioNeedsChecksum
			v.CsumStart, v.CsumOffset = g.L3HdrLen, g.CsumOffset
		}
		if pkt.Data().Size() > int(g.MSS) {
			v.GSOType, v.GSOSize = packet.GSOTCPv4, g.MSS
			if g.Type == stack.GSOTCPv6 {
				v.GSOType = packet.GSOTCPv6
			}
		}
	}
	v.Encode(o.header[:])
	o.pieces = append(o.pieces[:0], o.header[:])
	views, skip := pkt.AsViewList()
	for view := views.Front(); view != nil; view = view.Next() {
		b := view.AsSlice()
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		o.pieces = append(o.pieces, b[skip:])
		skip = 0
	}
	if n := len(o.pieces); n > tun.MaxPieces {
		// One write is one packet: the tail becomes one piece.
		var tail []byte
		for _, b := range o.pieces[tun.MaxPieces-1:] {
			tail = append(tail, b...)
		}
		o.pieces = append(o.pieces[:tun.MaxPieces-1], tail)
	}
	_ = device(o.pieces...)
	clear(o.pieces)
}

// Attach implements stack.LinkEndpoint.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.dispatcher.Store(nil)
		return
	}
	l.dispatcher.Store(&d)
}

// The rest of stack.LinkEndpoint, of a device without link layer.

func (l *link) MTU() uint32                           { return l.mtu }
func (*link) SetMTU(uint32)                           {}
func (*link) MaxHeaderLength() uint16                 { return 0 }
func (*link) LinkAddress() tcpip.LinkAddress          { return "" }
func (*link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) IsAttached() bool                      { return l.dispatcher.Load() != nil }
func (*link) Wait()                                   {}
func (*link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (*link) AddHeader(*stack.PacketBuffer)           {}
func (*link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (*link) Close()                                  {}
func (*link) SetOnCloseAction(func())                 {}
func (*link) GSOMaxSize() uint32                      { return gsoSize }
func (*link) SupportedGSO() stack.SupportedGSO        { return stack.HostGSOSupported }

// Capabilities says that nobody here needs to verify a checksum: Inject has.
func (*link) Capabilities() stack.LinkEndpointCapabilities { return stack.CapabilityRXChecksumOffload }
