package overlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"tulle/overlay/control"
	"tulle/overlay/endpoint"
	"tulle/overlay/fib"
	"tulle/overlay/identity"
	"tulle/overlay/mint"
	"tulle/policy"
)

// proxyAway is how long 61443 goes on listening without a proxy, which has been
// killed or is being replaced; then it refuses.
const proxyAway = 10 * time.Second

// certificateWithin bounds how long the proxy waits for a certificate: less than
// a handshake may take.
const certificateWithin = 8 * time.Second

// trustWithin bounds how long an attach waits for what its container is to trust.
const trustWithin = 2 * time.Second

// terminals are the containers of a life whose TLS is to be terminated. Its
// methods may be called from any goroutine.
type terminals struct {
	d    *Daemon
	away time.Duration // proxyAway

	mu      sync.Mutex // guards the fields below
	version uint64     // begins with the clock, so that no two lives' are the same
	changed chan struct{}
	of      map[string]*terminal
	routes  routes
	named   bool        // routes are all that there are
	proxies int         // that ask for the list right now
	alone   *time.Timer // runs while there is none
	told    bool        // that there is none
}

type terminal struct {
	version uint64
	e       endpoint.Endpoint
	sockets *mint.Sockets
}

func newTerminals(d *Daemon) *terminals {
	t := &terminals{d: d, away: d.cfg.ProxyAway, version: uint64(d.cfg.Clock.Boot()), changed: make(chan struct{}), of: map[string]*terminal{}, routes: routes{}}
	t.alone = time.AfterFunc(t.away, t.refuse)
	return t
}

// checkSockets refuses sockets that no container of ours has.
func checkSockets(r control.AttachRequest) error {
	if r.Sockets == nil {
		return nil
	}
	if err := r.Sockets.Check(control.TLSPort); err != nil {
		return control.Errorf(control.CodeBadRequest, "attach %s: tls: %v", r.Container, err)
	}
	return nil
}

// put enters a container, with duplicates of its sockets, or nil.
func (t *terminals) put(e endpoint.Endpoint, s *mint.Sockets) error {
	if e.TLS != nil && e.TLS.Off != "" {
		t.d.log.Warn("TLS is not terminated for a container", "container", e.Container, "why", e.TLS.Off)
	}
	if s == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.of[e.Container]
	if old != nil && old.sockets.Same(s) {
		return nil
	}
	own, err := s.Duplicate()
	if err != nil {
		return err // the former stay
	}
	if old != nil {
		_ = old.sockets.Close()
	}
	t.of[e.Container] = &terminal{e: e, sockets: own}
	t.changeLocked(t.of[e.Container])
	t.d.identity.Add(e.Container)
	if t.named && e.AppID != "" && t.d.identity.Names(e.Container) != nil {
		t.renameLocked(e.Container, e.AppID) // it comes back after the event that says so
	}
	return nil
}

func (t *terminals) changeLocked(one *terminal) {
	t.version++
	if one != nil {
		one.version = t.version
	}
	close(t.changed)
	t.changed = make(chan struct{})
}

// renewed tells the proxy that a container has another certificate.
func (t *terminals) renewed(container string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if one := t.of[container]; one != nil {
		t.changeLocked(one)
	}
}

// drop takes a container out.
func (t *terminals) drop(container string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if one := t.of[container]; one != nil {
		_ = one.sockets.StopListening() // its namespace may be gone already
		_ = one.sockets.Close()
		delete(t.of, container)
	}
	t.changeLocked(nil) // also of one that only waited
}

// close closes the descriptors; the sockets stay with whoever else has them.
func (t *terminals) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.alone.Stop()
	for container, one := range t.of {
		_ = one.sockets.Close()
		delete(t.of, container)
	}
}

// refuse stops 61443 listening: no proxy is there to accept, and a client that
// waits for one would wait for long.
func (t *terminals) refuse() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.proxies > 0 || len(t.of) == 0 {
		return
	}
	for container, one := range t.of {
		if err := one.sockets.StopListening(); err != nil {
			t.d.log.Warn("port 61443 goes on listening without a proxy", "container", container, "err", err)
		}
	}
	if !t.told {
		t.told = true
		t.d.log.Warn("no tulle-tlsproxy is connected: port 61443 of the containers refuses; start one beside the daemon, as its user", "containers", len(t.of))
	}
}

// watch counts a proxy while it asks for the list.
func (t *terminals) watch(d int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.proxies += d
	t.told = t.told && t.proxies == 0
	if t.proxies > 0 {
		t.alone.Stop()
	} else {
		t.alone.Reset(t.away)
	}
}

