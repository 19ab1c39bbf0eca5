package tlsproxy

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// logEvery is how often one kind of end is logged; the others in between are
// counted, in the next line and in the metrics.
const logEvery = time.Second

// logLimit keeps a client from filling the log.
type logLimit struct {
	mu   sync.Mutex // guards the fields below
	last map[result]time.Time
	held map[result]int
}

func (l *logLimit) may(r result, now time.Time) (held int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil {
		l.last, l.held = map[result]time.Time{}, map[result]int{}
	}
	if now.Sub(l.last[r]) < logEvery {
		l.held[r]++
		return 0, false
	}
	held, l.last[r], l.held[r] = l.held[r], now, 0
	return held, true
}

// ended counts a connection's end and, unless it ended as it should, says so.
func (p *Proxy) ended(c *conn, r result, err error) {
	p.metrics.ended(r)
	level := slog.LevelInfo
	switch r {
	case completed:
		return
	case aborted, idle, siteGone, drainedLate, abandoned:
		level = slog.LevelDebug // what networks do
	case backendDown, noCertificate, overLimit:
		level = slog.LevelWarn // what an operator mends
	}
	if !p.o.Log.Enabled(context.Background(), level) {
		return
	}
	held, ok := p.logs.may(r, time.Now())
	if !ok {
		return
	}
	p.o.Log.Log(context.Background(), level, "connection refused or cut", "result", string(r), "site", c.site.Name,
		"client", c.Conn.RemoteAddr().String(), "error", err, "not_logged", held)
}
