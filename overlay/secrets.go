package overlay

import (
	"context"
	"crypto/mlkem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"tulle/overlay/wireguard"
	"tulle/policy/api"
	"tulle/policy/client"
)

// PostQuantum says whether a cell has a post-quantum secret with each of its peers,
// which is mixed into their handshakes.
type PostQuantum string

// Values of PostQuantum.
const (
	PostQuantumOff      PostQuantum = "off"
	PostQuantumOn       PostQuantum = "on"       // with the peers that have it too; the others are named
	PostQuantumRequired PostQuantum = "required" // nothing passes to or from a peer without
)

// secretLife is how long an encapsulation key is published, and so how long a
// preshared key is the newest.
const secretLife = time.Hour

// offerPatience is how long an offer to a key that is published no more is waited for.
const offerPatience = 30 * time.Second

// secrets are the preshared keys that this cell has with its peers. Of two cells the
// one with the lower name encapsulates a secret to the other's published key
// (ML-KEM-768) and offers the ciphertext by way of the policy server; the other
// takes it out. Both derive the preshared key. Each uses a new key in an order in
// which no handshake meets a peer that does not know it (wireguard.Peer.PSK); the
// former goes when the new one is known to be at both ends.
//
// The exchange follows the encapsulation keys: when a peer publishes another, it is
// offered another secret.
type secrets struct {
	mode PostQuantum
	self string
	dir  string
	log  *slog.Logger
	boot func() time.Duration
	kick chan struct{} // capacity 1: there is something to tell the server

	mu     sync.Mutex                  // guards what follows
	own    *mlkem.DecapsulationKey768  // its public half is published
	before *mlkem.DecapsulationKey768  // the one published before, to which offers may be on their way
	made   time.Duration               // when own was, on the boot clock
	pairs  map[string]wireguard.Secret // by peer; on the disk as well
	lacks  map[string]bool             // peers without, of which it was said
	stuck  map[string]time.Duration    // offers to a key that is no more, and since when
	asked  map[string]uint64           // peers that were asked to use the key of that sequence
	offers map[string]api.PairSecret   // to be told, by peer
	held   map[string]api.PairSecret   // likewise
}

// openSecrets reads what the cell has, and makes its first key.
func openSecrets(mode PostQuantum, self, dir string, log *slog.Logger, boot func() time.Duration) (*secrets, error) {
	s := &secrets{mode: mode, self: self, dir: dir, log: log, boot: boot, kick: make(chan struct{}, 1),
		pairs: map[string]wireguard.Secret{}, lacks: map[string]bool{}, stuck: map[string]time.Duration{}, asked: map[string]uint64{}, offers: map[string]api.PairSecret{}, held: map[string]api.PairSecret{}}
	if mode == PostQuantumOff {
		return s, nil
	}
	var err error
	if s.pairs, err = wireguard.LoadSecrets(dir); err != nil {
		return nil, err
	}
	if mode == PostQuantumRequired {
		// A former daemon, to which it was not required, may have been halfway from none.
		for peer, pair := range s.pairs {
			pair.Keys = slices.DeleteFunc(pair.Keys, func(k wireguard.PresharedKey) bool { return k == wireguard.PresharedKey{} })
			s.pairs[peer] = pair
		}
	}
	return s, s.renewLocked()
}

func (s *secrets) renewLocked() (err error) {
	s.before = s.own
	s.made = s.boot()
	if s.own, err = mlkem.GenerateKey768(); err != nil {
		return fmt.Errorf("make an encapsulation key: %w", err)
	}
	return nil
}

// renew makes another encapsulation key when its time has come.
func (s *secrets) renew() (renewed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mode == PostQuantumOff || s.boot()-s.made < secretLife {
		return false, nil
	}
	return true, s.renewLocked()
}

// published is the key by which peers make secrets; "" where none are made.
func (s *secrets) published() api.EncapsulationKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own == nil {
		return ""
	}
	return api.EncapsulationKey(s.own.EncapsulationKey().Bytes())
}

