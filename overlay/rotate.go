package overlay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"tulle/overlay/control"
	"tulle/overlay/wireguard"
	"tulle/policy/api"
)

const (
	// rotateWithin bounds how long a step of a rotation waits for cells that say
	// nothing, and for foreign peers that nobody told.
	rotateWithin = 10 * time.Minute
	// rotateLinger is how long what was sealed with a key may be on its way.
	rotateLinger = time.Second
	// rotateLook is how often it is looked whether the sessions have moved.
	rotateLook = 100 * time.Millisecond
	// rotateAgain is how often peers are called that did not answer.
	rotateAgain = 10 * time.Second
	// rotateFollow is how long a request waits for news of a rotation.
	rotateFollow = 20 * time.Second
)

// rotation gives the cell another tunnel key without the loss of a packet: the next
// is published beside the current one; every peer begins a session with it; it is
// made the current one and published alone; the old one is forgotten. Each state is
// on the disk before it counts (wireguard.Keys), so whatever ends the daemon, the
// next start goes on from there.
type rotation struct {
	l     *life
	asked chan struct{} // capacity 1

	mu    sync.Mutex       // guards what follows
	state control.Rotation // as told to whoever follows
	news  chan struct{}    // closed and replaced when state changes
}

// newRotation begins with what a former daemon left.
func newRotation(l *life) *rotation {
	r := &rotation{l: l, asked: make(chan struct{}, 1), news: make(chan struct{})}
	if k := l.d.tunnelKeys(); !k.Other().IsZero() {
		r.state = control.Rotation{Serial: 1, Step: control.RotationBegins, Since: l.d.cfg.Clock.Wall()}
		r.nameLocked(k)
		l.d.log.Info("a rotation of the tunnel key goes on that was under way", "old", r.state.Old, "new", r.state.New)
	}
	return r
}

// RotateKey implements control.Handler: begins a rotation, joins one that is under
// way, or waits for news of it.
func (l *life) RotateKey(ctx context.Context, q control.RotateKey) (control.Rotation, error) {
	if l.rotation == nil {
		return control.Rotation{}, control.Errorf(control.CodeUnavailable, "the cell has mode %s, and so no tunnel key", l.d.cfg.Mode)
	}
	if q.Follow == 0 {
		return l.rotation.start(), nil
	}
	return l.rotation.follow(ctx, q.Follow), nil
}

func (r *rotation) start() control.Rotation {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state.Step.Ended() {
		r.state = control.Rotation{Serial: r.state.Serial, Step: control.RotationBegins, Since: r.l.d.cfg.Clock.Wall()}
		r.tellLocked()
		r.asked <- struct{}{} // there is room: only a rotation that has ended is begun
		return r.state
	}
	joined := r.state
	joined.Joined = true
	return joined
}

// step is how far the rotation under way is; "" if there is none.
func (r *rotation) step() control.RotationStep {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state.Step.Ended() {
		return ""
	}
	return r.state.Step
}

// follow is the state as soon as its serial is above the given one.
func (r *rotation) follow(ctx context.Context, serial uint64) control.Rotation {
	patience := time.NewTimer(rotateFollow)
	defer patience.Stop()
	for {
		r.mu.Lock()
		state, news := r.state, r.news
		r.mu.Unlock()
		if state.Serial > serial || state.Step.Ended() {
			return state
		}
		select {
		case <-news:
		case <-patience.C:
			return state
		case <-ctx.Done():
			return state
		}
	}
}

func (r *rotation) tellLocked() {
	r.state.Serial++
	close(r.news)
	r.news = make(chan struct{})
}

// tell changes the state, for the log and for whoever follows.
func (r *rotation) tell(step control.RotationStep, change func(*control.Rotation)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.state
	r.state.Step, r.state.Waiting, r.state.Until = step, nil, time.Time{}
	if change != nil {
		change(&r.state)
	}
	moved := r.state.Step != before.Step
	if moved || !slices.Equal(r.state.Waiting, before.Waiting) || !r.state.Until.Equal(before.Until) || !slices.Equal(r.state.Static, before.Static) {
		r.tellLocked()
	}
	if moved && step != control.RotationFailed { // whoever fails logs why
		r.l.d.log.Info("tunnel key is rotated", "step", step, "old", r.state.Old, "new", r.state.New)
	}
}

