package wireguard

import (
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"

	"golang.zx2c4.com/wireguard/device"

	"tulle/overlay/udp"
)

// What lies around a frame.
const (
	// HeaderLen is inside the tunnel: IPv4 and UDP.
	HeaderLen = ipLen + 8
	// Overhead is on the underlay, but for its IP header: UDP, the header and the
	// tag of a transport message, and HeaderLen.
	Overhead = 8 + 16 + 16 + HeaderLen
)

// Errors of Set.
var (
	// ErrKey: no key, the cell's own, or one that another peer has.
	ErrKey = errors.New("not a key that this peer can have")
	// ErrAddress: no IPv4 address for the tunnel, or one that another has.
	ErrAddress = errors.New("not a tunnel address that this peer can have")
)

// Options of New. All but MTU must be there.
type Options struct {
	Key     PrivateKey
	Address netip.Addr // the cell's own inside the tunnel, IPv4
	Conn    udp.Conn   // where peers send to; the Tunnel's from now on
	// MTU is the longest packet inside the tunnel: a frame and 28 bytes. Padding
	// stays below it. 0: not limited.
	MTU int
	// Receive is given what peers send: frames, From the peer's tunnel address. Buf
	// is its own until it returns. Empty frames are packets that were no frames.
	Receive func([]udp.Message)
	Log     *slog.Logger
}

// Peer is who may send and be sent to.
type Peer struct {
	Key      PublicKey
	Address  netip.Addr     // inside the tunnel; the only one
	Endpoint netip.AddrPort // on the underlay, to begin with
}

// Tunnel is one cell's end of all its tunnels.
type Tunnel struct {
	own     PublicKey
	address netip.Addr
	conn    udp.Conn
	memory  *memory
	device  *device.Device

	mu     sync.Mutex // guards what follows, and changes of the device
	peers  map[string]Peer
	closed bool
}

// New starts a tunnel without peers.
func New(o Options) (*Tunnel, error) {
	if !o.Address.Is4() {
		return nil, fmt.Errorf("tunnel address %q: %w", o.Address, ErrAddress)
	}
	m := newMemory(o.Address, o.MTU, o.Receive)
	// What the library has to say concerns single handshakes.
	say := func(format string, args ...any) { o.Log.Debug("wireguard: " + fmt.Sprintf(format, args...)) }
	t := &Tunnel{
		own: o.Key.Public(), address: o.Address, conn: o.Conn, memory: m,
		device: device.NewDevice(m, newBind(o.Conn), &device.Logger{Verbosef: device.DiscardLogf, Errorf: say}),
		peers:  make(map[string]Peer),
	}
	err := t.device.IpcSet("private_key=" + hex.EncodeToString(o.Key.scalar[:]) + "\n")
	if err == nil {
		err = t.device.Up()
	}
	if err != nil {
		t.device.Close()
		return nil, fmt.Errorf("tunnel: %w", errors.Join(err, o.Conn.Close()))
	}
	return t, nil
}

// Public is the cell's public key.
func (t *Tunnel) Public() PublicKey { return t.own }

// Address is the cell's address inside the tunnel.
func (t *Tunnel) Address() netip.Addr { return t.address }

// Local is where peers send to.
func (t *Tunnel) Local() netip.AddrPort { return t.conn.Local() }

// Send sends b to the peer with that tunnel address, as frames of segment bytes
// each, the last as long as what is left; segment 0 is one frame. A frame for
// nobody is dropped; one for a peer without a session waits for it, and is
// dropped when too many do. b is the caller's again when it returns.
func (t *Tunnel) Send(to netip.Addr, b []byte, segment int) error {
	if segment <= 0 || segment > len(b) {
		segment = len(b)
	}
	if segment > device.MaxContentSize-HeaderLen {
		return udp.ErrMessageSize
	}
	return t.memory.send(to, b, segment)
}

// Set enters the peer of that name, or changes it. A new key ends the session of
// the former; with the same key the session lives on, at a new endpoint too.
// With an error the peer is out, as after Remove.
func (t *Tunnel) Set(name string, p Peer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.peers[name] == p {
		return nil
	}
	if old, there := t.peers[name]; there && old.Key != p.Key {
		t.removeLocked(name)
	}
	err := t.checkLocked(name, p)
	if err == nil {
		old := t.peers[name] // the zero Peer if it is new
		var b strings.Builder
		fmt.Fprintf(&b, "public_key=%s\n", hex.EncodeToString(p.Key[:]))
		if old.Endpoint != p.Endpoint {
			fmt.Fprintf(&b, "endpoint=%s\n", p.Endpoint)
		}
		if old.Address != p.Address {
			fmt.Fprintf(&b, "replace_allowed_ips=true\nallowed_ip=%s\n", netip.PrefixFrom(p.Address, 32))
		}
		err = t.device.IpcSet(b.String())
	}
	if err != nil {
		t.removeLocked(name)
		return fmt.Errorf("tunnel to %s: %w", name, err)
	}
	t.peers[name] = p
	return nil
}

// Begin makes a session with a peer now, before there is anything to send. A cell
// that comes back has none, and a peer that has one would seal for it until it
// misses an answer, for 15 s. It is for peers that know this cell already: two
// that begin at the same time both fail, and try again after 5 s.
func (t *Tunnel) Begin(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p, there := t.peers[name]; there && !t.closed {
		if peer := t.device.LookupPeer(device.NoisePublicKey(p.Key)); peer != nil {
			peer.SendKeepalive()
		}
	}
}

// checkLocked keeps key and address one peer's: the library would move either to
// whoever named it last.
func (t *Tunnel) checkLocked(name string, p Peer) error {
	if p.Key == (PublicKey{}) || p.Key == t.own {
		return ErrKey
	}
	if !p.Address.Is4() || p.Address == t.address {
		return ErrAddress
	}
	for other, q := range t.peers {
		switch {
		case other == name:
		case q.Key == p.Key:
			return fmt.Errorf("%w: %s has it", ErrKey, other)
		case q.Address == p.Address:
			return fmt.Errorf("%w: %s has it", ErrAddress, other)
		}
	}
	return nil
}

// Remove takes a peer out. Its session is over when Remove returns.
func (t *Tunnel) Remove(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removeLocked(name)
}

func (t *Tunnel) removeLocked(name string) {
	p, there := t.peers[name]
	if !there {
		return
	}
	delete(t.peers, name)
	if !t.closed {
		t.device.RemovePeer(device.NoisePublicKey(p.Key))
	}
}

// Close ends all sessions, closes the socket, and waits for the library's
// goroutines. It is idempotent. The receiver must not call it.
func (t *Tunnel) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	t.device.Close()
	return t.conn.Close()
}
