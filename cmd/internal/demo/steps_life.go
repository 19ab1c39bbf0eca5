package demo

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"tulle/cmd/internal/echo"
	"tulle/overlay/control"
	"tulle/policy"
)

// goneWithin is how fast every cell must forget a killed instance.
const goneWithin = time.Second

// instanceKilled: the address goes, the app and its policies stay.
func (t *tour) instanceKilled(ctx context.Context) error {
	victim := t.apps[backend][0]
	near, far := t.apps[frontend][0], t.apps[frontend][1]
	var held []*echo.Call
	for _, from := range []*Instance{near, far} {
		call, err := from.Start(echo.Request{Op: echo.OpHold, Address: victim.At(Port)})
		if err != nil {
			return err
		}
		if _, err := call.Wait(ctx, echo.EventBegun); err != nil {
			return err
		}
		held = append(held, call)
	}
	killed := time.Now()
	if err := victim.Kill(ctx); err != nil {
		return err
	}
	for i, from := range []*Instance{near, far} {
		e, err := held[i].Done(ctx)
		if err != nil {
			return err
		}
		took := e.At.Sub(killed)
		// The dying kernel may still say goodbye for its process before the device goes.
		ended := e.Outcome == echo.Reset || e.Outcome == echo.Closed
		t.check(ended && took < goneWithin, took,
			fmt.Sprintf("SIGKILL; %s held a connection, %s", from, where(from, victim)), came(e))
	}
	for _, cell := range t.cells {
		err := forgets(ctx, cell, victim.Addr)
		took := time.Since(killed)
		got := fmt.Sprintf("no longer knows %v", victim.Addr)
		if err != nil {
			got = err.Error()
		}
		t.check(err == nil && took < goneWithin, took, cell.Name, got)
	}
	fresh, err := t.startInstance(ctx, victim.Cell, backend, victim.Index)
	if err != nil {
		return err
	}
	t.check(fresh.Addr != victim.Addr, 0, "the new instance's address", fmt.Sprintf("%v, was %v", fresh.Addr, victim.Addr))
	for _, from := range []*Instance{near, far} {
		if err := t.try(ctx, echo.OK, from, fresh, echo.OpDial, Port); err != nil {
			return err
		}
		if err := t.tryGone(ctx, from, victim, Port); err != nil {
			return err
		}
	}
	return nil
}

// forgets waits until a cell no longer lists an address. The daemon offers no
// event for it, so it is asked again and again.
func forgets(ctx context.Context, cell *Cell, addr netip.Addr) error {
	client, err := control.Dial(cell.Socket)
	if err != nil {
		return err
	}
	defer client.Close()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		status, err := client.Status(ctx)
		if err != nil {
			return err
		}
		if !knows(status, addr) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("still knows %v: %w", addr, ctx.Err())
		case <-again.C:
		}
	}
}

func knows(s control.Status, addr netip.Addr) bool {
	for _, e := range s.Endpoints {
		if e.Address == addr {
			return true
		}
	}
	for _, e := range s.Remote {
		if e.Address == addr {
			return true
		}
	}
	return false
}

// What a download of the next step carries: long enough to outlive a restart.
const (
	downloadRate  = 24 << 20
	downloadBytes = 3 * downloadRate
	downloadMark  = downloadBytes / 4
)

// daemonKilled kills the server's daemon in the middle of a download in which
// only the server sends, so that nothing of the client's could bring it back.
func (t *tour) daemonKilled(ctx context.Context) error {
	from, to := t.apps[frontend][0], t.apps[backend][1]
	cell := to.Cell
	before, err := cell.Status(ctx)
	if err != nil {
		return err
	}
	download, err := from.Start(echo.Request{Op: echo.OpDownload, Address: to.At(Port),
		Bytes: downloadBytes, Rate: downloadRate, Mark: downloadMark})
	if err != nil {
		return err
	}
	mark, err := download.Wait(ctx, echo.EventMark)
	if err != nil {
		return err
	}
	begun := time.Now()
	if err := cell.Kill(); err != nil {
		return err
	}
	if err := cell.Restart(ctx); err != nil {
		return err
	}
	t.check(true, time.Since(begun), fmt.Sprintf("SIGKILL to %s at byte %d, and start", cell.Name, mark.Bytes), "ready again")
	e, err := download.Done(ctx)
	if err != nil {
		return err
	}
	t.check(e.Outcome == echo.OK && e.Bytes == downloadBytes, e.Took,
		fmt.Sprintf("the download, %d MiB at %d MiB/s", downloadBytes>>20, downloadRate>>20), came(e))
	after, err := returned(ctx, cell, len(before.Endpoints))
	if err != nil {
		return err
	}
	t.check(sameEndpoints(before, after), 0, "its containers and their addresses", fmt.Sprintf("%d, the same as before", len(after.Endpoints)))
	e, err = to.Do(ctx, echo.Request{Op: echo.OpDescribe})
	if err != nil {
		return err
	}
	t.check(e.Device == to.Device && e.Addrs[0] == to.Addr.String(), 0, "the device of "+to.String(), fmt.Sprintf("%s with %s, was %s", e.Device, e.Addrs[0], to.Device))
	return nil
}

