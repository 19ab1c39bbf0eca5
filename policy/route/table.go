package route

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"tulle/policy"
)

// Message is what route emitters send; other keys are ignored, as the original
// does.
type Message struct {
	Host string   `json:"host"`
	URIs []string `json:"uris"`
}

// Limits of one message. An emitter sends one of a route: its name, and the
// instance's.
const (
	maxMessage = 1 << 20
	maxURIs    = 1000
)

// DecodeMessage reads a message: the routes it names. Without a host, which only an
// unregister may lack, there are none. bad lists the names that are none.
func DecodeMessage(data []byte) (routes []policy.Route, bad []error, err error) {
	if len(data) > maxMessage {
		return nil, nil, fmt.Errorf("message of %d bytes: at most %d", len(data), maxMessage)
	}
	var m Message
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, nil, fmt.Errorf("message: %w", err)
	}
	switch {
	case len(m.URIs) == 0:
		return nil, nil, errors.New("message without uris")
	case len(m.URIs) > maxURIs:
		return nil, nil, fmt.Errorf("message with %d uris: at most %d", len(m.URIs), maxURIs)
	case m.Host == "":
		return nil, nil, nil
	}
	addr, err := netip.ParseAddr(m.Host)
	if err != nil || addr.Zone() != "" || !addr.Unmap().IsValid() || addr.IsUnspecified() {
		return nil, nil, fmt.Errorf("message with host %.64q, which is no address", m.Host)
	}
	for _, uri := range m.URIs {
		name, err := policy.ParseHostname(uri)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		routes = append(routes, policy.Route{Name: name, Address: addr.Unmap()})
	}
	return routes, bad, nil
}

// Table is when each registered route was last heard of. It is not safe for
// concurrent use.
type Table struct {
	stale  time.Duration // not heard of for longer: goes
	resume time.Duration // how long nothing goes after NATS is back
	seen   map[policy.Route]time.Time
	// since is when NATS came, the zero time while it is away.
	since time.Time
}

// NewTable begins without a connection.
func NewTable(stale, resume time.Duration) *Table {
	return &Table{stale: stale, resume: resume, seen: map[policy.Route]time.Time{}}
}

// Adopt makes what the store has what the table knows. What the table does not know
// is from before this server's start, or came by way of another, and counts as heard
// of now. What the store does not have goes, but for what is on its way there.
func (t *Table) Adopt(stored, coming map[policy.Route]struct{}, now time.Time) {
	for r := range t.seen {
		_, is := stored[r]
		_, will := coming[r]
		if !is && !will {
			delete(t.seen, r)
		}
	}
	for r := range stored {
		if _, known := t.seen[r]; !known && r.Address.IsValid() {
			t.seen[r] = now
		}
	}
}

// Register hears of routes and returns those that are new.
func (t *Table) Register(routes []policy.Route, now time.Time) (added []policy.Route) {
	for _, r := range routes {
		if _, known := t.seen[r]; !known {
			added = append(added, r)
		}
		t.seen[r] = now
	}
	return added
}

// Unregister forgets routes. All are returned: the store may know what the table
// does not.
func (t *Table) Unregister(routes []policy.Route) []policy.Route {
	for _, r := range routes {
		delete(t.seen, r)
	}
	return routes
}

// Connected and Disconnected say whether NATS is there: while it is away nobody
// can be heard of, and for a while after it is back nobody was.
func (t *Table) Connected(now time.Time) {
	if t.since.IsZero() {
		t.since = now
	}
}

// Disconnected is told when NATS is away.
func (t *Table) Disconnected() { t.since = time.Time{} }

// Prune forgets what is stale and returns it.
func (t *Table) Prune(now time.Time) (removed []policy.Route) {
	if t.since.IsZero() || now.Sub(t.since) < t.resume {
		return nil
	}
	for r, at := range t.seen {
		if now.Sub(at) > t.stale {
			delete(t.seen, r)
			removed = append(removed, r)
		}
	}
	return removed
}

// Len is the number of registered routes.
func (t *Table) Len() int { return len(t.seen) }