// run carries out rotations: what a former daemon left first, then what is asked
// for. It returns when ctx ends.
func (r *rotation) run(ctx context.Context) error {
	d := r.l.d
	for ctx.Err() == nil {
		if d.tunnelKeys().Other().IsZero() {
			select {
			case <-r.asked:
			case <-ctx.Done():
				return nil
			}
			if err := r.begin(ctx); err != nil {
				d.log.Error("tunnel key is not rotated", "err", err)
				r.tell(control.RotationFailed, func(s *control.Rotation) { s.Error = err.Error() })
				continue
			}
		}
		err := r.carry(ctx)
		switch {
		case err == nil:
			r.tell(control.RotationDone, nil)
		case errors.Is(err, errNews) || ctx.Err() != nil:
		default: // the disk, most likely
			d.log.Error("rotation of the tunnel key stands still", "err", err, "retry_in", leasePatience)
			sleep(ctx, leasePatience)
		}
	}
	return nil
}

// nameLocked enters both keys into the state.
func (r *rotation) nameLocked(k wireguard.Keys) {
	public := func(k wireguard.PrivateKey) api.TunnelKey { return api.TunnelKey(k.Public()) }
	if k.Next.IsZero() {
		r.state.Old, r.state.New = public(k.Old), public(k.Current)
	} else {
		r.state.Old, r.state.New = public(k.Current), public(k.Next)
	}
}

var errServerAway = errors.New("the policy server is away, from which peers hear of the next key; nothing was changed, try again when it is back")

