package cell

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"tulle/overlay/control"
)

// maxIdle is how many connections to the daemon are kept for the next question.
const maxIdle = 8

// asker is a few connections to the daemon's local API, each for one question at
// a time.
type asker struct {
	socket         string
	idle           chan *control.Client
	taken, refused atomic.Uint64 // certificates
}

func newAsker(socket string) *asker {
	return &asker{socket: socket, idle: make(chan *control.Client, maxIdle)}
}

// ask puts a question. A daemon that is away, or that hangs up on a connection
// that was idle, is asked again until ctx ends; a refusal is its answer.
func ask[T any](ctx context.Context, a *asker, question func(*control.Client) (T, error)) (T, error) {
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		client, err := a.client()
		if err == nil {
			var got T
			got, err = question(client)
			var refusal *control.Error
			if err == nil || errors.As(err, &refusal) && refusal.Code != control.CodeUnavailable {
				a.put(client)
				return got, err
			}
			_ = client.Close()
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			var none T
			return none, errors.Join(ctx.Err(), err)
		}
	}
}

// client is a connection that is open, as far as can be told.
func (a *asker) client() (*control.Client, error) {
	for {
		select {
		case c := <-a.idle:
			select {
			case <-c.Done():
				_ = c.Close()
				continue
			default:
				return c, nil
			}
		default:
			return control.Dial(a.socket)
		}
	}
}

func (a *asker) put(c *control.Client) {
	select {
	case a.idle <- c:
	default:
		_ = c.Close()
	}
}

func (a *asker) close() {
	for {
		select {
		case c := <-a.idle:
			_ = c.Close()
		default:
			return
		}
	}
}
