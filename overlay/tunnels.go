package overlay

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"tulle/overlay/fib"
	"tulle/overlay/ready"
	"tulle/overlay/udp"
	"tulle/overlay/vxlan"
	"tulle/overlay/wireguard"
	"tulle/policy/api"
)

// bind opens the sockets, on the ports of the former life if it can: peers go on
// sending there.
func (l *life) bind() (err error) {
	held, _ := l.d.ledger.Lease()
	if l.socket, err = listen(l.d.cfg.Waits, l.d.cfg.Underlay, l.d.cfg.Port, held.Port); err != nil {
		return err
	}
	for n := 1; n < fib.SourcePorts; n++ {
		port := fib.SourcePort(l.socket.Local().Port(), n)
		if port == 0 {
			continue
		}
		// One that another program has, or only a privileged one may have, is done without.
		if s, err := udp.Listen(netip.AddrPortFrom(l.d.cfg.Underlay, port), udp.Options{SendOnly: true}); err == nil {
			l.sending = append(l.sending, s)
		}
	}
	if l.d.cfg.Mode != api.ModeWireGuard {
		return nil
	}
	if l.inside, err = listen(l.d.cfg.Waits, l.d.cfg.Underlay, l.d.cfg.WireGuard, held.WireGuard); err != nil {
		l.unbind()
		return err
	}
	for range tunnelPorts - 1 {
		s, err := listen(l.d.cfg.Waits, l.d.cfg.Underlay, 0, 0)
		if err != nil {
			l.unbind()
			return err
		}
		l.beside = append(l.beside, s)
	}
	return nil
}

// tunnelPorts is how many ports a cell's tunnels send from, the published one among
// them: so many flows the ways between two cells can tell apart.
const tunnelPorts = 4

// listen opens a socket at the port wanted. Where any will do, that of before is
// tried first; 0 is none.
func listen(set *ready.Set, underlay netip.Addr, port, before uint16) (*udp.Socket, error) {
	if port == 0 && before != 0 {
		s, err := udp.Listen(netip.AddrPortFrom(underlay, before), udp.Options{Set: set})
		if err == nil {
			return s, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("tunnel socket: %w", err)
		}
	}
	s, err := udp.Listen(netip.AddrPortFrom(underlay, port), udp.Options{Set: set})
	if err != nil {
		return nil, fmt.Errorf("tunnel socket: %w", err)
	}
	return s, nil
}

// unbind closes the sockets, those too that nobody got as far as to own.
func (l *life) unbind() {
	_ = l.socket.Close()
	for _, s := range l.sending {
		_ = s.Close()
	}
	if l.inside != nil {
		_ = l.inside.Close()
	}
	for _, s := range l.beside {
		_ = s.Close()
	}
}

func (l *life) ports() ports {
	p := ports{vxlan: l.socket.Local().Port()}
	if l.inside != nil {
		p.wireguard = l.inside.Local().Port()
	}
	return p
}

// startTunnel makes the tunnel over the lease, without peers: nothing comes out
// of it before world.take names one.
func (l *life) startTunnel() (*tunnels, error) {
	t := newTunnels(l.d.log)
	if l.inside == nil {
		return t, nil
	}
	address := api.LeasedTunnel(l.lease.Network, l.lease.Subnet)
	if !address.IsValid() {
		return nil, fmt.Errorf("lease %s in %s has no tunnel address: use mode %s, or larger leases", l.lease.Subnet, l.lease.Network, api.ModeVXLAN)
	}
	conns := []udp.Conn{l.inside}
	for _, s := range l.beside {
		conns = append(conns, s)
	}
	keys := l.d.tunnelKeys()
	var err error
	l.tunnel, err = wireguard.New(wireguard.Options{
		Keys: append([]wireguard.PrivateKey{keys.Current}, others(keys)...), Address: address, Conns: conns, Log: l.d.log,
		MTU:     l.mtu + vxlan.Overhead + wireguard.HeaderLen,
		Receive: func(batch []udp.Message) { l.path.FromTunnel(batch) },
	})
	if err != nil {
		return nil, err
	}
	// The peers of a lease that is resumed know this cell, and have sessions with
	// the daemon that was here before.
	t.sessions, t.begin = l.tunnel, l.resumed
	t.secrets, t.own = l.d.secrets, func() ends {
		key, also := l.d.published()
		return ends{key, also}
	}
	return t, nil
}