// TLSList implements control.TLSHandler.
func (l *life) TLSList(ctx context.Context, q control.TLSList) (control.TLSContainers, error) {
	t := l.terminals
	t.watch(1)
	defer t.watch(-1)
	ctx, cancel := context.WithTimeout(ctx, control.TLSWait)
	defer cancel()
	for {
		t.mu.Lock()
		got := control.TLSContainers{Version: t.version, Containers: make(map[string]uint64, len(t.of))}
		for container, one := range t.of {
			got.Containers[container] = one.version
		}
		changed := t.changed
		t.mu.Unlock()
		got.Waiting = l.waiting()
		if got.Version != q.Version {
			return got, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return got, nil
		}
	}
}

// waiting are the containers with TLS whose attachers have not come back yet.
func (l *life) waiting() (names []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, at := range l.attached {
		if at.waiting && at.e.TLS != nil && at.e.TLS.Off == "" {
			names = append(names, name)
		}
	}
	return names
}

// TLSSockets implements control.TLSHandler.
func (l *life) TLSSockets(_ context.Context, q control.TLSSockets) (control.TLSContainer, *mint.Sockets, error) {
	t := l.terminals
	t.mu.Lock()
	defer t.mu.Unlock()
	one := t.of[q.Container]
	if one == nil {
		return control.TLSContainer{}, nil, control.Errorf(control.CodeNotFound, "no TLS is terminated for container %s", q.Container)
	}
	s, err := one.sockets.Duplicate()
	if err != nil {
		return control.TLSContainer{}, nil, err
	}
	l.mu.Lock()
	app := one.e.AppID
	if at := l.attached[q.Container]; at != nil {
		app = at.e.AppID
	}
	l.mu.Unlock()
	return control.TLSContainer{TLS: *one.e.TLS, Container: q.Container, Address: one.e.Address, App: app}, s, nil
}

// TLSCertificate implements control.TLSHandler.
func (l *life) TLSCertificate(ctx context.Context, q control.TLSCertificate) (control.TLSPair, error) {
	ctx, cancel := context.WithTimeout(ctx, certificateWithin)
	defer cancel()
	p, err := l.d.identity.Get(ctx, q.Container, q.Fresh)
	switch {
	case errors.Is(err, identity.ErrUnknown):
		return control.TLSPair{}, control.Errorf(control.CodeNotFound, "container %s has no certificate", q.Container)
	case err != nil:
		return control.TLSPair{}, control.Errorf(control.CodeUnavailable, "%v", err)
	}
	trust, _ := l.d.identity.Trust()
	return control.TLSPair{Certificate: p.Certificate, Key: p.Key, Trust: trust, NotAfter: p.NotAfter, Renew: l.d.identity.RenewAt(q.Container, p)}, nil
}

// TLSCaller implements control.TLSHandler.
func (l *life) TLSCaller(ctx context.Context, q control.TLSCaller) (control.Caller, error) {
	l.terminals.mu.Lock()
	one := l.terminals.of[q.Container]
	l.terminals.mu.Unlock()
	if one == nil {
		return control.Caller{}, control.Errorf(control.CodeNotFound, "no TLS is terminated for container %s", q.Container)
	}
	local := one.e.Address
	if q.Peer.Addr().Unmap().Is6() {
		local = fib.Twin(local)
	}
	c, err := l.caller(netip.AddrPortFrom(local, control.TLSPort), q.Peer)
	if err != nil {
		return c, control.Errorf(control.CodeNotFound, "caller %s of container %s: %v", q.Peer, q.Container, err)
	}
	if one.e.TLS.Identity == control.IdentityXFCC {
		c = l.named(ctx, c)
	}
	return c, nil
}

// caller is who is at the other end of a connection to a container of this cell.
func (l *life) caller(local, peer netip.AddrPort) (control.Caller, error) {
	got, err := l.path.Caller(local, netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port()))
	if err != nil {
		return control.Caller{}, err
	}
	c := control.Caller{App: got.App, Container: got.Container}
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.App == "" {
		c.App = l.world.appOf(got.Tag)
	}
	for _, at := range l.attached {
		if at.e.AppID == c.App && at.e.App.Name != "" {
			c.AppName, c.Space, c.Org = at.e.App.Name, at.e.App.Space, at.e.App.Org
			break
		}
	}
	if c.App == "" {
		return c, fmt.Errorf("no app has tag %v", got.Tag)
	}
	return c, nil
}

// appOf is the app that has a tag.
func (w *world) appOf(tag policy.Tag) policy.AppID {
	for app, t := range w.tags {
		if t == tag {
			return app
		}
	}
	return ""
}

// trust is what a container with TLS is to trust; an attach waits for it a little.
func (l *life) trust(ctx context.Context, t *control.TLS) string {
	trust, changed := l.d.identity.Trust()
	if t == nil || trust != "" {
		return trust
	}
	ctx, cancel := context.WithTimeout(ctx, trustWithin)
	defer cancel()
	select {
	case <-changed:
	case <-ctx.Done():
		l.d.log.Warn("what containers trust each other by is not known yet; one that starts now will not verify others")
	}
	trust, _ = l.d.identity.Trust()
	return trust
}
