package wireguard

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/flynn/noise"
	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"
)

// The handshake is Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s with this prologue.
var (
	suite    = noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashBLAKE2s)
	prologue = []byte(device.WGIdentifier)
)

// newNoise is a handshake from one static key, to another or whoever it is.
func newNoise(own *ownKey, to []byte) (*noise.HandshakeState, error) {
	return noise.NewHandshakeState(noise.Config{
		CipherSuite: suite, Pattern: noise.HandshakeIK, Prologue: prologue, PresharedKeyPlacement: 2,
		Initiator: to != nil, StaticKeypair: own.pair, PeerStatic: to,
	})
}

// ownKey is one static key of this cell's.
type ownKey struct {
	private PrivateKey
	public  PublicKey
	pair    noise.DHKey
	macs    device.CookieChecker // of what is addressed to it
}

func newOwnKey(k PrivateKey) *ownKey {
	o := &ownKey{private: k, public: k.Public()}
	o.pair = noise.DHKey{Private: o.private.scalar[:], Public: o.public[:]}
	o.macs.Init(device.NoisePublicKey(o.public))
	return o
}

// handshake is one begun by this cell, until it is answered or begun anew.
type handshake struct {
	index uint32
	own   *ownKey
	with  *identity
	state *noise.HandshakeState
}

// Handshakes cost curve multiplications, and anybody may ask for them. So they are
// not the receiver's to make: they queue here, and where many do, who asks must
// first show that it gets what is sent to its address.
const (
	queueLen     = 256
	underLoadLen = queueLen / 8
)

// message is one datagram of a handshake.
type message struct {
	from netip.AddrPort
	n    int
	b    [initiationLen]byte
}

// queue keeps a copy of a handshake's datagram, if there is room.
func (t *Tunnel) queue(d []byte, from netip.AddrPort) {
	m := message{from: from}
	m.n = copy(m.b[:], d)
	select {
	case t.handshakes <- m:
	default:
	}
}

// shake takes handshakes' messages until Close.
func (t *Tunnel) shake() {
	for {
		select {
		case m := <-t.handshakes:
			t.message(&m, len(t.handshakes) >= underLoadLen)
		case <-t.stop:
			return
		}
	}
}

// message takes one. Where there is load it must show a cookie.
func (t *Tunnel) message(m *message, load bool) {
	b := m.b[:m.n]
	if kind(b) == typeCookie {
		t.cookie(b)
		return
	}
	own := t.addressed(b)
	if own == nil {
		return
	}
	now := t.clock()
	if load {
		t.loadUntil = now + underLoadTime
	}
	if now < t.loadUntil && !t.admit(own, b, m.from) {
		return
	}
	var err error
	if kind(b) == typeInitiation {
		err = t.initiation(own, b, m.from, now)
	} else {
		err = t.response(b, m.from, now)
	}
	if err != nil {
		t.log.Debug("handshake is not taken", "from", m.from, "err", err)
	}
}

// addressed is the own key that a message was made for.
func (t *Tunnel) addressed(b []byte) *ownKey {
	for _, k := range *t.own.Load() {
		if k.macs.CheckMAC1(b) {
			return k
		}
	}
	return nil
}

// admit says whether a message is one of few from an address that is its sender's;
// if that is not shown, its sender is told how to.
func (t *Tunnel) admit(own *ownKey, b []byte, from netip.AddrPort) bool {
	source, _ := from.MarshalBinary() // of an AddrPort it cannot fail
	if own.macs.CheckMAC2(b, source) {
		return t.limit.Allow(from.Addr())
	}
	reply, err := own.macs.CreateReply(b, endian.Uint32(b[4:]), source)
	if err == nil {
		err = t.conns[0].Send(from, cookieReply(reply), 0)
	}
	if err != nil {
		t.log.Debug("cookie is not sent", "to", from, "err", err)
	}
	return false
}

// cookie notes what a peer under load wants to see.
func (t *Tunnel) cookie(b []byte) {
	r := readCookieReply(b)
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.indices.get(r.Receiver); e != nil {
		for _, id := range e.peer.keys {
			if id.macs.ConsumeReply(r) {
				return
			}
		}
	}
}

// Why a handshake is not taken.
var (
	errStranger = errors.New("no peer has this key")
	errReplay   = errors.New("older than one that was taken")
	errFlood    = errors.New("too soon after another")
	errUnasked  = errors.New("answers nothing that was asked")
)

