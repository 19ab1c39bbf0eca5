package wireguard

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"
)

// PresharedKey is a secret of two cells, which is mixed into their handshakes. The
// zero one is what two have who have none.
type PresharedKey [32]byte

// Format keeps the key out of anything that is printed.
func (k PresharedKey) Format(f fmt.State, _ rune) { fmt.Fprint(f, "(preshared key)") }

// MaxPSK is how many preshared keys a peer has at most.
const MaxPSK = 2

// Peer is who may send and be sent to.
type Peer struct {
	Key PublicKey
	// Also is a second key that the peer may have while it changes from one to the
	// other. The zero key: none.
	Also PublicKey
	// PSK is in the order of use: what the peer begins is answered with the first,
	// and in what it answers each is tried. So a new one goes to the end when this
	// cell has it, to the front when the peer is known to have it, and then the old
	// one goes. Nil is the zero key alone; beside another it may be listed. One that
	// goes ends no session: the next handshake is without it.
	PSK      []PresharedKey
	Address  netip.Addr     // inside the tunnel; the only one
	Endpoint netip.AddrPort // on the underlay, to begin with
	// Spread says that the peer's own end is a Tunnel: frames go to it from several
	// ports, by flow, and when its come from another port of the same address, it has
	// not moved. Of a standard WireGuard neither is true: it answers to the port
	// that it heard last.
	Spread bool
}

// Equal compares all of two peers.
func (p Peer) Equal(q Peer) bool {
	return p.Key == q.Key && p.Also == q.Also && slices.Equal(p.PSK, q.PSK) &&
		p.Address == q.Address && p.Endpoint == q.Endpoint && p.Spread == q.Spread
}

// has says whether a key is one of the peer's.
func (p *Peer) has(k PublicKey) bool { return k != (PublicKey{}) && (k == p.Key || k == p.Also) }

// psks are the preshared keys to try.
func (p *Peer) psks() []PresharedKey {
	if len(p.PSK) == 0 {
		return make([]PresharedKey, 1)
	}
	return p.PSK
}

// peer is what a Tunnel keeps of a Peer.
type peer struct {
	t    *Tunnel
	name string

	// Read for each train, written seldom.
	address atomic.Uint32 // inside the tunnel
	at      atomic.Pointer[whereabouts]
	current atomic.Pointer[session] // what is sealed with

	// What the timers look at, each moment with 0 for none: the first data that
	// nothing was heard after; the first data after which nothing was sent; and that
	// there was more after it.
	unanswered, owed atomic.Int64
	another          atomic.Bool
	lastMinute       atomic.Bool  // a handshake was begun because the session ends soon
	asked            atomic.Int64 // when a handshake was last begun or answered

	// The rest is guarded by Tunnel.mu.
	gone      bool
	set       Peer
	keys      []*identity
	previous  *session   // before current; still opens
	next      *session   // made by the peer, which has not shown yet that it has it
	pending   *handshake // begun here and not answered
	target    PublicKey  // of the next handshake, the zero key: the session's
	staged    []train    // waiting for a session
	stagedLen int        // bytes of them
	timetable            // of handshakes
}

// whereabouts is where a peer is on the underlay. It does not change.
type whereabouts struct {
	addr      netip.AddrPort
	published bool // where Set said
	spread    bool
}

// identity is one static key of a peer's.
type identity struct {
	public PublicKey
	macs   device.CookieGenerator
	newest tai64n.Timestamp // of what it began
	seen   int64            // when that was taken
}

// identity finds a key among the peer's.
func (p *peer) identity(k PublicKey) *identity {
	for _, id := range p.keys {
		if id.public == k {
			return id
		}
	}
	return nil
}

// move notes where an authentic message came from. Whose flows come from several
// ports has not moved while its address is the same; handshakes come from the
// first of them.
func (p *peer) move(from netip.AddrPort, handshake bool) {
	at := p.at.Load()
	if at.addr == from || !handshake && at.spread && at.addr.Addr() == from.Addr() {
		return
	}
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	p.moveLocked(from)
}

func (p *peer) moveLocked(to netip.AddrPort) {
	if p.at.Load() == nil || p.at.Load().addr != to || p.at.Load().spread != p.set.Spread {
		p.at.Store(&whereabouts{to, to == p.set.Endpoint, p.set.Spread})
	}
}