// of are the preshared keys for the tunnel to a peer. ok is false where nothing may
// pass without one.
func (s *secrets) of(p api.Peer) (keys []wireguard.PresharedKey, ok bool) {
	if s.mode == PostQuantumOff {
		return nil, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.EncapsulationKey != "" {
		delete(s.lacks, p.Name)
		keys = s.pairs[p.Name].Keys
		return keys, len(keys) > 0 || s.mode != PostQuantumRequired
	}
	if !s.lacks[p.Name] {
		s.lacks[p.Name] = true
		_, had := s.pairs[p.Name]
		s.log.Error("NO POST-QUANTUM SECRET: the peer makes none; what is recorded now may be read when X25519 is broken",
			"peer", p.Name, "kind", p.Kind, "had_one", had, "refused", s.mode == PostQuantumRequired)
	}
	return nil, s.mode != PostQuantumRequired
}

// without lists the peers that make no secrets with this cell.
func (s *secrets) without() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.lacks))
}

// forget drops what was said of a peer that is gone. Its keys stay: it may come back.
func (s *secrets) forget(peer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.lacks, peer)
	delete(s.stuck, peer)
}

// ends are the tunnel keys at both ends of a pair.
type ends struct{ own, also api.TunnelKey }

// offer makes a secret for a peer that has not been offered one by its present key.
// It reports whether the tunnel's keys are others now.
func (s *secrets) offer(p api.Peer, own ends) bool {
	if s.mode == PostQuantumOff || p.EncapsulationKey == "" || s.self >= p.Name {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	pair := s.pairs[p.Name]
	if pair.KeyID == p.EncapsulationKey.ID() {
		delete(s.stuck, p.Name)
		return false
	}
	if len(pair.Keys) > 0 && !pair.Settled {
		// The peer may have taken up the former offer, and answer with it: then it
		// says so. A peer that was started anew cannot, and waits for this.
		since, waits := s.stuck[p.Name]
		if !waits {
			s.stuck[p.Name] = s.boot()
		}
		if !waits || s.boot()-since < offerPatience {
			return false
		}
	}
	delete(s.stuck, p.Name)
	ek, err := mlkem.NewEncapsulationKey768([]byte(p.EncapsulationKey))
	if err != nil {
		s.log.Error("the peer's encapsulation key is none: no secret with it", "peer", p.Name, "err", err)
		return false
	}
	shared, ciphertext := ek.Encapsulate()
	o := api.PairSecret{From: s.self, To: p.Name, Sequence: pair.Sequence + 1, KeyID: p.EncapsulationKey.ID(), FromKey: own.own, ToKey: p.Key, Ciphertext: ciphertext}
	key, err := bind(o, p.EncapsulationKey).Derive(shared)
	if err != nil {
		s.log.Error("no secret with this peer", "peer", p.Name, "err", err)
		return false
	}
	// Known here, and to be answered with when the peer has it.
	next := wireguard.Secret{Sequence: o.Sequence, KeyID: o.KeyID, Keys: []wireguard.PresharedKey{key}}
	switch {
	case len(pair.Keys) > 0:
		next.Keys = []wireguard.PresharedKey{pair.Keys[0], key}
	case s.mode == PostQuantumOn:
		next.Keys = []wireguard.PresharedKey{{}, key}
	}
	if !s.putLocked(p.Name, next) {
		return false
	}
	s.offers[p.Name] = o
	s.wake()
	return true
}

// bind is what both ends hold a secret to.
func bind(o api.PairSecret, by api.EncapsulationKey) wireguard.Binding {
	return wireguard.Binding{From: o.From, To: o.To, FromKey: wireguard.PublicKey(o.FromKey), ToKey: wireguard.PublicKey(o.ToKey),
		Sequence: o.Sequence, EncapsulationKey: []byte(by), Ciphertext: o.Ciphertext}
}

// putLocked stores a pair's keys, on the disk first.
func (s *secrets) putLocked(peer string, next wireguard.Secret) bool {
	all := maps.Clone(s.pairs)
	all[peer] = next
	if err := wireguard.SaveSecrets(s.dir, all); err != nil {
		s.log.Error("the secret with this peer stays as it was", "peer", peer, "err", err)
		return false
	}
	s.pairs = all
	return true
}

// take takes in what the server says of a pair: an offer of the peer's, or that the
// peer has taken up this cell's. It reports whether the tunnel's keys are others
// now.
func (s *secrets) take(o api.PairSecret, p api.Peer, own ends) bool {
	if s.mode == PostQuantumOff {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.From == s.self {
		return s.settleLocked(o)
	}
	pair := s.pairs[o.From]
	if pair.Sequence == o.Sequence && pair.KeyID == o.KeyID {
		if !o.Held {
			s.holdLocked(o)
		}
		return false
	}
	if o.FromKey != p.Key && o.FromKey != p.NextKey || o.ToKey != own.own && o.ToKey != own.also {
		s.log.Info("an offered secret is of other tunnel keys; another will come", "peer", o.From)
		return false
	}
	for _, dk := range []*mlkem.DecapsulationKey768{s.own, s.before} {
		if dk == nil {
			continue
		}
		ek := api.EncapsulationKey(dk.EncapsulationKey().Bytes())
		if ek.ID() != o.KeyID {
			continue
		}
		shared, err := dk.Decapsulate(o.Ciphertext)
		var key wireguard.PresharedKey
		if err == nil {
			key, err = bind(o, ek).Derive(shared)
		}
		if err != nil {
			s.log.Error("an offered secret is none", "peer", o.From, "err", err)
			return false
		}
		// The peer has it, and answers with the former until it hears that this cell
		// has it too.
		next := wireguard.Secret{Sequence: o.Sequence, KeyID: o.KeyID, Keys: []wireguard.PresharedKey{key}, Settled: true}
		switch {
		case len(pair.Keys) > 0:
			next.Keys = append(next.Keys, pair.Keys[0])
		case s.mode == PostQuantumOn:
			next.Keys = append(next.Keys, wireguard.PresharedKey{})
		}
		if !s.putLocked(o.From, next) {
			return false
		}
		s.holdLocked(o)
		return true
	}
	return false // of a key that a former daemon had; the present one is published
}

func (s *secrets) holdLocked(o api.PairSecret) {
	s.held[o.From] = api.PairSecret{From: o.From, To: o.To, Sequence: o.Sequence, KeyID: o.KeyID}
	s.wake()
}

// settleLocked: the peer has what this cell offered, or something that this cell has
// not any more.
func (s *secrets) settleLocked(o api.PairSecret) bool {
	pair := s.pairs[o.To]
	switch {
	case o.Sequence > pair.Sequence:
		pair.Sequence, pair.KeyID = o.Sequence, "" // the next is above it, and is due
		s.putLocked(o.To, pair)
		return false
	case o.Sequence != pair.Sequence || !o.Held || pair.Settled:
		return false
	}
	pair.Settled, pair.Keys = true, pair.Keys[len(pair.Keys)-1:]
	return s.putLocked(o.To, pair)
}

// missing lists offers of this cell's that a snapshot does not have, and has them
// made again.
func (s *secrets) missing(there []api.PairSecret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for peer, pair := range s.pairs {
		known := slices.ContainsFunc(there, func(o api.PairSecret) bool { return o.To == peer && o.Sequence >= pair.Sequence })
		if _, waits := s.offers[peer]; s.self < peer && !pair.Settled && !known && !waits {
			pair.KeyID = ""
			s.pairs[peer] = pair
		}
	}
}

// used takes in what the session with a peer was made with. Where this end began it,
// the peer chose the key: if that is the newest, it has it, knows that this cell has
// it, and the former goes. Where the peer began it, it may still answer with the
// former: ask reports that a session begun here would tell, once a key.
func (s *secrets) used(peer string, of wireguard.Session) (changed, ask bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pair := s.pairs[peer]
	if len(pair.Keys) < 2 {
		return false, false
	}
	newest := pair.Keys[1] // offered
	if pair.Settled {
		newest = pair.Keys[0] // taken up
	}
	if _, untold := s.held[peer]; of.PSK != newest || untold {
		return false, false
	}
	if !of.Begun {
		ask = s.asked[peer] != pair.Sequence
		s.asked[peer] = pair.Sequence
		return false, ask
	}
	pair.Keys, pair.Settled = []wireguard.PresharedKey{newest}, true
	return s.putLocked(peer, pair), false
}

// halfway lists the peers with which there are two keys.
func (s *secrets) halfway() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var peers []string
	for peer, pair := range s.pairs {
		if len(pair.Keys) > 1 {
			peers = append(peers, peer)
		}
	}
	return peers
}

func (s *secrets) anyStuck() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.stuck) > 0
}