// begin begins a handshake with a peer, if none was a moment ago.
func (t *Tunnel) begin(p *peer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !p.gone && !t.closed.Load() {
		p.attempts = 0
		t.beginLocked(p, t.clock())
	}
}

// beginLocked sends an initiation. Within the time that one may take to be answered,
// this end's or one that the peer began since, another follows when that time is over.
func (t *Tunnel) beginLocked(p *peer, now int64) {
	if p.begun != 0 && now-p.begun < rekeyTimeout {
		if p.retry <= now {
			p.retry = p.begun + rekeyTimeout + jitter()
		}
		return
	}
	p.begun, p.retry = now, now+rekeyTimeout+jitter()
	p.asked.Store(now)
	if err := t.initiateLocked(p); err != nil {
		t.log.Debug("handshake is not begun", "peer", p.name, "err", err)
	}
}

// towardLocked is the peer's key that a handshake is for: the one asked for, else
// that of the session; and where it does not answer, each in turn.
func (t *Tunnel) towardLocked(p *peer) *identity {
	at := 0
	if k := p.identity(p.target); k != nil && k != p.keys[0] {
		at = 1
	} else if s := p.current.Load(); s != nil && k == nil && s.theirs != p.keys[0].public {
		at = 1
	}
	return p.keys[(at+p.turn)%len(p.keys)]
}

func (t *Tunnel) initiateLocked(p *peer) error {
	own, with := (*t.own.Load())[0], t.towardLocked(p)
	p.turn++
	state, err := newNoise(own, with.public[:])
	if err != nil {
		return err
	}
	b := make([]byte, initiationLen)
	now := t.stampLocked()
	if _, _, _, err = state.WriteMessage(b[initiationAt:initiationAt], now[:]); err != nil {
		return err
	}
	t.dropPendingLocked(p)
	h := &handshake{own: own, with: with, state: state}
	h.index = t.indexLocked(&entry{peer: p, pending: h})
	p.pending = h
	endian.PutUint32(b, typeInitiation)
	endian.PutUint32(b[4:], h.index)
	with.macs.AddMacs(b)
	p.sent(false)
	return p.put(b, len(b), 0)
}

// stampLocked is later than any before, however far the host's clock was set back.
func (t *Tunnel) stampLocked() tai64n.Timestamp {
	now := t.wall().Round(0) // without the monotonic clock
	if next := t.stamped.Add(stampStep); now.Before(next) {
		now = next
	}
	t.stamped = now
	return stamp(now.Unix(), now.Nanosecond())
}

// initiation answers a handshake that a peer begins. The curve's work on what a
// stranger may have sent is done without the lock. Whether the peer has moved is seen
// when it sends in the session: to a cell that was started again a stranger can repeat
// what the peer once began.
func (t *Tunnel) initiation(own *ownKey, b []byte, from netip.AddrPort, now int64) error {
	state, err := newNoise(own, nil)
	if err != nil {
		return err
	}
	at, _, _, err := state.ReadMessage(nil, b[initiationAt:initiationLen-macsLen])
	if err != nil {
		return err
	}
	if len(at) != tai64n.TimestampSize || len(state.PeerStatic()) != keyLen {
		return fmt.Errorf("a timestamp of %d bytes", len(at))
	}
	when, key := tai64n.Timestamp(at), PublicKey(state.PeerStatic())

	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.byKey[key]
	if p == nil || !t.ownsLocked(own.public) {
		return errStranger
	}
	id := p.identity(key)
	if !when.After(id.newest) {
		return errReplay
	}
	if id.seen != 0 && now-id.seen <= floodTime {
		return errFlood
	}
	id.newest, id.seen = when, now
	psk := p.set.psks()[0]
	if err := state.SetPresharedKey(psk[:]); err != nil {
		return err
	}
	answer := make([]byte, responseLen)
	_, in, out, err := state.WriteMessage(answer[responseAt:responseAt], nil)
	if err != nil {
		return err
	}
	s := newSession(p, own.public, key, psk, in.UnsafeKey(), out.UnsafeKey(), now)
	s.local = t.indexLocked(&entry{peer: p, session: s})
	s.remote, s.from = endian.Uint32(b[4:]), from
	s.unconfirmed.Store(true)
	t.endLocked(p.next) // which was not confirmed
	p.next = s
	p.begun, p.derived = now, now
	p.asked.Store(now)
	endian.PutUint32(answer, typeResponse)
	endian.PutUint32(answer[4:], s.local)
	endian.PutUint32(answer[8:], s.remote)
	id.macs.AddMacs(answer)
	p.sent(false)
	return t.conns[0].Send(from, answer, 0)
}