// tunnels is which mode each peer has here, and the sessions with those that have
// wireguard. world owns it.
type tunnels struct {
	sessions sessions // nil: the own mode is vxlan
	secrets  *secrets // nil: none with anybody
	own      func() ends
	log      *slog.Logger
	known    map[string]wireguard.Peer // that have a session
	begin    bool                      // sessions are made before there is anything to send
	plain    map[string]bool           // peers that speak vxlan to a cell of mode wireguard
}

// sessions is wireguard's Tunnel.
type sessions interface {
	Set(name string, p wireguard.Peer) error
	Begin(name string)
	Renew(name string)
	Remove(name string)
}

// mode is how frames travel between this cell and a peer: inside a tunnel where
// both have it. A cell of mode vxlan has no key that a peer could know. Where a
// post-quantum secret is required, with a peer without a tunnel none travels.
func (t *tunnels) mode(p api.Peer) fib.Mode {
	if t.sessions != nil && (p.Mode == api.ModeWireGuard || t.secrets != nil && t.secrets.mode == PostQuantumRequired) {
		return fib.WireGuard
	}
	return fib.VXLAN
}

func newTunnels(log *slog.Logger) *tunnels {
	return &tunnels{log: log, known: map[string]wireguard.Peer{}, plain: map[string]bool{}}
}

// release ends what a peer's news makes void: it has other keys or another address,
// or is in no tunnel any more. Of two keys one may go alone, as it does when the peer
// rotates; the sessions that the other made go on.
func (t *tunnels) release(p api.Peer) {
	old, there := t.known[p.Name]
	if !there {
		return
	}
	var kept []wireguard.PublicKey
	for _, k := range [...]wireguard.PublicKey{old.Key, old.Also} {
		if k != (wireguard.PublicKey{}) && (api.TunnelKey(k) == p.Key || api.TunnelKey(k) == p.NextKey) {
			kept = append(kept, k)
		}
	}
	if t.mode(p) == fib.VXLAN || old.Address != p.Tunnel || len(kept) == 0 {
		t.remove(p.Name)
		return
	}
	if len(kept) == 1 && old.Also != (wireguard.PublicKey{}) {
		old.Key, old.Also = kept[0], wireguard.PublicKey{}
		t.enter(p.Name, old)
	}
}

// set gives a peer its session. A key or an address that it cannot have leaves it
// without: nothing passes, in any mode.
func (t *tunnels) set(p api.Peer) {
	if t.sessions == nil {
		return
	}
	if t.mode(p) == fib.VXLAN {
		if !t.plain[p.Name] {
			t.plain[p.Name] = true
			t.log.Warn("PLAIN TEXT: the peer has mode vxlan; all traffic with it can be read and forged on the underlay",
				"peer", p.Name, "kind", p.Kind, "underlay", p.Underlay)
		}
		return
	}
	delete(t.plain, p.Name)
	psk, ok := t.preshared(p)
	if !ok {
		if _, there := t.known[p.Name]; there {
			delete(t.known, p.Name)
			t.sessions.Remove(p.Name)
		}
		return
	}
	next := wireguard.Peer{
		PSK: psk,
		Key: wireguard.PublicKey(p.Key), Also: wireguard.PublicKey(p.NextKey), Address: p.Tunnel, Endpoint: netip.AddrPortFrom(p.Underlay, p.WireGuardPort),
		Spread: p.Kind == api.KindTulle,
	}
	if t.known[p.Name].Equal(next) {
		return
	}
	if t.enter(p.Name, next) && t.begin {
		t.sessions.Begin(p.Name)
	}
}

// preshared are the keys beside the public ones; ok is false where nothing may pass
// without one.
func (t *tunnels) preshared(p api.Peer) (psk []wireguard.PresharedKey, ok bool) {
	if t.secrets == nil {
		return nil, true
	}
	return t.secrets.of(p)
}

func (t *tunnels) enter(name string, p wireguard.Peer) bool {
	if err := t.sessions.Set(name, p); err != nil {
		t.log.Error("no tunnel: nothing passes to or from this peer", "peer", name, "err", err)
		delete(t.known, name)
		return false
	}
	t.known[name] = p
	return true
}

func (t *tunnels) remove(name string) {
	delete(t.plain, name)
	delete(t.known, name)
	if t.secrets != nil {
		t.secrets.forget(name)
	}
	if t.sessions != nil {
		t.sessions.Remove(name)
	}
}

// inPlain lists the peers that speak vxlan to a cell of mode wireguard.
func (t *tunnels) inPlain() []string {
	names := make([]string, 0, len(t.plain))
	for name := range t.plain {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
