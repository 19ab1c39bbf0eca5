package foundation

import (
	"context"
	"slices"
	"time"

	"tulle/policy/api"
	"tulle/policy/client"
)

// Watch asks both servers again and again until ctx ends, and returns its error.
// What they say is given to handle: a snapshot first, and whenever something is
// another; in between, a heartbeat for each time that the policy server has
// answered. One Watch at a time.
//
// It asks nothing before the first list of endpoints is there: a daemon that takes
// its containers back would put a table without their policies in force, and refuse
// what they have open.
func (c *Client) Watch(ctx context.Context, handle client.Handler) error {
	w := &watch{c: c, handle: handle, told: map[string]string{}}
	leases, policies := time.NewTicker(c.opt.PollLeases), time.NewTicker(c.opt.PollPolicies)
	defer leases.Stop()
	defer policies.Stop()
	defer c.setStatus(func(s *client.Status) { s.Connected = false })
	select {
	case <-c.listed:
	case <-ctx.Done():
		return ctx.Err()
	}
	w.askLeases(ctx)
	w.askPolicies(ctx)
	for {
		w.tell(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-leases.C:
			w.askLeases(ctx)
		case <-policies.C:
			if w.leases == nil { // nothing can begin without
				w.askLeases(ctx)
			}
			w.askPolicies(ctx)
		case <-c.poll:
			w.askPolicies(ctx)
		}
	}
}

// watch is one call of Watch, and what it knows.
type watch struct {
	c      *Client
	handle client.Handler

	leases []api.SilkLease // nil: nobody said yet

	known   bool         // the fields below hold what a policy server said
	ids     []string     // what it was asked for
	slice   slice        // its answer
	due     api.Revision // what SetEndpoints called the list with these ids
	fresh   bool         // the slice is that of updated
	updated int64
	heard   bool // it has answered since handle was last told

	last *api.Snapshot // what handle took in
	told map[string]string
}

// askLeases takes the list of leases in.
func (w *watch) askLeases(ctx context.Context) {
	list, err := w.c.list(ctx)
	if ctx.Err() != nil {
		return
	}
	w.say("leases are not listed; peers stay as they are", err)
	if err == nil {
		w.leases = list
	}
}

// askPolicies takes the policies in where they, or what they are asked for by, have
// changed, or where the server does not say whether.
func (w *watch) askPolicies(ctx context.Context) {
	const trouble = "policies are not fetched; they stay as they are"
	c := w.c
	c.mu.Lock()
	ids, hosts, due := c.ids, c.hosts, c.revision
	c.mu.Unlock()
	// Before the policies: what changes in between is fetched again.
	updated, uerr := c.lastUpdated(ctx)
	if uerr == nil && w.fresh && updated == w.updated && slices.Equal(ids, w.ids) {
		w.due, w.heard = due, true
		return
	}
	list, err := c.fetch(ctx, ids)
	if len(ids) == 0 {
		err = uerr // nothing else was asked
	}
	var next slice
	var leftOut []error
	if err == nil {
		next, leftOut, err = sliceOf(list, hosts)
	}
	if ctx.Err() != nil {
		return
	}
	w.say(trouble, err)
	if err != nil {
		w.fresh = false
		c.setStatus(func(s *client.Status) { s.Connected = false })
		return
	}
	for _, err := range leftOut {
		w.once("policy is left out", err)
	}
	w.known, w.ids, w.slice, w.due = true, ids, next, due
	w.updated, w.fresh, w.heard = updated, uerr == nil, true
}

// tell gives handle what is new, once there is something of both servers.
func (w *watch) tell(ctx context.Context) {
	if w.leases == nil || !w.known || ctx.Err() != nil {
		return
	}
	c := w.c
	next := &api.Snapshot{Epoch: c.epoch, Policies: w.slice.policies, Tags: w.slice.tags}
	if w.last != nil {
		next.Peers = w.last.Peers
	}
	var leftOut []error
	next.Peers, leftOut = c.peersOf(w.leases, next.Peers)
	for _, err := range leftOut {
		w.once("lease is left out", err)
	}
	event := api.Event{Snapshot: next}
	if w.last != nil && same(w.last, next) {
		if !w.heard {
			return
		}
		event = api.Event{Heartbeat: &api.Heartbeat{}}
	}
	next.Revision = c.number(w, event.Snapshot != nil)
	next.Floor = next.Revision
	if event.Heartbeat != nil {
		event.Heartbeat.Revision, event.Heartbeat.Floor = next.Revision, next.Revision
	}
	err := w.handle(ctx, event)
	if w.say("what the servers said cannot be taken in", err); err != nil {
		return
	}
	w.last = next
	if w.heard {
		w.heard = false
		c.setStatus(func(s *client.Status) {
			if !s.Connected && s.Epoch != "" {
				s.Reconnects++
			}
			s.Connected, s.Epoch, s.Revision, s.LastEvent = true, c.epoch, next.Revision, time.Now()
		})
	}
}

// number is the revision of what is to be told. Where a list of endpoints has come
// meanwhile, that list's is still due.
func (c *Client) number(w *watch, news bool) api.Revision {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.ids, w.ids) {
		return w.due
	}
	if news {
		c.revision++
	}
	return c.revision
}

func same(a, b *api.Snapshot) bool {
	return slices.Equal(a.Policies, b.Policies) && slices.Equal(a.Tags, b.Tags) && slices.Equal(a.Peers, b.Peers)
}

// say logs trouble when it begins, or becomes another, and its end.
func (w *watch) say(what string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	switch was := w.told[what]; {
	case was == text:
	case err == nil:
		w.c.log.Info("again in order", "was", what)
	default:
		w.c.log.Warn(what, "err", err)
	}
	w.told[what] = text
}

// toldAtMost bounds what once remembers.
const toldAtMost = 1000

// once logs what is left out the first time.
func (w *watch) once(what string, err error) {
	key := what + ": " + err.Error()
	if _, done := w.told[key]; done || len(w.told) > toldAtMost {
		return
	}
	w.told[key] = ""
	w.c.log.Warn(what, "err", err)
}

func (c *Client) setStatus(f func(*client.Status)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.status.Connected
	f(&c.status)
	if c.status.Connected == was {
		return
	}
	close(c.changed)
	c.changed = make(chan struct{})
}
