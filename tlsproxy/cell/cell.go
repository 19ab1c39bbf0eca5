// Package cell is the proxy of all containers of a cell: one unprivileged process
// beside the daemon, which gets from the daemon's local API each container's
// sockets and certificate, and for each connection the app that opened it.
//
// A crashed proxy is replaced by starting another: the sockets are with the daemon
// and its holder, 61443 goes on listening, and who connected meanwhile is served.
// A daemon that is away is waited for; containers and certificates that are known
// stay as they are, while nobody new can be told from anybody else and so waits
// too.
//
// Run is one goroutine for the list of containers and one that accepts for each
// container; package tlsproxy starts two for each connection.
package cell

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"tulle/overlay/control"
	"tulle/overlay/mint"
	"tulle/tlsproxy"
)

// Options of Run.
type Options struct {
	Socket string // of the daemon's local API
	Proxy  *tlsproxy.Proxy
	Log    *slog.Logger
	// Ready is called once, when the containers that there are are served.
	Ready func()
}

// Pauses before the daemon is dialled again.
const (
	firstPause = 10 * time.Millisecond
	longPause  = 500 * time.Millisecond
)

// Fleet is the containers that are served.
type Fleet struct {
	o     Options
	asks  *asker
	ready sync.Once
	wg    sync.WaitGroup

	mu         sync.Mutex            // guards containers, which only Run's goroutine changes
	containers map[string]*container // by name
}

// New makes a Fleet; nothing runs before Run.
func New(o Options) *Fleet {
	if o.Ready == nil {
		o.Ready = func() {}
	}
	return &Fleet{o: o, asks: newAsker(o.Socket), containers: map[string]*container{}}
}

// Run serves until ctx ends, and stops accepting. The connections are then the
// Proxy's to drain, and Close is to be called after that.
func (f *Fleet) Run(ctx context.Context) error {
	defer f.wg.Wait()
	defer func() {
		for _, c := range f.snapshot() {
			f.o.Proxy.Close(c.site)
		}
	}()
	pause, away := firstPause, false
	for ctx.Err() == nil {
		client, err := control.Dial(f.o.Socket)
		if err == nil {
			if away {
				f.o.Log.Info("the cell daemon is back")
			}
			away, pause = false, firstPause
			err = f.follow(ctx, client)
			_ = client.Close()
		}
		var refusal *control.Error
		if errors.As(err, &refusal) && refusal.Code == control.CodeNotAllowed {
			return err
		}
		if ctx.Err() != nil {
			break
		}
		if !away {
			f.o.Log.Warn("the cell daemon is gone; waiting for it", "socket", f.o.Socket, "error", err)
			away = true
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
		pause = min(2*pause, longPause)
	}
	return nil
}

// follow keeps the containers as the daemon's list has them, until the connection
// fails.
func (f *Fleet) follow(ctx context.Context, client *control.Client) error {
	var have uint64
	for {
		list, err := client.TLSList(ctx, control.TLSList{Version: have})
		if err != nil {
			return err
		}
		if err := f.reconcile(ctx, client, list); err != nil {
			return err
		}
		have = list.Version
		f.ready.Do(f.o.Ready)
	}
}

// reconcile makes the containers those of the list. What fails for one container
// is tried again at the next list, which comes every control.TLSWait at least.
func (f *Fleet) reconcile(ctx context.Context, client *control.Client, list control.TLSContainers) error {
	for name, c := range f.snapshot() {
		if _, stays := list.Containers[name]; !stays && !slices.Contains(list.Waiting, name) {
			f.remove(c)
		}
	}
	for name, version := range list.Containers {
		c := f.get(name)
		if c != nil {
			c.listenAgain()
		}
		if c != nil && c.version == version {
			continue
		}
		got, sockets, err := client.TLSSockets(ctx, control.TLSSockets{Container: name})
		var refusal *control.Error
		if errors.As(err, &refusal) && refusal.Code != control.CodeNotAllowed {
			if refusal.Code != control.CodeNotFound { // it ended since
				f.o.Log.Warn("sockets of a container not to be had", "container", name, "error", err)
			}
			continue
		}
		if err != nil {
			return err
		}
		if c != nil && c.is(got, sockets) {
			_ = sockets.Close()
			c.version = version
			c.renew(ctx)
			continue
		}
		if c != nil {
			f.remove(c)
		}
		if err := f.add(ctx, got, sockets, version); err != nil {
			f.o.Log.Warn("TLS is not terminated for a container", "container", name, "error", err)
		}
	}
	return nil
}

// add takes the sockets over.
func (f *Fleet) add(ctx context.Context, of control.TLSContainer, sockets *mint.Sockets, version uint64) error {
	m, err := mint.New(sockets)
	if err != nil {
		return errors.Join(err, sockets.Close())
	}
	l, err := m.Listen()
	if errors.Is(err, mint.ErrPortTaken) {
		err = fmt.Errorf("port %d: %w; whatever has it goes on, and this proxy steps back", control.TLSPort, err)
	}
	if err != nil {
		return errors.Join(err, m.Close())
	}
	c := newContainer(f, of, m, version)
	f.mu.Lock()
	f.containers[of.Container] = c
	f.mu.Unlock()
	c.renew(ctx)
	f.wg.Go(func() { c.serve(ctx, l) })
	f.o.Log.Info("terminating TLS", "container", of.Container, "address", of.Address, "app", of.App)
	return nil
}

func (f *Fleet) remove(c *container) {
	f.mu.Lock()
	delete(f.containers, c.of.Container)
	f.mu.Unlock()
	f.o.Proxy.Remove(c.site)
	c.close()
	f.o.Log.Info("container is gone", "container", c.of.Container)
}

// Close closes descriptors. The public sockets go on listening: the next proxy, or
// the daemon, decides what becomes of who waits there.
func (f *Fleet) Close() {
	for _, c := range f.snapshot() {
		c.close()
	}
	f.asks.close()
}

func (f *Fleet) get(name string) *container {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.containers[name]
}

func (f *Fleet) snapshot() map[string]*container {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make(map[string]*container, len(f.containers))
	for name, c := range f.containers {
		all[name] = c
	}
	return all
}

// Reloads and NotAfter are for the Proxy's metrics: certificates taken and not to
// be had, and when the first of those in use expires.
func (f *Fleet) Reloads() (taken, refused uint64) {
	return f.asks.taken.Load(), f.asks.refused.Load()
}

// NotAfter see Reloads.
func (f *Fleet) NotAfter() (first time.Time) {
	for _, c := range f.snapshot() {
		if p := c.pair.Load(); p != nil && (first.IsZero() || p.notAfter.Before(first)) {
			first = p.notAfter
		}
	}
	return first
}
