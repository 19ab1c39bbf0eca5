package wireguard

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/ratelimiter"

	"tulle/overlay/udp"
)

// What lies around a frame.
const (
	// HeaderLen is inside the tunnel: IPv4 and UDP.
	HeaderLen = ipLen + 8
	// Overhead is on the underlay, but for its IP header: UDP, the header and the
	// tag of a transport message, and HeaderLen.
	Overhead = 8 + transportLen + tagLen + HeaderLen
)

// Errors of Set and SetKeys.
var (
	// ErrKey: no key, the cell's own, or one that another peer has.
	ErrKey = errors.New("not a key that this peer can have")
	// ErrAddress: no IPv4 address for the tunnel, or one that another has.
	ErrAddress = errors.New("not a tunnel address that this peer can have")
	// ErrPSK: more preshared keys than MaxPSK.
	ErrPSK = errors.New("too many preshared keys")
	// ErrOwnKey: no private key, or one that a peer has.
	ErrOwnKey = errors.New("not a key that this cell can have")
)

// Options of New. All but MTU must be there.
type Options struct {
	// Keys are the cell's own, the first the one that it begins handshakes with. See
	// SetKeys.
	Keys    []PrivateKey
	Address netip.Addr // the cell's own inside the tunnel, IPv4
	// Conns are the sockets, the Tunnel's from now on. Peers send to the first; the
	// others send alone, so that the ways between see many flows.
	Conns []udp.Conn
	// MTU is the longest packet inside the tunnel: a frame and 28 bytes. Padding
	// stays below it. 0: not limited.
	MTU int
	// Receive is given what peers send: frames, From the peer's tunnel address. Buf
	// is its own until it returns. Empty frames are packets that were no frames. Each
	// socket has a goroutine that calls it.
	Receive func([]udp.Message)
	Log     *slog.Logger

	clock func() int64 // a test's; nothing ticks by itself then
}

// Tunnel is one cell's end of all its tunnels.
type Tunnel struct {
	address netip.Addr
	number  uint32 // the address
	mtu     int
	conns   []udp.Conn
	receive func([]udp.Message)
	log     *slog.Logger
	clock   func() int64
	wall    func() time.Time

	// Read for each datagram, without a lock.
	own       atomic.Pointer[[]*ownKey]
	byAddress *table[peer]
	indices   *table[entry]
	now       atomic.Int64 // at the last tick
	closed    atomic.Bool

	receivers  []*receiver
	handshakes chan message
	limit      ratelimiter.Ratelimiter
	loadUntil  int64 // the handshakes' goroutine's
	stop       chan struct{}
	wg         sync.WaitGroup

	mu      sync.Mutex // guards what follows, changes of the above, and handshakes
	peers   map[string]*peer
	byKey   map[PublicKey]*peer
	stamped time.Time // what the last handshake begun says of when
}

// New starts a tunnel without peers.
func New(o Options) (*Tunnel, error) {
	t := &Tunnel{
		address: o.Address, mtu: o.MTU, conns: o.Conns, receive: o.Receive, log: o.Log, clock: o.clock, wall: time.Now,
		byAddress: newTable[peer](), indices: newTable[entry](),
		handshakes: make(chan message, queueLen), stop: make(chan struct{}),
		peers: make(map[string]*peer), byKey: make(map[PublicKey]*peer),
	}
	if err := t.check(o); err != nil {
		for _, c := range o.Conns {
			err = errors.Join(err, c.Close())
		}
		return nil, fmt.Errorf("tunnel: %w", err)
	}
	t.number = number(o.Address)
	t.setOwn(o.Keys)
	if t.clock == nil {
		t.clock = monotonic()
		t.wg.Go(t.run)
	}
	t.now.Store(t.clock())
	t.limit.Init()
	for i, c := range o.Conns {
		n := receiveLen
		if i > 0 {
			n = receiveLenAlso
		}
		r := newReceiver(t, c, n)
		t.receivers = append(t.receivers, r)
		t.wg.Go(r.loop)
	}
	t.wg.Go(t.shake)
	return t, nil
}

func (t *Tunnel) check(o Options) error {
	switch {
	case !o.Address.Is4():
		return fmt.Errorf("tunnel address %q: %w", o.Address, ErrAddress)
	case len(o.Keys) == 0 || slices.Contains(o.Keys, PrivateKey{}):
		return ErrOwnKey
	case len(o.Conns) == 0:
		return errors.New("no socket")
	}
	return nil
}