func (s *secrets) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// due is what there is to tell the server, as much as one request takes.
func (s *secrets) due() (r api.SecretsRequest, any bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	some := func(of map[string]api.PairSecret) (list []api.PairSecret) {
		for _, o := range of {
			if list = append(list, o); len(list) == api.MaxSecrets {
				break
			}
		}
		return list
	}
	r = api.SecretsRequest{Offers: some(s.offers), Held: some(s.held)}
	return r, len(r.Offers)+len(r.Held) > 0
}

// done forgets what was told, unless there is something newer to tell.
func (s *secrets) done(r api.SecretsRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range r.Offers {
		if s.offers[o.To].Sequence == o.Sequence {
			delete(s.offers, o.To)
		}
	}
	for _, o := range r.Held {
		if s.held[o.From].KeyID == o.KeyID {
			delete(s.held, o.From)
		}
	}
}

// secretKeeper is what a control plane does that passes secrets on.
type secretKeeper interface {
	PutSecrets(ctx context.Context, r api.SecretsRequest) error
}

// keepSecrets tells the server what is due, renews the encapsulation key, and drops
// keys that are used no more, until ctx ends.
func (l *life) keepSecrets(ctx context.Context) error {
	s := l.d.secrets
	server, can := l.d.client.(secretKeeper)
	if s.mode == PostQuantumOff || !can {
		return nil
	}
	tick := time.NewTicker(fenceEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.kick:
		case <-tick.C:
		}
		renewed, err := s.renew()
		if err != nil {
			return err
		}
		if renewed {
			l.renewNow()
		}
		for _, peer := range s.halfway() {
			session, there := l.tunnel.Session(peer)
			if !there {
				continue
			}
			changed, ask := s.used(peer, session)
			if changed {
				l.resecret(peer)
			}
			if ask {
				l.tunnel.Renew(peer)
			}
		}
		if s.anyStuck() {
			l.offerAgain()
		}
		for r, any := s.due(); any; r, any = s.due() {
			if err := server.PutSecrets(ctx, r); err != nil {
				var refused *client.StatusError
				if errors.As(err, &refused) && refused.Code < 500 && refused.Code != 404 {
					l.d.log.Error("the policy server refuses what this cell tells its peers to have secrets with them", "err", err)
					s.done(r)
				} else if ctx.Err() == nil {
					l.d.log.Debug("secrets are not told yet", "err", err) // the watch says that the server is away
				}
				break
			}
			s.done(r)
		}
	}
}

