package overlay

import (
	"context"
	"slices"

	"tulle/overlay/control"
)

// GC implements control.Handler. Only the peer's own endpoints are collected:
// another user's network may have the same name.
func (l *life) GC(ctx context.Context, p control.Peer, g control.GC) (control.Collected, error) {
	ended := control.Collected{Containers: []string{}}
	for _, e := range l.d.ledger.List() {
		if e.Network != g.Network || e.UID != p.UID || slices.Contains(g.Keep, e.Container) {
			continue
		}
		was, err := l.collect(ctx, e.Container, e.Counter)
		if err != nil {
			return control.Collected{}, err
		}
		if was {
			ended.Containers = append(ended.Containers, e.Container)
		}
	}
	return ended, nil
}

// collect ends a container, unless it is another one of that name by now.
func (l *life) collect(ctx context.Context, container string, counter uint32) (bool, error) {
	unlock, err := l.locks.lock(ctx, container)
	if err != nil {
		return false, control.Errorf(control.CodeUnavailable, "collect %s: %v", container, err)
	}
	defer unlock()
	e, ok := l.d.ledger.Get(container)
	if !ok || e.Counter != counter {
		return false, nil
	}
	return true, l.end(e, "its runtime collects what it forgot")
}