// Public is the public half of the key that the cell begins handshakes with.
func (t *Tunnel) Public() PublicKey { return (*t.own.Load())[0].public }

// Address is the cell's address inside the tunnel.
func (t *Tunnel) Address() netip.Addr { return t.address }

// Local is where peers send to.
func (t *Tunnel) Local() netip.AddrPort { return t.conns[0].Local() }

// SetKeys changes the cell's own keys. Handshakes that are addressed to any of them
// are answered, new ones begun with current. Sessions that a key made end when it is
// no more among them; the others go on, and with peers whose session is not
// current's a handshake begins at once.
func (t *Tunnel) SetKeys(current PrivateKey, also ...PrivateKey) error {
	keys := append([]PrivateKey{current}, also...)
	if slices.Contains(keys, PrivateKey{}) {
		return fmt.Errorf("tunnel: %w", ErrOwnKey)
	}
	renew, err := t.changeKeys(keys)
	if err != nil {
		return err
	}
	t.settle()
	for _, p := range renew {
		t.begin(p)
	}
	return nil
}

// changeKeys is SetKeys but for the handshakes: it returns whom one is due with.
func (t *Tunnel) changeKeys(keys []PrivateKey) (renew []*peer, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed.Load() {
		return nil, nil
	}
	for _, k := range keys {
		if p := t.byKey[k.Public()]; p != nil {
			return nil, fmt.Errorf("tunnel: %w: %s has it", ErrOwnKey, p.name)
		}
	}
	t.setOwn(keys)
	for _, p := range t.peers {
		t.pruneLocked(p)
		if s := p.current.Load(); s.lives() && s.own != t.Public() {
			renew = append(renew, p)
		}
	}
	return renew, nil
}

func (t *Tunnel) setOwn(keys []PrivateKey) {
	var own []*ownKey
	for _, k := range keys {
		if !slices.ContainsFunc(own, func(o *ownKey) bool { return o.private == k }) {
			own = append(own, newOwnKey(k))
		}
	}
	t.own.Store(&own)
}

func (t *Tunnel) ownsLocked(k PublicKey) bool {
	return slices.ContainsFunc(*t.own.Load(), func(o *ownKey) bool { return o.public == k })
}

// Set enters the peer of that name, or changes it. Sessions that one of the peer's
// keys made end when it has it no more; the others go on, at a new endpoint too. If
// it has a key that it had not, a handshake with that one begins at once. With an
// error the peer is out, as after Remove.
func (t *Tunnel) Set(name string, set Peer) error {
	set.Endpoint = netip.AddrPortFrom(set.Endpoint.Addr().Unmap(), set.Endpoint.Port())
	defer t.settle()
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[name]
	if t.closed.Load() || p != nil && p.set.Equal(set) {
		return nil
	}
	if err := t.checkLocked(name, set); err != nil {
		t.removeLocked(name)
		return fmt.Errorf("tunnel to %s: %w", name, err)
	}
	set.PSK = slices.Clone(set.PSK)
	if p == nil {
		p = &peer{t: t, name: name}
		t.peers[name] = p
	}
	old := p.set
	p.set = set
	keys := []PublicKey{set.Key}
	if set.Also != (PublicKey{}) && set.Also != set.Key {
		keys = append(keys, set.Also)
	}
	for _, id := range p.keys {
		delete(t.byKey, id.public)
	}
	var identities []*identity
	for _, k := range keys {
		id := p.identity(k)
		if id == nil {
			id = &identity{public: k}
			id.macs.Init([keyLen]byte(k))
		}
		identities = append(identities, id)
		t.byKey[k] = p
	}
	p.keys = identities
	if old.Address.IsValid() && old.Address != set.Address {
		t.byAddress.drop(number(old.Address))
	}
	p.address.Store(number(set.Address))
	if at := p.at.Load(); at == nil || old.Endpoint != set.Endpoint {
		p.at.Store(&whereabouts{set.Endpoint, true, set.Spread})
	} else {
		p.moveLocked(at.addr)
	}
	t.byAddress.put(number(set.Address), p)
	t.pruneLocked(p)
	if old.Key != (PublicKey{}) && p.identity(set.Also) != nil && !old.has(set.Also) {
		p.target, p.attempts, p.turn = set.Also, 0, 0
		t.beginLocked(p, t.clock())
	}
	return nil
}

