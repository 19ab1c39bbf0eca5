package overlay

import (
	"context"
	"slices"

	"tulle/overlay/control"
	"tulle/overlay/egress"
	"tulle/policy"
)

// AddPort implements control.Handler. The port is bound and journalled when it
// returns.
func (l *life) AddPort(ctx context.Context, p control.Peer, r control.PortAdd) error {
	unlock, err := l.locks.lock(ctx, r.Container)
	if err != nil {
		return control.Errorf(control.CodeUnavailable, "port of %s: %v", r.Container, err)
	}
	defer unlock()
	e, ok := l.d.ledger.Get(r.Container)
	if !ok {
		return control.Errorf(control.CodeNotFound, "container %s is not attached to this cell", r.Container)
	}
	if err := l.d.auth.Detach(p, e.UID, e.App); err != nil {
		return err
	}
	if r.TLS && e.TLS != nil && e.TLS.Off == "" {
		return control.Errorf(control.CodeBadRequest, "port %d of container %s is the cell's TLS proxy's, which closes every client that no policy names, as all of a forwarded port: "+
			"forward the app's own port, or attach the container without TLS (tulle run --no-tls) and let the app end it", control.TLSPort, r.Container)
	}
	f := forwardOf(r.Port)
	if slices.ContainsFunc(e.Ports, func(q control.Port) bool { return sameHostPort(q, r.Port) }) {
		return control.Errorf(control.CodePortTaken, "container %s has port %v/%s already", r.Container, f.Host, f.Protocol)
	}
	if err := l.outside.e.AddForward(e.Address, f); err != nil {
		return portError(r.Container, err)
	}
	if err := l.d.ledger.SetPorts(r.Container, append(slices.Clone(e.Ports), r.Port)); err != nil {
		l.outside.e.RemoveForward(r.Container, f.Protocol, f.Host)
		return err
	}
	l.d.log.Info("port is forwarded", "container", r.Container, "port", f.String(), "uid", p.UID)
	return nil
}

// RemovePort implements control.Handler.
func (l *life) RemovePort(ctx context.Context, p control.Peer, r control.PortRemove) error {
	unlock, err := l.locks.lock(ctx, r.Container)
	if err != nil {
		return control.Errorf(control.CodeUnavailable, "port of %s: %v", r.Container, err)
	}
	defer unlock()
	f := forwardOf(r.Port)
	e, ok := l.d.ledger.Get(r.Container)
	if !ok {
		return control.Errorf(control.CodeNotFound, "container %s is not attached to this cell", r.Container)
	}
	if err := l.d.auth.Detach(p, e.UID, e.App); err != nil {
		return err
	}
	i := slices.IndexFunc(e.Ports, func(q control.Port) bool { return sameHostPort(q, r.Port) })
	if i < 0 {
		return control.Errorf(control.CodeNotFound, "container %s has no port %v/%s", r.Container, f.Host, f.Protocol)
	}
	if err := l.d.ledger.SetPorts(r.Container, slices.Delete(slices.Clone(e.Ports), i, i+1)); err != nil {
		return err
	}
	l.outside.e.RemoveForward(r.Container, f.Protocol, f.Host)
	l.d.log.Info("port is forwarded no more", "container", r.Container, "port", f.String(), "uid", p.UID)
	return nil
}

func sameHostPort(a, b control.Port) bool {
	x, y := forwardOf(a), forwardOf(b)
	return x.Host == y.Host && x.Protocol == y.Protocol
}

// Ports implements control.Handler.
func (l *life) Ports(context.Context) ([]control.ListedPort, error) {
	list := []control.ListedPort{}
	for _, f := range l.outside.e.Forwards() {
		list = append(list, control.ListedPort{
			Port:      control.Port{Protocol: f.Protocol, HostIP: f.Host.Addr(), HostPort: f.Host.Port(), Port: f.Port, TLS: f.Port == egress.TLSPort, Keep: f.Keep},
			Container: f.Container, Address: f.Address, App: policy.AppID(f.App), AppName: f.AppName, Waiting: f.Waiting,
		})
	}
	return list, nil
}

// NATWho implements control.Handler.
func (l *life) NATWho(_ context.Context, q control.NATWho) ([]control.NATFound, error) {
	found, err := l.outside.nat.Who(q.Source, q.At)
	if err != nil {
		return nil, err
	}
	list := make([]control.NATFound, len(found))
	for i, f := range found {
		list[i] = control.NATFound{Protocol: f.Protocol, Source: f.Source, Remote: f.Remote, Begin: f.Begin, End: f.End, Lost: f.Lost,
			Container: f.Who.Container, Address: f.Who.Address, App: policy.AppID(f.Who.App), AppName: f.Who.AppName, Space: f.Who.Space, Org: f.Who.Org}
	}
	return list, nil
}
