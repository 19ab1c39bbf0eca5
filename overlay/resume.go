package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"tulle/overlay/control"
	"tulle/overlay/endpoint"
	"tulle/overlay/mint"
	"tulle/overlay/tun"
)

// restore brings the journalled endpoints into this life: those whose devices
// the holder kept at once, the others when their attachers resume them, within
// Config.ResumeWait.
func (l *life) restore(ctx context.Context) error {
	kept, err := l.d.cfg.Holder.Take()
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range kept {
			_ = f.Close()
		}
	}()
	journalled := l.d.ledger.List()
	for name := range kept {
		container := name[min(len(keptTUN), len(name)):]
		if !slices.ContainsFunc(journalled, func(e endpoint.Endpoint) bool { return e.Container == container }) {
			// Its attach was never answered, or its detach was.
			if err := l.d.cfg.Holder.Drop(name); err != nil {
				return err
			}
		}
	}
	for _, e := range journalled {
		if kept[keptTUN+e.Container] != nil {
			err := l.restoreKept(e, kept)
			if err == nil {
				continue
			}
			l.d.log.Error("kept device is of no use", "container", e.Container, "err", err)
		}
		at := &attachment{e: e, waiting: true, line: line{}}
		l.attached[e.Container] = at
		l.wg.Go(func() { l.expect(ctx, at) })
	}
	for _, e := range journalled {
		if e.TLS != nil && e.TLS.Off == "" {
			l.d.identity.Add(e.Container)
		}
	}
	l.d.identity.Prune()
	return nil
}

// keptSockets are those of a container's TLS that the holder kept, all or none.
func keptSockets(e endpoint.Endpoint, kept map[string]*os.File) *mint.Sockets {
	var files []*os.File
	for _, prefix := range keptTLS {
		if f := kept[prefix+e.Container]; f != nil {
			files = append(files, f)
		}
	}
	if len(files) < len(keptTLS) {
		return nil
	}
	return mint.FromFiles(files)
}

// restoreKept attaches a device that the holder kept. A pidfd whose process has
// ended in the meantime ends it again.
func (l *life) restoreKept(e endpoint.Endpoint, kept map[string]*os.File) error {
	device, pidfd := kept[keptTUN+e.Container], kept[keptPidfd+e.Container]
	r := control.AttachRequest{Attach: control.Attach{Container: e.Container, Lifeline: e.Lifeline}, Pidfd: pidfd}
	if e.Lifeline == control.LifelinePidfd && pidfd == nil {
		return errors.New("its pidfd was not kept")
	}
	dev, err := openDevice(device, l.d.cfg.Waits)
	if err != nil {
		return err
	}
	ln, err := newLine(r)
	if err == nil {
		if err = l.enter(e, dev, ln); err != nil {
			err = errors.Join(err, ln.close())
		}
	}
	if err != nil {
		return errors.Join(err, dev.Close())
	}
	if err := l.terminals.put(e, keptSockets(e, kept)); err != nil {
		l.d.log.Error("kept sockets are of no use", "container", e.Container, "err", err)
	}
	l.rebind(e)
	l.d.log.Info("taken back", "container", e.Container, "address", e.Address, "lifeline", e.Lifeline)
	return nil
}

// expect gives an attacher its time to come back.
func (l *life) expect(ctx context.Context, at *attachment) {
	timer := time.NewTimer(l.d.cfg.ResumeWait)
	defer timer.Stop()
	select {
	case <-timer.C:
		l.lifelineEnded(at, fmt.Sprintf("its attacher did not come back within %s", l.d.cfg.ResumeWait))
	case <-ctx.Done():
	}
}

// resume is Attach of a container that the journal has. The device of one that
// waits comes into the data path; one that is attached keeps its device and gets
// the new lifeline. The caller holds the container's lock and closes dev on an
// error.
func (l *life) resume(r control.AttachRequest, dev tun.Device) (control.Attached, error) {
	e, ok := l.d.ledger.Get(r.Container)
	if !ok {
		return control.Attached{}, control.Errorf(control.CodeNotFound, "container %s is not attached to this cell any more", r.Container)
	}
	if err := l.d.auth.Detach(r.Peer, e.UID, e.App); err != nil {
		return control.Attached{}, err
	}
	if e.App != r.App || e.Lifeline != r.Lifeline {
		return control.Attached{}, control.Errorf(control.CodeBadRequest, "container %s was attached as another app or with another lifeline", r.Container)
	}
	if err := l.d.keep(r); err != nil {
		return control.Attached{}, err
	}
	ln, err := newLine(r)
	if err != nil {
		return control.Attached{}, err
	}
	l.mu.Lock()
	at, there := l.attached[r.Container]
	if there && !at.waiting {
		next := &attachment{e: at.e, line: ln}
		l.attached[r.Container] = next
		l.watch(next)
	}
	l.mu.Unlock()
	if there && !at.waiting {
		if err := errors.Join(at.line.close(), dev.Close()); err != nil {
			l.d.log.Warn("former lifeline", "container", r.Container, "err", err)
		}
		return l.answer(e, true), l.terminals.put(e, r.Sockets)
	}
	if err := l.enter(e, dev, ln); err != nil {
		return control.Attached{}, errors.Join(err, ln.close())
	}
	if err := l.terminals.put(e, r.Sockets); err != nil {
		l.leave(r.Container)
		return control.Attached{}, err
	}
	l.rebind(e)
	l.d.log.Info("resumed", "container", e.Container, "app", e.AppID, "address", e.Address)
	return l.answer(e, true), nil
}

// rebind binds the ports of a container that was there before. One that somebody
// else has taken in the meantime is lost; the container stays.
func (l *life) rebind(e endpoint.Endpoint) {
	for _, p := range e.Ports {
		if err := l.outside.e.AddForward(e.Address, forwardOf(p)); err != nil {
			l.d.log.Error("port is forwarded no more", "container", e.Container, "err", err)
		}
	}
}