// returned waits until all containers have attached again.
func returned(ctx context.Context, cell *Cell, n int) (control.Status, error) {
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		s, err := cell.Status(ctx)
		if err != nil {
			return s, err
		}
		back := 0
		for _, e := range s.Endpoints {
			if !e.Waiting {
				back++
			}
		}
		if back >= n {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return s, fmt.Errorf("%d of %d containers came back: %w", back, n, ctx.Err())
		case <-again.C:
		}
	}
}

func sameEndpoints(a, b control.Status) bool {
	if len(a.Endpoints) != len(b.Endpoints) {
		return false
	}
	addrs := make(map[string]netip.Addr)
	for _, e := range a.Endpoints {
		addrs[e.Container] = e.Address
	}
	for _, e := range b.Endpoints {
		if addrs[e.Container] != e.Address {
			return false
		}
	}
	return true
}

// cut: a removed policy ends what it had allowed, busy or idle, at both ends.
func (t *tour) cut(ctx context.Context) error {
	type conn struct {
		name     string
		call     *echo.Call
		path     string
		begun    echo.Event
		from, to *Instance
	}
	var conns []conn
	open := func(what string, from, to *Instance, req echo.Request, kind echo.Kind) error {
		req.Address = to.At(Port)
		call, err := from.Start(req)
		if err != nil {
			return err
		}
		begun, err := call.Wait(ctx, echo.EventBegun)
		if err != nil {
			return err
		}
		if _, err := call.Wait(ctx, kind); err != nil {
			return err
		}
		conns = append(conns, conn{name: what, call: call, path: "/" + string(req.Op), begun: begun, from: from, to: to})
		return nil
	}
	for _, from := range t.apps[frontend] {
		to := t.apps[backend][1]
		if err := open("download", from, to, echo.Request{Op: echo.OpDownload, Bytes: 1 << 34, Rate: downloadRate, Mark: 1 << 20}, echo.EventMark); err != nil {
			return err
		}
		if err := open("idle connection", from, to, echo.Request{Op: echo.OpHold}, echo.EventBegun); err != nil {
			return err
		}
	}
	begun := time.Now()
	if err := t.api.Forbid(ctx, frontend, backend, policy.TCP, port(Port)); err != nil {
		return err
	}
	answered := time.Now()
	t.check(true, answered.Sub(begun), "the policy server answers", "200 OK; from then on it took:")
	for _, c := range conns {
		client, err := c.call.Done(ctx)
		if err != nil {
			return fmt.Errorf("%s at %s, %s, lives on: %w", c.name, c.from, c.begun.Local, err)
		}
		server, err := c.to.Served(ctx, func(e echo.Event) bool {
			return e.Kind == echo.EventServed && e.Path == c.path && e.Peer == c.begun.Local
		})
		if err != nil {
			return fmt.Errorf("%s at %s, %s, lives on: %w", c.name, c.to, c.begun.Local, err)
		}
		for _, end := range []struct {
			name string
			e    echo.Event
		}{{c.from.String(), client}, {c.to.String(), server}} {
			after := max(1, end.e.At.Sub(answered))
			t.check(end.e.Outcome == echo.Reset && after < soon, after,
				fmt.Sprintf("%s at %s, %s", c.name, end.name, where(c.from, c.to)),
				came(echo.Event{Outcome: end.e.Outcome, Error: end.e.Error}))
		}
	}
	if err := t.try(ctx, echo.Refused, t.apps[frontend][0], t.apps[backend][1], echo.OpDial, Port); err != nil {
		return err
	}
	return t.try(ctx, echo.OK, t.apps[frontend][0], t.apps[backend][1], echo.OpDial, SecondPort)
}
