package echo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// ErrGone ends every wait on a container that is no more.
var ErrGone = errors.New("the container is gone")

// Client drives one container from outside. Its methods may be called from any
// goroutine.
type Client struct {
	in io.WriteCloser

	mu      sync.Mutex
	changed chan struct{} // guarded by mu: closed and made anew with each event
	nextID  uint64        // guarded by mu
	calls   map[uint64]*Call
	ready   *Event
	served  []Event // what the container's server told, unasked
	gone    bool
}

// NewClient speaks on a container's standard input and output, which are its
// own from now on. It reads out to its end; Close closes in, which ends the
// container.
func NewClient(in io.WriteCloser, out io.ReadCloser) *Client {
	c := &Client{in: in, changed: make(chan struct{}), calls: make(map[uint64]*Call)}
	go c.read(out)
	return c
}

// Close ends the container's command by ending its input.
func (c *Client) Close() error { return c.in.Close() }

// Gone waits until nobody writes the container's output any more: all its
// processes have ended.
func (c *Client) Gone(ctx context.Context) error {
	if err := c.wait(ctx, func() bool { return false }); !errors.Is(err, ErrGone) {
		return err
	}
	return nil
}

func (c *Client) read(out io.ReadCloser) {
	defer out.Close()
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e Event
		if json.Unmarshal(lines.Bytes(), &e) == nil {
			c.deliver(e)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	c.broadcastLocked()
}

func (c *Client) deliver(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch call := c.calls[e.ID]; {
	case e.Kind == EventReady:
		c.ready = &e
	case e.ID == 0:
		c.served = append(c.served, e)
	case call != nil:
		call.events = append(call.events, e)
		if e.Kind == EventDone {
			delete(c.calls, e.ID)
		}
	}
	c.broadcastLocked()
}

func (c *Client) broadcastLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// wait returns when seen, called with mu held, says true.
func (c *Client) wait(ctx context.Context, seen func() bool) error {
	for {
		c.mu.Lock()
		found, gone, changed := seen(), c.gone, c.changed
		c.mu.Unlock()
		switch {
		case found:
			return nil
		case gone:
			return ErrGone
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// Ready waits for the container's servers to listen.
func (c *Client) Ready(ctx context.Context) (Event, error) {
	var e Event
	err := c.wait(ctx, func() bool {
		if c.ready != nil {
			e = *c.ready
		}
		return c.ready != nil
	})
	return e, err
}

// Served waits for an event of the container's own server, past or to come,
// that match accepts.
func (c *Client) Served(ctx context.Context, match func(Event) bool) (Event, error) {
	var e Event
	err := c.wait(ctx, func() bool {
		for _, e = range c.served {
			if match(e) {
				return true
			}
		}
		return false
	})
	return e, err
}

// Call is a request under way.
type Call struct {
	client *Client
	id     uint64
	events []Event // guarded by client.mu
}

// Start sends a request. Its ID is filled in here.
func (c *Client) Start(req Request) (*Call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return nil, ErrGone
	}
	c.nextID++
	req.ID = c.nextID
	call := &Call{client: c, id: req.ID}
	c.calls[req.ID] = call
	if err := c.sendLocked(req); err != nil {
		delete(c.calls, req.ID)
		return nil, err
	}
	return call, nil
}

func (c *Client) sendLocked(req Request) error {
	line, err := json.Marshal(req)
	if err != nil {
		return err
	}
	if _, err := c.in.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("send a request to the container: %w", err)
	}
	return nil
}

// Do sends a request and waits for what came of it.
func (c *Client) Do(ctx context.Context, req Request) (Event, error) {
	call, err := c.Start(req)
	if err != nil {
		return Event{}, err
	}
	return call.Done(ctx)
}

// Wait returns the call's event of a kind. A call that ended without one
// returns its last event and an error.
func (c *Call) Wait(ctx context.Context, kind Kind) (Event, error) {
	var e Event
	err := c.client.wait(ctx, func() bool {
		for _, e = range c.events {
			if e.Kind == kind || e.Kind == EventDone {
				return true
			}
		}
		return false
	})
	if err == nil && e.Kind != kind {
		err = fmt.Errorf("%s: %s", e.Outcome, e.Error)
	}
	return e, err
}

// Done waits for the call's last event.
func (c *Call) Done(ctx context.Context) (Event, error) { return c.Wait(ctx, EventDone) }

// Stop ends the call; its last event then says Stopped.
func (c *Call) Stop() error {
	c.client.mu.Lock()
	defer c.client.mu.Unlock()
	return c.client.sendLocked(Request{Op: OpStop, Target: c.id})
}
