package hub

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"tulle/policy/api"
)

// Exchange carries notices between the hubs of the servers on one store. Which
// cells reached which revision is soft state that is never written; so hubs tell
// it to each other, what moved at once and everything from time to time, which
// also mends what got lost. Both methods are safe for concurrent use.
type Exchange interface {
	// Tell sends a notice of at most maxNotice bytes to all other servers. It may
	// get lost.
	Tell(ctx context.Context, notice string) error
	// Heard gives the notices of the others, each once, in their sender's order.
	Heard() <-chan string
}

const (
	maxNotice = 7500             // bytes; what a NOTIFY of PostgreSQL can carry, with room for its envelope
	forgotten = time.Minute      // a server unheard of for longer is no more
	trusted   = 15 * time.Second // a watch elsewhere counts for so long after it was last told of
	telling   = 5 * time.Second  // time limit of one notice
)

// notice is what a server says of the cells that are connected to it.
type notice struct {
	From  string    `json:"from"` // the hub, until it ends
	Epoch api.Epoch `json:"epoch"`
	// Revision is what the hub has come to, and so what it tells a cell at least
	// that comes to it from now on.
	Revision api.Revision        `json:"rev,omitempty"`
	Cells    map[string]progress `json:"cells,omitempty"`
}

// other is another server, as it was heard last.
type other struct {
	heard    time.Time
	revision api.Revision // 0: of another epoch
}

// progress is how far one cell is.
type progress struct {
	Reached  api.Revision `json:"r"`
	Watching bool         `json:"w,omitempty"` // its watch is open at the sender
	Quiet    int64        `json:"q,omitempty"` // milliseconds since its last sign of life
}

// elsewhere is a cell's watch on another server, as that one told of it.
type elsewhere struct {
	from     string // the server; "": none was ever told of
	reached  api.Revision
	watching bool
	heard    time.Time
}

// elsewhereLocked reports whether the cell has a watch on another server that is
// still being told of.
func (h *Hub) elsewhereLocked(c *cell) bool {
	return c.away.watching && h.opt.Now().Sub(c.away.heard) < trusted
}

// newsLocked notes that others are to be told of the cell.
func (h *Hub) newsLocked(name string) {
	if h.opt.Exchange == nil || len(h.others) == 0 {
		return // with nobody there, the next full notice is early enough
	}
	h.news[name] = struct{}{}
	h.speakLocked(false)
}

// speakLocked has a notice sent soon, of everything if all is set.
func (h *Hub) speakLocked(all bool) {
	h.tellAll = h.tellAll || all
	select {
	case h.speak <- struct{}{}:
	default:
	}
}

// tellOthers sends what is new at most every Options.NoticeEvery, and all of it
// at least every Options.NoticeAll.
func (h *Hub) tellOthers(ctx context.Context) {
	all := time.NewTicker(h.opt.NoticeAll)
	defer all.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	full := true // the first one is a greeting
	for {
		for _, text := range h.notices(full) {
			limited, cancel := context.WithTimeout(ctx, telling)
			if err := h.opt.Exchange.Tell(limited, text); err != nil && ctx.Err() == nil {
				h.opt.Log.Debug("cannot tell the other servers of the cells here", "error", err)
			}
			cancel()
		}
		pause.Reset(h.opt.NoticeEvery)
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		full = false
		select {
		case <-ctx.Done():
			return
		case <-h.speak:
		case <-all.C:
			full = true
		}
	}
}

// notices are the notices of what is new, or with full of all cells here: as
// many as it takes, and with full at least one, which says that this server is
// there.
func (h *Hub) notices(full bool) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	full = full || h.tellAll
	h.tellAll = false
	now := h.opt.Now()
	for from, o := range h.others {
		if now.Sub(o.heard) > forgotten {
			delete(h.others, from)
		}
	}
	cells := make(map[string]progress)
	note := func(name string, c *cell) {
		rev, _ := h.reachedHereLocked(c)
		cells[name] = progress{Reached: rev, Watching: c.watcher != nil, Quiet: max(0, now.Sub(c.seen).Milliseconds())}
	}
	for name := range h.news {
		note(name, h.cells[name])
	}
	clear(h.news)
	if full {
		for name, c := range h.cells {
			if c.watcher != nil {
				note(name, c)
			}
		}
	}
	if len(cells) == 0 && !full {
		return nil
	}
	return encodeNotices(notice{From: h.name, Epoch: h.x.epoch, Revision: h.x.revision, Cells: cells})
}

// encodeNotices writes n in parts that are short enough.
func encodeNotices(n notice) []string {
	var out []string
	part := notice{From: n.From, Epoch: n.Epoch, Revision: n.Revision, Cells: make(map[string]progress)}
	// Marshalling strings, numbers and maps of them cannot fail.
	size := func(v any) int { b, _ := json.Marshal(v); return len(b) }
	empty := size(part) + len(`,"cells":{}`)
	length := empty
	flush := func() {
		b, _ := json.Marshal(part)
		out = append(out, string(b))
		clear(part.Cells)
		length = empty
	}
	for name, p := range n.Cells {
		need := size(name) + size(p) + len(":,")
		if length+need > maxNotice && len(part.Cells) > 0 {
			flush()
		}
		part.Cells[name] = p
		length += need
	}
	if len(part.Cells) > 0 || len(out) == 0 {
		flush()
	}
	return out
}

// hearOthers takes in what the other servers say.
func (h *Hub) hearOthers(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case text := <-h.opt.Exchange.Heard():
			if err := h.hear(text); err != nil {
				h.opt.Log.Warn("notice of another server is not understood", "error", err)
			}
		}
	}
}

// hear takes one notice in. A server that was not known gets to know everything.
func (h *Hub) hear(text string) error {
	var n notice
	if err := json.Unmarshal([]byte(text), &n); err != nil {
		return fmt.Errorf("read notice: %w", err)
	}
	if n.From == "" {
		return fmt.Errorf("read notice: it does not say whose it is")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.opt.Now()
	if _, known := h.others[n.From]; !known {
		h.speakLocked(true)
	}
	if n.Epoch != h.x.epoch {
		h.others[n.From] = other{heard: now}
		return nil // one of us has yet to see the restore
	}
	h.others[n.From] = other{heard: now, revision: n.Revision}
	for name, p := range n.Cells {
		c := h.cellLocked(name)
		if seen := now.Add(-time.Duration(p.Quiet) * time.Millisecond); seen.After(c.seen) {
			c.seen = seen
			// A silence that is told again seems shorter by what its notice took less.
			if now.Sub(seen) < h.opt.SilentAfter {
				h.backLocked(name)
			}
		}
		// Where two servers hold a watch of the cell open, one of them does not
		// know yet that it is dead; the other one makes progress.
		same := c.away.from == n.From
		if same || !h.elsewhereLocked(c) || p.Watching && p.Reached >= c.away.reached {
			c.away = elsewhere{from: n.From, reached: p.Reached, watching: p.Watching, heard: now}
			h.floorsMovedLocked(name)
		}
	}
	return nil
}
