package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"tulle/policy/api"
)

// Handler takes one event in and returns when it is in force: the table
// published, the flows that it forbids cut. Its error means that the event could
// not be taken in; the watch then starts over with a snapshot.
type Handler func(ctx context.Context, e api.Event) error

// Status is the watch as it stands.
type Status struct {
	Connected  bool         // a stream is open and has spoken
	Epoch      api.Epoch    // of what was handled last; "" before the first snapshot
	Revision   api.Revision // handled last
	LastEvent  time.Time    // when the last event, heartbeats included, was handled
	Reconnects int          // streams opened after the first
}

// Status is the watch's present state.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// Connected reports whether a stream is open and has spoken.
func (c *Client) Connected() bool { return c.Status().Connected }

// Connection is Connected, and a channel that is closed when that is no longer so.
func (c *Client) Connection() (connected bool, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status.Connected, c.changed
}

func (c *Client) setStatus(f func(*Status)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.status.Connected
	f(&c.status)
	if c.status.Connected != was {
		close(c.changed)
		c.changed = make(chan struct{})
	}
}

var (
	errSilent     = errors.New("nothing was heard on the stream for too long")
	errNoSnapshot = errors.New("the stream began with a change where a snapshot was due")
)

// Watch keeps a stream of events open until ctx ends, and returns its error. It
// begins with a snapshot; after an interruption it goes on from the last event
// that the handler took in. One Watch at a time.
func (c *Client) Watch(ctx context.Context, handle Handler) error {
	w := &watch{c: c, handle: handle, acks: newAcker(c)}
	var wg sync.WaitGroup
	wg.Go(func() { w.acks.run(ctx) })
	if c.opt.Credentials != "" {
		wg.Go(func() { c.renew(ctx) })
	}
	defer wg.Wait() // Watch returns only when ctx has ended, and so does the acker
	delay := c.opt.BackoffMin
	for first := true; ; first = false {
		if !first {
			c.setStatus(func(s *Status) { s.Reconnects++ })
		}
		spoke, err := w.stream(ctx)
		for errors.Is(err, errRenewed) { // no interruption: it goes on at once
			_, err = w.stream(ctx)
		}
		c.setStatus(func(s *Status) { s.Connected = false })
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if spoke {
			delay = c.opt.BackoffMin
		}
		// Full jitter between half and the whole: a thousand cells that lost the
		// same server do not come back in one instant.
		pause := delay/2 + rand.N(delay/2+1)
		c.opt.Log.Warn("watch interrupted", "error", err, "retry_in", pause, "revision", w.at.Revision)
		delay = min(2*delay, c.opt.BackoffMax)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// watch is one call of Watch.
type watch struct {
	c      *Client
	handle Handler
	acks   *acker
	at     api.Ack // what the handler took in last; zero: nothing
}

// stream opens one stream and reads it to its end. spoke tells whether an event
// was taken in.
func (w *watch) stream(ctx context.Context) (spoke bool, err error) {
	whole := ctx // the handler's: what it has begun it ends, whatever becomes of the stream
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w.c.mu.Lock()
	w.c.stream = cancel
	via := w.c.http
	w.c.mu.Unlock()
	// Until the answer begins the limit is that of any request: a handshake with
	// a busy server may take longer than a heartbeat.
	silence := time.AfterFunc(w.c.opt.RequestTimeout, func() { cancel(errSilent) })
	defer silence.Stop()

	q := url.Values{"epoch": {string(w.at.Epoch)}, "revision": {strconv.FormatUint(uint64(w.at.Revision), 10)}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.c.base+api.PathWatch+"?"+q.Encode(), nil)
	if err != nil {
		return false, err
	}
	resp, err := via.Do(req)
	if err != nil {
		return false, explain(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return false, statusError(resp)
	}
	silence.Reset(w.c.opt.Silence)
	lines := json.NewDecoder(resp.Body)
	for {
		var e api.Event
		if err := lines.Decode(&e); err != nil {
			return spoke, explain(ctx, err)
		}
		// The handler may take its time; only the server's silence counts.
		silence.Stop()
		if err := w.take(whole, e); err != nil {
			return spoke, err
		}
		silence.Reset(w.c.opt.Silence)
		if !spoke {
			spoke = true
			w.c.opt.Log.Info("watch established", "epoch", w.at.Epoch, "revision", w.at.Revision)
		}
	}
}

// explain puts the reason why the stream was cancelled in front.
func explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// take hands one event on, then notes and acknowledges it.
func (w *watch) take(ctx context.Context, e api.Event) error {
	next, news := w.at, true
	switch {
	case e.Snapshot != nil:
		next = api.Ack{Epoch: e.Snapshot.Epoch, Revision: e.Snapshot.Revision}
	case w.at.Epoch == "":
		return errNoSnapshot
	case e.Delta != nil:
		next.Revision = e.Delta.Revision
	case e.Heartbeat != nil:
		next.Revision, news = e.Heartbeat.Revision, false
	case e.Liveness != nil, e.Groups != nil:
		news = false
	default:
		return errors.New("a line of the stream is no event that this version knows")
	}
	if err := w.handle(ctx, e); err != nil {
		w.at = api.Ack{}
		return fmt.Errorf("take in revision %d: %w", next.Revision, err)
	}
	w.at = next
	w.c.setStatus(func(s *Status) {
		s.Connected, s.Epoch, s.Revision, s.LastEvent = true, next.Epoch, next.Revision, time.Now()
	})
	w.acks.reached(next, news)
	return nil
}
