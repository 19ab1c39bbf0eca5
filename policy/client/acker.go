package client

import (
	"context"
	"sync"
	"time"

	"tulle/policy/api"
)

// acker sends acknowledgements beside the stream: the newest alone, one at a
// time, at once when there is news, and every AckEvery as a sign of life. What
// is reached while one is on its way goes out with the next.
type acker struct {
	c      *Client
	news   chan struct{} // capacity 1
	mu     sync.Mutex    // guards newest
	newest api.Ack
}

// retryAck is how soon an acknowledgement that was not delivered is sent again,
// as long as the stream stands.
const retryAck = time.Second

func newAcker(c *Client) *acker { return &acker{c: c, news: make(chan struct{}, 1)} }

// reached notes what is in force. A heartbeat's revision is no news: the server
// knows by itself that the cell is not behind, and hears of it with the next
// sign of life.
func (a *acker) reached(at api.Ack, news bool) {
	a.mu.Lock()
	a.newest = at
	a.mu.Unlock()
	if news {
		select {
		case a.news <- struct{}{}:
		default:
		}
	}
}

func (a *acker) run(ctx context.Context) {
	alive := time.NewTicker(a.c.opt.AckEvery)
	defer alive.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.news:
		case <-alive.C:
		}
		a.mu.Lock()
		newest := a.newest
		a.mu.Unlock()
		if newest.Epoch == "" || !a.c.Connected() {
			continue
		}
		next := a.c.opt.AckEvery
		if err := a.c.ack(ctx, newest); err != nil && ctx.Err() == nil {
			// The watch finds out by itself whether the server is gone.
			a.c.opt.Log.Debug("acknowledgement not delivered", "error", err)
			next = min(next, retryAck)
		}
		alive.Reset(next)
	}
}
