package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/overlay/dns"
	"tulle/overlay/endpoint"
	"tulle/overlay/fib"
	"tulle/overlay/ready"
	"tulle/overlay/shape"
	"tulle/overlay/tap"
	"tulle/overlay/tun"
	"tulle/policy"
	"tulle/policy/api"
)

// attachment is a container of this life.
type attachment struct {
	e       endpoint.Endpoint
	waiting bool // journalled, its device has not come back yet
	line    line
}

// unreachable is the design's text for an attach that only the server could allow.
func unreachable() error {
	return control.Errorf(control.CodeUnreachable, "policy server unreachable, app not known on this cell")
}

// Attach implements control.Handler. It gives the container an address, and
// answers when its packets will be judged by its own policies, here and, as far
// as a second allows, on the cells that it may talk to. An error leaves nothing.
func (l *life) Attach(ctx context.Context, r control.AttachRequest) (_ control.Attached, err error) {
	begun := l.d.cfg.Clock.Boot()
	defer func() { l.d.metrics.attach(err).Observe((l.d.cfg.Clock.Boot() - begun).Seconds()) }()
	unlock, err := l.locks.lock(ctx, r.Container)
	if err != nil {
		return control.Attached{}, control.Errorf(control.CodeUnavailable, "attach %s: %v", r.Container, err)
	}
	defer unlock()
	if err := errors.Join(checkPidfd(r), checkSockets(r)); err != nil {
		return control.Attached{}, err
	}
	if err := limits(r.Bandwidth).Check(); err != nil {
		return control.Attached{}, control.Errorf(control.CodeBadRequest, "attach %s: %v", r.Container, err)
	}
	dev, err := openTUN(r, l.d.cfg.Waits)
	if err != nil {
		return control.Attached{}, err
	}
	defer func() {
		if err != nil {
			_ = dev.Close() // nobody has read from it
		}
	}()
	if r.Resume {
		return l.resume(r, dev)
	}
	e, err := l.admit(ctx, r, dev)
	if err != nil {
		return control.Attached{}, err
	}
	got := l.answer(e, false)
	got.Trust = l.trust(ctx, e.TLS)
	return got, nil
}

func (l *life) answer(e endpoint.Endpoint, resumed bool) control.Attached {
	return control.Attached{Address: single(e.Address), Address6: l.address6(e), Resolver: dns.Address.Addr(), MTU: l.mtu, App: e.AppID,
		Incarnation: incarnationUnder(l.lease, e), Resumed: resumed, Mask: l.d.cfg.hidden()}
}

func openTUN(r control.AttachRequest, set *ready.Set) (tun.Device, error) {
	dev, err := openDevice(r.TUN, set)
	if errors.Is(err, tun.ErrNotTUN) || errors.Is(err, tun.ErrFlags) || errors.Is(err, tap.ErrFlags) {
		return nil, control.Errorf(control.CodeNotTUN, "attach %s: %v", r.Container, err)
	}
	return dev, err
}

// openDevice makes a device of a descriptor: of a TUN, or of a TAP, for a guest that
// wants Ethernet.
func openDevice(f *os.File, set *ready.Set) (tun.Device, error) {
	if tap.Is(f) {
		d, err := tap.FromFile(f)
		if err != nil {
			return nil, err // no Device that is not there
		}
		return d, nil
	}
	k, err := tun.FromFileIn(f, set)
	if err != nil {
		return nil, err
	}
	return k, nil
}