// begin makes the next key and publishes it. An error leaves all as it was.
func (r *rotation) begin(ctx context.Context) error {
	l := r.l
	if !l.d.client.Connected() {
		return errServerAway
	}
	next, err := wireguard.GenerateKey()
	if err != nil {
		return err
	}
	was := l.d.tunnelKeys()
	with := wireguard.Keys{Current: was.Current, Next: next}
	if err := l.setKeys(with); err != nil {
		return fmt.Errorf("%w; nothing was changed", err)
	}
	if _, err = l.publish(ctx); err != nil {
		// Published or not: the next renewal publishes the current key alone.
		undo := l.setKeys(was)
		l.renewNow()
		if undo == nil {
			return fmt.Errorf("publish the next key: %w; nothing was changed", err)
		}
		l.d.log.Error("the next key could neither be published nor taken back: the rotation goes on", "err", errors.Join(err, undo))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nameLocked(with)
	return nil
}

// errNews: what a step was founded on is no more, and it is done again.
var errNews = errors.New("the rotation's step is to be done again")

// carry goes on from what the keys say to the end. It may be begun again at any
// point.
func (r *rotation) carry(ctx context.Context) error {
	l := r.l
	keys := l.d.tunnelKeys()
	if !keys.Next.IsZero() {
		// Everybody takes handshakes from both before any comes from the next.
		if err := r.told(ctx, control.RotationTells); err != nil {
			return err
		}
		keys = wireguard.Keys{Current: keys.Next, Old: keys.Current}
		if err := l.setKeys(keys); err != nil {
			return err
		}
	}
	if !keys.Alone {
		if err := r.moved(ctx, keys); err != nil {
			return err
		}
		keys.Alone = true
		if err := l.setKeys(keys); err != nil {
			return err
		}
	}
	if err := r.told(ctx, control.RotationPublishes); err != nil {
		return err
	}
	if !sleep(ctx, rotateLinger) {
		return ctx.Err()
	}
	return l.setKeys(wireguard.Keys{Current: keys.Current})
}

// told publishes the keys and waits until every cell that this one concerns has
// acknowledged them, or has said nothing for too long.
func (r *rotation) told(ctx context.Context, step control.RotationStep) error {
	l := r.l
	at, err := r.published(ctx)
	if err != nil {
		return err
	}
	limit := l.d.cfg.Rotate
	until := l.d.cfg.Clock.Wall().Add(limit)
	r.tell(step, func(s *control.Rotation) { s.Until, s.Static = until, l.staticPeers() })
	for _, peer := range l.staticPeers() {
		l.d.log.Warn("ATTENTION: nobody tells this peer, which was entered by hand, of the cell's new key: put it into the peer's own configuration, or nothing passes when the old one is forgotten",
			"peer", peer, "new", r.state.New)
	}
	patience := time.NewTimer(limit)
	defer patience.Stop()
	for {
		l.mu.Lock()
		epoch, floor, changed := l.world.epoch, l.world.floor, l.changed
		l.mu.Unlock()
		switch {
		case epoch != at.epoch:
			return errNews // another store, which may not have what was published
		case floor >= at.revision:
			return nil
		}
		select {
		case <-changed:
		case <-patience.C:
			l.d.log.Warn("cells have not acknowledged the tunnel key, and are not waited for any longer", "waited", limit, "revision", at.revision, "floor", floor)
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// published publishes the keys, as soon as there is a server that takes them.
func (r *rotation) published(ctx context.Context) (known, error) {
	l := r.l
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, leasePatience) {
		at, err := l.publish(ctx)
		if err == nil {
			// An epoch that the watch has not come to yet comes next.
			return at, l.reach(ctx, at)
		}
		if ctx.Err() != nil {
			return at, ctx.Err()
		}
		l.d.log.Warn("tunnel keys not published", "err", err, "retry_in", pause)
		retry := time.NewTimer(pause)
		connected, changed := l.d.client.Connection()
		if connected {
			changed = nil
		}
		select {
		case <-retry.C:
		case <-changed: // the server is there again
		case <-ctx.Done():
		}
		retry.Stop()
	}
}

// reach waits until the watch has come to what was published.
func (l *life) reach(ctx context.Context, at known) error {
	for {
		l.mu.Lock()
		there, changed := l.world.epoch == at.epoch, l.changed
		l.mu.Unlock()
		if there {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// publish has the server store the keys as they are now.
func (l *life) publish(ctx context.Context) (known, error) {
	got, at, err := l.d.ask(ctx, l.ports())
	switch {
	case err != nil:
		return at, err
	case !l.same(got): // which is for keepLease to find, and to end this life
		l.renewNow()
		return at, errLeaseChanged
	case at.revision == 0:
		return at, errors.New("the policy server does not say when a key is known: it is of a version that cannot rotate keys, renew it first")
	}
	return at, l.d.ledger.SetLease(got)
}

// moved waits until no peer's session is the old key's any more, and what was sealed
// in one has arrived. The tunnel begins the new sessions by itself when the key
// becomes the current one.
func (r *rotation) moved(ctx context.Context, keys wireguard.Keys) error {
	l := r.l
	limit := l.d.cfg.Rotate
	until := l.d.cfg.Clock.Wall().Add(limit)
	patience := time.NewTimer(limit)
	defer patience.Stop()
	look := time.NewTicker(rotateLook)
	defer look.Stop()
	again := time.NewTicker(rotateAgain)
	defer again.Stop()
	for {
		waiting := l.sessionsNotOf(l.tunnel.Public())
		r.tell(control.RotationMoves, func(s *control.Rotation) { s.Waiting, s.Until, s.Static = waiting, until, l.staticPeers() })
		if len(waiting) == 0 {
			break
		}
		select {
		case <-look.C:
			continue
		case <-again.C: // a handshake is begun with those whose last one came to nothing
			if err := l.tunnel.SetKeys(keys.Current, others(keys)...); err != nil {
				return err
			}
			continue
		case <-patience.C:
			l.d.log.Warn("peers still use the old tunnel key, and are not waited for any longer", "peers", waiting, "waited", limit)
		case <-ctx.Done():
			return ctx.Err()
		}
		break
	}
	if !sleep(ctx, rotateLinger) {
		return ctx.Err()
	}
	return nil
}

// sessionsNotOf are the peers whose session was made with another key of the cell's.
func (l *life) sessionsNotOf(own wireguard.PublicKey) []string {
	var names []string
	for _, name := range l.peersInTunnel(func(api.Peer) bool { return true }) {
		if s, there := l.tunnel.Session(name); there && s.Local != own {
			names = append(names, name)
		}
	}
	return names
}

// staticPeers are those whose key of this cell's was entered by hand.
func (l *life) staticPeers() []string {
	return l.peersInTunnel(func(p api.Peer) bool { return p.Kind == api.KindSilk })
}

func (l *life) peersInTunnel(which func(api.Peer) bool) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for name, p := range l.world.peers {
		if p.Mode == api.ModeWireGuard && which(p) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// setKeys puts keys in force, on the disk first.
func (l *life) setKeys(k wireguard.Keys) error {
	d := l.d
	d.keyring.Lock()
	defer d.keyring.Unlock()
	if err := wireguard.SaveKeys(d.cfg.StateDir, k); err != nil {
		return err
	}
	d.keys = k
	return l.tunnel.SetKeys(k.Current, others(k)...)
}

// others is the second key, if there is one.
func others(k wireguard.Keys) []wireguard.PrivateKey {
	if o := k.Other(); !o.IsZero() {
		return []wireguard.PrivateKey{o}
	}
	return nil
}

func (d *Daemon) tunnelKeys() wireguard.Keys {
	d.keyring.Lock()
	defer d.keyring.Unlock()
	return d.keys
}

// published are the keys that peers are to know.
func (d *Daemon) published() (key, second api.TunnelKey) {
	d.keyring.Lock()
	defer d.keyring.Unlock()
	key = api.TunnelKey(d.keys.Current.Public())
	if o := d.keys.Other(); !o.IsZero() && !d.keys.Alone {
		second = api.TunnelKey(o.Public())
	}
	return key, second
}
