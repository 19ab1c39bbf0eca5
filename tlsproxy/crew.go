package tlsproxy

import "context"

// idleWorkers is how many goroutines wait for the next connection.
const idleWorkers = 64

// crew runs functions in goroutines that stay for the next one: a handshake needs
// a deep stack, and growing one each time is 3 % of a handshake.
type crew struct {
	ctx  context.Context // ends those that wait
	work chan func()     // has no place: what is sent is taken by one that waits
	idle chan struct{}   // a place for each that waits
}

func newCrew(ctx context.Context) *crew {
	return &crew{ctx: ctx, work: make(chan func()), idle: make(chan struct{}, idleWorkers)}
}

// run returns at once.
func (c *crew) run(f func()) {
	select {
	case c.work <- f:
	default:
		go c.worker(f)
	}
}

func (c *crew) worker(f func()) {
	for {
		f()
		select {
		case c.idle <- struct{}{}:
		default:
			return
		}
		select {
		case f = <-c.work:
			<-c.idle
		case <-c.ctx.Done():
			return
		}
	}
}