// response makes the session of a handshake that this cell began, and sends in it at
// once: that is what tells the peer that it is there.
func (t *Tunnel) response(b []byte, from netip.AddrPort, now int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.indices.get(endian.Uint32(b[8:]))
	if e == nil || e.pending == nil || e.peer.pending != e.pending {
		return errUnasked
	}
	p, h := e.peer, e.pending
	// The library cannot go on after a failed multiplication. None fails that this
	// one does not: only points of low order do, with every key.
	ephemeral := b[responseAt : responseAt+keyLen]
	if _, err := curve25519.X25519(h.state.LocalEphemeral().Private, ephemeral); err != nil {
		return err
	}
	var out, in *noise.CipherState
	var psk PresharedKey
	err := errUnasked
	for _, psk = range p.set.psks() {
		if err = h.state.SetPresharedKey(psk[:]); err != nil {
			return err
		}
		if _, out, in, err = h.state.ReadMessage(nil, b[responseAt:responseLen-macsLen]); err == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	p.pending = nil
	s := newSession(p, h.own.public, h.with.public, psk, in.UnsafeKey(), out.UnsafeKey(), now)
	s.initiator = true
	s.local = h.index // which the session has from now on
	s.remote = endian.Uint32(b[4:])
	// What the peer began meanwhile stays, for it may use that; and so does what it
	// may seal in until it has heard of the new one.
	t.endLocked(p.previous)
	p.previous = p.current.Load()
	p.derived = now
	p.target = PublicKey{}
	p.heard(false)
	p.moveLocked(from)
	t.indices.put(s.local, &entry{peer: p, session: s})
	t.useLocked(p, s)
	return nil
}

// confirm puts a session to use that the peer began, now that it sends in it.
func (t *Tunnel) confirm(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := s.peer
	if p.gone || p.next != s {
		return
	}
	s.unconfirmed.Store(false)
	t.endLocked(p.previous)
	p.previous, p.next = p.current.Load(), nil
	p.moveLocked(s.from)
	t.useLocked(p, s)
}

// useLocked seals with s from now on, first what waited for it.
func (t *Tunnel) useLocked(p *peer, s *session) {
	p.retry, p.attempts, p.turn = 0, 0, 0
	p.lastMinute.Store(false)
	any := t.sendStagedLocked(p, s)
	p.current.Store(s)
	if !any && s.initiator {
		t.keepaliveLocked(p)
	}
	t.log.Debug("session", "peer", p.name, "begun", s.initiator, "with", s.theirs)
}

func newSession(p *peer, own, theirs PublicKey, psk PresharedKey, in, out [32]byte, now int64) *session {
	return &session{peer: p, own: own, theirs: theirs, psk: psk, made: now, seal: newAEAD(out), open: newAEAD(in)}
}

// indexLocked enters e under an index that says nothing.
func (t *Tunnel) indexLocked(e *entry) uint32 {
	for {
		var b [4]byte
		rand.Read(b[:])
		if i := binary.LittleEndian.Uint32(b[:]); t.indices.get(i) == nil {
			t.indices.put(i, e)
			return i
		}
	}
}

// endLocked ends a session, if it is one. Its keys go with it.
func (t *Tunnel) endLocked(s *session) {
	if s == nil {
		return
	}
	s.age.Store(uint32(dead))
	t.indices.drop(s.local)
}

func (t *Tunnel) dropPendingLocked(p *peer) {
	if p.pending != nil {
		t.indices.drop(p.pending.index)
		p.pending = nil
	}
}

// forgetLocked ends all that there is of a peer's sessions.
func (t *Tunnel) forgetLocked(p *peer) {
	for _, s := range [...]*session{p.previous, p.current.Load(), p.next} {
		t.endLocked(s)
	}
	p.previous, p.next = nil, nil
	p.current.Store(nil)
	t.dropPendingLocked(p)
	p.dropStaged()
	p.timetable = timetable{begun: p.begun}
	p.unanswered.Store(0)
	p.owed.Store(0)
}

// monotonic is the clock: time since a moment before the tunnel's beginning.
func monotonic() func() int64 {
	begun := time.Now().Add(-time.Second)
	return func() int64 { return int64(time.Since(begun)) }
}