// admit is Attach of a container that is new.
func (l *life) admit(ctx context.Context, r control.AttachRequest, dev tun.Device) (e endpoint.Endpoint, err error) {
	patience, cancel := context.WithTimeout(ctx, registerWithin)
	defer cancel()
	if _, there := l.d.ledger.Get(r.Container); there {
		return e, control.Errorf(control.CodeExists, "container %s is attached already", r.Container)
	}
	id, known := l.knownApp(r.App)
	connected := l.d.client.Connected()
	if !known && !connected {
		// Nothing is allocated for what may never be.
		if !until(patience, l.d.client.Connection) {
			return e, unreachable()
		}
		connected = true
	}
	e, err = l.d.ledger.Attach(endpoint.Endpoint{
		Container: r.Container, App: r.App, AppID: id, Instance: r.Instance, Device: r.Device, Lifeline: r.Lifeline, UID: r.Peer.UID,
		Network: r.Network, Address: r.Address, Bandwidth: r.Bandwidth, TLS: r.TLS,
		Workload: r.Workload, Rules: r.Rules, Ports: r.Ports,
	})
	switch {
	case errors.Is(err, endpoint.ErrNoAddress):
		return e, control.Errorf(control.CodeNoAddress, "attach %s: %v", r.Container, err)
	case errors.Is(err, endpoint.ErrPoolEmpty), errors.Is(err, endpoint.ErrResting):
		return e, control.Errorf(control.CodePoolEmpty, "attach %s: %v", r.Container, err)
	case err != nil:
		return e, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.d.forget(e.Container))
			l.registrar.changed(e.Address)
		}
	}()
	if err := l.d.keep(r); err != nil {
		return e, err
	}
	version := l.registrar.changed()
	var at api.EndpointsResponse
	if connected {
		at, err = l.await(patience, r.Container, version)
		if err != nil && (!known || ctx.Err() != nil || !lost(err)) {
			return e, err
		}
		if err == nil {
			e.AppID = at.Apps[e.Container]
		}
	}
	line, err := newLine(r)
	if err != nil {
		return e, err
	}
	if err := l.enter(e, dev, line); err != nil {
		return e, errors.Join(err, line.close())
	}
	if err := l.outside.bindPorts(e); err != nil {
		l.leave(e.Container)
		return e, err
	}
	if err := l.terminals.put(e, r.Sockets); err != nil {
		l.leave(e.Container)
		return e, err
	}
	if at.Epoch != "" {
		// So that its first packet is nobody's stranger; not for ever, since one
		// slow cell must not hold up every start.
		soon, cancel := context.WithTimeout(ctx, floorWithin)
		until(soon, func() (bool, <-chan struct{}) { return l.acknowledged(at.Epoch, at.Revision) })
		cancel()
	}
	if ctx.Err() != nil {
		l.leave(e.Container)
		return e, control.Errorf(control.CodeUnavailable, "attach %s: %v", r.Container, context.Cause(ctx))
	}
	l.d.log.Info("attached", "container", e.Container, "app", e.AppID, "address", e.Address, "lifeline", e.Lifeline, "uid", e.UID)
	return e, nil
}

// await returns when the endpoint is registered and its app's slice is in the
// table.
func (l *life) await(ctx context.Context, container string, version uint64) (api.EndpointsResponse, error) {
	at, err := l.registrar.wait(ctx, version)
	if err != nil {
		if text, ok := final(err); ok {
			return at, control.Errorf(control.CodeRefused, "the policy server refuses: %s", text)
		}
		return at, unreachable()
	}
	if why, refused := at.Refused[container]; refused {
		return at, control.Errorf(control.CodeRefused, "the policy server refuses %s: %s", container, why)
	}
	if at.Apps[container] == "" {
		return at, control.Errorf(control.CodeRefused, "the policy server does not say which app %s is", container)
	}
	if !until(ctx, func() (bool, <-chan struct{}) { return l.inForce(at.Epoch, at.Revision) }) {
		return at, unreachable()
	}
	return at, nil
}

func lost(err error) bool {
	var e *control.Error
	return errors.As(err, &e) && e.Code == control.CodeUnreachable
}

