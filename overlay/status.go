package overlay

import (
	"cmp"
	"context"
	"os"
	"slices"

	"tulle/overlay/control"
	"tulle/policy/api"
)

// List implements control.Handler.
func (l *life) List(context.Context) ([]control.Endpoint, error) {
	list := []control.Endpoint{}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range l.attached {
		e := at.e
		list = append(list, control.Endpoint{
			Container: e.Container, Address: e.Address, Address6: l.address6(e).Addr(), App: e.AppID, AppName: e.App.Name, Space: e.App.Space, Org: e.App.Org,
			Instance: e.Instance, Tag: l.world.tags[e.AppID], Incarnation: incarnationUnder(l.lease, e), Lifeline: e.Lifeline,
			Waiting: at.waiting, Bandwidth: e.Bandwidth, UID: e.UID, Network: e.Network, TLS: e.TLS,
		})
	}
	slices.SortFunc(list, func(a, b control.Endpoint) int { return cmp.Compare(a.Container, b.Container) })
	return list, nil
}

// Status implements control.Handler.
func (l *life) Status(ctx context.Context) (control.Status, error) {
	list, err := l.List(ctx)
	if err != nil {
		return control.Status{}, err
	}
	s := control.Status{
		Cell: l.d.client.Cell(), Lease: l.lease.Subnet, Underlay: l.socket.Local(), PID: os.Getpid(),
		Connected: l.d.client.Connected(), Flows: l.path.FlowCount(), Endpoints: list,
		Remote: []api.Endpoint{}, Peers: []api.Peer{}, Mode: l.d.cfg.Mode,
	}
	if l.tunnel != nil {
		s.WireGuard, s.Key, s.Tunnel = l.tunnel.Local(), api.TunnelKey(l.tunnel.Public()), l.tunnel.Address()
		s.Rotation = l.rotation.step()
		if l.d.secrets.mode != PostQuantumOff {
			s.PostQuantum, s.NoSecret = string(l.d.secrets.mode), l.d.secrets.without()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.Epoch, s.Revision, s.Policies = l.world.epoch, l.world.revision, len(l.world.known)
	s.Plain = l.world.tunnels.inPlain()
	for _, es := range l.world.endpoints {
		for _, e := range es {
			s.Remote = append(s.Remote, e)
		}
	}
	for _, p := range l.world.peers {
		p.EncapsulationKey = "" // long, and nothing that an operator compares
		s.Peers = append(s.Peers, p)
	}
	slices.SortFunc(s.Remote, func(a, b api.Endpoint) int { return a.Address.Compare(b.Address) })
	slices.SortFunc(s.Peers, func(a, b api.Peer) int { return cmp.Compare(a.Name, b.Name) })
	return s, nil
}