// checkLocked keeps key and address one peer's.
func (t *Tunnel) checkLocked(name string, p Peer) error {
	if p.Key == (PublicKey{}) {
		return ErrKey
	}
	for _, k := range [...]PublicKey{p.Key, p.Also} {
		switch other := t.byKey[k]; {
		case k == PublicKey{}:
		case t.ownsLocked(k) || weak(k):
			return ErrKey
		case other != nil && other.name != name:
			return fmt.Errorf("%w: %s has it", ErrKey, other.name)
		}
	}
	if !p.Address.Is4() || p.Address == t.address {
		return ErrAddress
	}
	if other := t.byAddress.get(number(p.Address)); other != nil && other.name != name {
		return fmt.Errorf("%w: %s has it", ErrAddress, other.name)
	}
	if len(p.PSK) > MaxPSK {
		return ErrPSK
	}
	return nil
}

// weak says whether a key is a point of low order: with it there is no secret.
func weak(k PublicKey) bool {
	any := [keyLen]byte{1}
	_, err := curve25519.X25519(any[:], k[:])
	return err != nil
}

// pruneLocked ends what was made with keys that are no more.
func (t *Tunnel) pruneLocked(p *peer) {
	good := func(s *session) *session {
		if s != nil && t.ownsLocked(s.own) && p.identity(s.theirs) != nil {
			return s
		}
		t.endLocked(s)
		return nil
	}
	p.previous, p.next = good(p.previous), good(p.next)
	current := good(p.current.Load())
	if current == nil && p.previous != nil {
		current, p.previous = p.previous, nil
	}
	p.current.Store(current)
	if h := p.pending; h != nil && (!t.ownsLocked(h.own.public) || p.identity(h.with.public) == nil) {
		t.dropPendingLocked(p)
		p.begun, p.retry = 0, 0 // whoever waits for it need not wait for its time
		if len(p.staged) > 0 {
			t.beginLocked(p, t.clock())
		}
	}
}

// Begin makes a session with a peer now, before there is anything to send. A cell
// that comes back has none, and a peer that has one would seal for it until it
// misses an answer, for 15 s.
func (t *Tunnel) Begin(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[name]
	switch {
	case p == nil || t.closed.Load():
	case p.current.Load().lives():
		t.keepaliveLocked(p)
	default:
		p.attempts = 0
		t.beginLocked(p, t.clock())
	}
}

// Session is what a peer's frames are sealed in.
type Session struct {
	Local, Remote PublicKey // that made it
	PSK           PresharedKey
	Begun         bool // by this end, so that the peer chose the PSK
	Age           time.Duration
}

// Session tells of the session with a peer, if there is one.
func (t *Tunnel) Session(name string) (s Session, there bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[name]
	if p == nil {
		return s, false
	}
	c := p.current.Load()
	if !c.lives() {
		return s, false
	}
	return Session{c.own, c.theirs, c.psk, c.initiator, time.Duration(t.clock() - c.made)}, true
}

// Remove takes a peer out. Its session is over when Remove returns.
func (t *Tunnel) Remove(name string) {
	defer t.settle()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removeLocked(name)
}

func (t *Tunnel) removeLocked(name string) {
	p := t.peers[name]
	if p == nil {
		return
	}
	t.forgetLocked(p)
	for _, id := range p.keys {
		delete(t.byKey, id.public)
	}
	t.byAddress.drop(p.address.Load())
	delete(t.peers, name)
	p.gone = true
}

// settle waits until nothing is handed on any more that was opened in a session
// which is over.
func (t *Tunnel) settle() {
	for _, r := range t.receivers {
		r.idle()
	}
}

// Close ends all sessions, closes the sockets, and waits for their goroutines. It is
// idempotent. The receiver must not call it.
func (t *Tunnel) Close() error {
	if t.closed.Swap(true) {
		t.wg.Wait()
		return nil
	}
	close(t.stop)
	var err error
	for _, c := range t.conns {
		err = errors.Join(err, c.Close())
	}
	t.wg.Wait()
	t.limit.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	for name := range t.peers {
		t.removeLocked(name)
	}
	return err
}
