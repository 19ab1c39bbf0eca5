package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"tulle/cmd/internal/echo"
)

// tour is the demo under way: a world, its apps, and the report of what they
// were seen to do.
type tour struct {
	*report
	world  *World
	api    *API
	cells  [2]*Cell
	apps   map[string][]*Instance
	before map[string]Samples // metrics by process, read when all had started
}

// The apps. The third is in no policy, ever.
const (
	frontend = "frontend"
	backend  = "backend"
	other    = "stranger"
)

// underlays are the cells' addresses: two hosts on one.
var underlays = [2]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")}

// stepPatience bounds one step: whatever an event is waited for, a demo that
// hangs is one that failed.
const stepPatience = 15 * time.Second

// steps, in order. A step returns an error only if it could not be made; what is
// not as it should be is a failed check, and the next step goes on.
var steps = []struct {
	title string
	do    func(*tour, context.Context) error
}{
	{"No policy yet: frontend asks backend", (*tour).denied},
	{"tulle add-network-policy frontend backend --protocol tcp --port 8080", (*tour).allowed},
	{"What that policy does not say stays closed", (*tour).othersRefused},
	{"tulle add-network-policy frontend backend --protocol udp --port 9000-9004", (*tour).udpRange},
	{"A second port beside the first", (*tour).secondPort},
	{"tulle add-network-policy frontend backend --protocol tcp --port 61443", (*tour).encrypted},
	{"tulle map-route backend apps.internal --hostname backend", (*tour).named},
	{"An instance is killed with SIGKILL and started again", (*tour).instanceKilled},
	{"A daemon is killed with SIGKILL in the middle of a download", (*tour).daemonKilled},
	{"How fast", (*tour).throughput},
	{"tulle remove-network-policy frontend backend --protocol tcp --port 8080", (*tour).cut},
	{"Who did all this", (*tour).capabilities},
	{"The metrics that moved", (*tour).metrics},
}

// run starts the world and shows the steps. It returns an error when the world
// could not be started or ctx ended; failed checks stand in the report.
func (t *tour) run(ctx context.Context) error {
	if err := t.start(ctx); err != nil {
		return err
	}
	for i, s := range steps {
		t.title("%d. %s", i+1, s.title)
		one, cancel := context.WithTimeout(ctx, stepPatience)
		err := s.do(t, one)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			t.fail(s.title, err)
		}
		if t.lost != nil {
			return fmt.Errorf("nobody reads the output any more: %w", t.lost)
		}
	}
	return nil
}

func (t *tour) start(ctx context.Context) error {
	t.title("Starting, in %s", t.world.Dir)
	begun := time.Now()
	server, err := t.world.StartServer(ctx)
	if err != nil {
		return err
	}
	t.check(true, time.Since(begun), "tulle-policy-server init; tulle-policy-server", "SQLite, API on "+server.External)
	if t.api, err = t.world.Client(); err != nil {
		return err
	}
	for i, underlay := range underlays {
		begun := time.Now()
		name := fmt.Sprintf("cell-%d", i+1)
		if t.cells[i], err = t.world.StartCell(ctx, name, underlay); err != nil {
			return err
		}
		status, err := t.cells[i].Status(ctx)
		if err != nil {
			return err
		}
		t.check(true, time.Since(begun), "tulle-celld "+name, fmt.Sprintf("%v on %v", status.Lease, status.Underlay))
		if _, err := t.world.StartProxy(ctx, t.cells[i]); err != nil {
			return err
		}
	}
	t.apps = make(map[string][]*Instance)
	for _, app := range []string{frontend, backend, other} {
		for i, cell := range t.cells {
			if _, err := t.startInstance(ctx, cell, app, i); err != nil {
				return err
			}
		}
	}
	t.before = t.readMetrics(ctx)
	return nil
}

func (t *tour) startInstance(ctx context.Context, cell *Cell, app string, index int) (*Instance, error) {
	begun := time.Now()
	i, err := t.world.StartApp(ctx, cell, app, index)
	if err != nil {
		return nil, err
	}
	if index == len(t.apps[app]) {
		t.apps[app] = append(t.apps[app], i)
	} else {
		t.apps[app][index] = i
	}
	t.check(true, time.Since(begun), "tulle run --app "+app+" on "+cell.Name, fmt.Sprintf("%s is %v", i, i.Addr))
	return i, nil
}

// pairs calls f with each instance of one app and each of another.
func (t *tour) pairs(from, to string, f func(from, to *Instance) error) error {
	for _, a := range t.apps[from] {
		for _, b := range t.apps[to] {
			if err := f(a, b); err != nil {
				return err
			}
		}
	}
	return nil
}

// where tells whether two instances share a cell.
func where(a, b *Instance) string {
	if a.Cell == b.Cell {
		return "same cell"
	}
	return "across cells"
}

// soon is the longest that "at once" may take on a busy machine of two cores.
const soon = time.Second

// try makes one attempt and checks that it comes to want at once.
func (t *tour) try(ctx context.Context, want echo.Outcome, from, to *Instance, op echo.Op, port uint16) error {
	e, err := from.Do(ctx, echo.Request{Op: op, Address: to.At(port), Timeout: 3 * time.Second})
	if err != nil {
		return fmt.Errorf("%s asks %s: %w", from, to, err)
	}
	t.check(e.Outcome == want && e.Took < soon, e.Took, asked(op, from, to, port), came(e))
	return nil
}

// tryGone is try towards an instance that is no more.
func (t *tour) tryGone(ctx context.Context, from, gone *Instance, port uint16) error {
	e, err := from.Do(ctx, echo.Request{Op: echo.OpDial, Address: gone.At(port), Timeout: 3 * time.Second})
	if err != nil {
		return fmt.Errorf("%s asks %v: %w", from, gone.Addr, err)
	}
	t.check(e.Outcome == echo.Refused && e.Took < soon, e.Took, fmt.Sprintf("%s -> %s, the old address", from, gone.At(port)), came(e))
	return nil
}

func asked(op echo.Op, from, to *Instance, port uint16) string {
	protocol := "tcp"
	if op == echo.OpUDP {
		protocol = "udp"
	}
	return fmt.Sprintf("%s -> %s %s %s, %s", from, to, protocol, strconv.Itoa(int(port)), where(from, to))
}

// came says an outcome in words.
func came(e echo.Event) string {
	switch e.Outcome {
	case echo.OK:
		switch {
		case e.Text != "":
			return said(e.Text)
		case e.Bytes > 0:
			return fmt.Sprintf("%d bytes, each right", e.Bytes)
		}
		return "connected"
	case echo.Refused:
		return "connection refused"
	case echo.Reset:
		return "connection reset"
	case echo.TimedOut:
		return "no answer"
	}
	return string(e.Outcome) + ": " + e.Error
}

// said is who answered a GET /.
func said(body string) string {
	var who struct{ Name, Address string }
	if err := json.Unmarshal([]byte(body), &who); err != nil {
		return body
	}
	return who.Name + " at " + who.Address + " answers"
}

// doneAll waits for all calls.
func doneAll(ctx context.Context, calls []*echo.Call) ([]echo.Event, error) {
	events := make([]echo.Event, len(calls))
	var errs []error
	for i, c := range calls {
		var err error
		events[i], err = c.Done(ctx)
		errs = append(errs, err)
	}
	return events, errors.Join(errs...)
}