// resecret has a peer's tunnel follow its keys.
func (l *life) resecret(peer string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p, there := l.world.peers[peer]; there {
		l.world.tunnels.set(p)
	}
}

// offerAgain makes the offers whose time has come.
func (l *life) offerAgain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.world.offer(l.world.tunnels.own())
}

// agree takes in what an event says of secrets, and offers new ones.
func (w *world) agree(e api.Event) {
	s := w.tunnels.secrets
	var told []api.PairSecret
	switch {
	case s == nil || w.tunnels.sessions == nil || s.mode == PostQuantumOff:
		return
	case e.Snapshot != nil:
		told = e.Snapshot.Secrets
		s.missing(told)
	case e.Delta != nil:
		told = e.Delta.SecretsSet
	default:
		return
	}
	own := w.tunnels.own()
	for _, o := range told {
		other := o.From
		if other == w.self {
			other = o.To
		}
		if p, there := w.peers[other]; there && s.take(o, p, own) {
			w.tunnels.set(p)
			if o.From == w.self { // now that both have it
				w.tunnels.sessions.Renew(other)
			}
		}
	}
	w.offer(own)
}

// offer makes secrets for the peers whose containers have to do with this cell's.
func (w *world) offer(own ends) {
	for name := range w.endpoints {
		if p, there := w.peers[name]; there && p.Mode == api.ModeWireGuard && w.tunnels.secrets.offer(p, own) {
			w.tunnels.set(p)
		}
	}
}