// knownApp reports whether an app's slice is in the table: another instance is
// here, or was in the last list that the server knows.
func (l *life) knownApp(ref api.AppRef) (id policy.AppID, known bool) {
	id = ref.GUID
	here := false
	for _, e := range l.d.ledger.List() {
		if e.AppID != "" && (e.AppID == id || id == "" && ref.GUID == "" && e.App == ref) {
			id, here = e.AppID, true
		}
	}
	if id == "" || here {
		return id, here
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	since, hosted := l.hosted[id]
	return id, hosted && l.hostedAt == l.world.epoch && l.world.revision >= since
}

// enter gives the data path its device. From here on dev and line are the
// attachment's.
func (l *life) enter(e endpoint.Endpoint, dev tun.Device, line line) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	// Under the lock that events are taken in under: a tag that changes now is
	// not missed.
	if guest, ok := dev.(*tap.Device); ok {
		guest.Guest(e.Address, l.address6(e).Addr())
	}
	dev = shape.Wrap(dev, limits(e.Bandwidth))
	l.outside.enter(e) // before its first packet is read
	if err := l.path.Attach(fib.Local{Addr: e.Address, Container: e.Container, App: e.AppID, Tag: l.world.tags[e.AppID],
		Incarnation: incarnationUnder(l.lease, e)}, dev); err != nil {
		l.outside.leave(e)
		_ = dev.Close() // with what Wrap may have started; nobody has read from it
		return fmt.Errorf("attach %s: %w", e.Container, err)
	}
	at := &attachment{e: e, line: line}
	l.attached[e.Container] = at
	l.names.SetLocal(localInstance(e, e.AppID))
	l.watch(at)
	return nil
}

// leave takes a container out of the data path, at once. It reports whether it
// was attached.
func (l *life) leave(container string) {
	l.mu.Lock()
	at, ok := l.attached[container]
	delete(l.attached, container)
	l.mu.Unlock()
	if !ok {
		return
	}
	l.names.RemoveLocal(at.e.Address)
	if err := at.line.close(); err != nil {
		l.d.log.Warn("lifeline did not close", "container", container, "err", err)
	}
	l.terminals.drop(container)
	if !at.waiting {
		l.outside.leave(at.e)
		l.path.Detach(at.e.Address)
	}
}

// Detach implements control.Handler: the reverse of Attach, in the data path at
// once, at the server as soon as it can.
func (l *life) Detach(ctx context.Context, p control.Peer, r control.Detach) error {
	unlock, err := l.locks.lock(ctx, r.Container)
	if err != nil {
		return control.Errorf(control.CodeUnavailable, "detach %s: %v", r.Container, err)
	}
	defer unlock()
	e, ok := l.d.ledger.Get(r.Container)
	if !ok {
		return nil
	}
	if err := l.d.auth.Detach(p, e.UID, e.App); err != nil {
		return err
	}
	return l.end(e, "asked for")
}

// end detaches. The caller holds the container's lock.
func (l *life) end(e endpoint.Endpoint, why string) error {
	l.leave(e.Container)
	err := l.d.forget(e.Container)
	l.registrar.changed(e.Address)
	l.d.log.Info("detached", "container", e.Container, "address", e.Address, "why", why)
	return err
}

// limits are an attacher's in the words of the device that holds them.
func limits(b control.Bandwidth) shape.Limits {
	return shape.Limits{
		Ingress: shape.Rate{Rate: b.IngressRate, Burst: b.IngressBurst},
		Egress:  shape.Rate{Rate: b.EgressRate, Burst: b.EgressBurst},
	}
}

// checkPidfd refuses what is no pidfd: a descriptor of another kind may be
// readable at once, or never.
func checkPidfd(r control.AttachRequest) error {
	if r.Lifeline != control.LifelinePidfd {
		return nil
	}
	raw, err := r.Pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), 0, nil, 0) }); err != nil {
		return err
	}
	// A process of another user may not be signalled, and one that has ended is
	// no more; both are pidfds.
	if serr != nil && !errors.Is(serr, unix.EPERM) && !errors.Is(serr, unix.ESRCH) {
		return control.Errorf(control.CodeBadRequest, "attach %s: the second descriptor is no pidfd: %v", r.Container, serr)
	}
	return nil
}
