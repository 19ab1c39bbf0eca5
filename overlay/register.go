package overlay

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"tulle/overlay/fib"
	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/client"
)

// registrar tells the policy server which endpoints this cell has: always the
// whole list, one request at a time. Changes that come while one is on its way
// go out together with the next, so any number of attaches at once cost two.
type registrar struct {
	l    *life
	kick chan struct{} // capacity 1

	mu   sync.Mutex    // guards the fields below
	want uint64        // version of the list; grows with each change
	done uint64        // version the server has
	last registered    // what it said to it
	news chan struct{} // closed and replaced when last changes
	gone []netip.Addr  // detached, the server does not know yet
}

type registered struct {
	api.EndpointsResponse
	err error
}

func newRegistrar(l *life) *registrar {
	return &registrar{l: l, kick: make(chan struct{}, 1), want: 1, news: make(chan struct{})}
}

// changed says that the ledger's list is another; the version is for wait.
func (r *registrar) changed(gone ...netip.Addr) (version uint64) {
	r.mu.Lock()
	r.want++
	version = r.want
	r.gone = append(r.gone, gone...)
	r.mu.Unlock()
	r.wake()
	return version
}

func (r *registrar) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// wait returns what the server said to a list of at least that version. When
// ctx ends first, the error is that of the last request, if there was one.
func (r *registrar) wait(ctx context.Context, version uint64) (api.EndpointsResponse, error) {
	for {
		r.mu.Lock()
		done, last, news := r.done, r.last, r.news
		r.mu.Unlock()
		if done >= version {
			return last.EndpointsResponse, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			if last.err != nil {
				return api.EndpointsResponse{}, last.err
			}
			return api.EndpointsResponse{}, ctx.Err()
		}
	}
}

// run registers what the journal has, then every change.
func (r *registrar) run(ctx context.Context) error {
	const least, most = 50 * time.Millisecond, 5 * time.Second
	pause := least
	for {
		err := r.register(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			pause = least
			select {
			case <-r.kick:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		r.l.d.log.Warn("endpoints not registered", "err", err, "retry_in", pause)
		var refused *client.StatusError
		if errors.As(err, &refused) {
			// A server that does not know the lease may have been restored.
			r.l.renewNow()
		}
		retry := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-retry.C:
		case <-r.kick: // an attach waits, or the server is heard again
		case <-ctx.Done():
		}
		retry.Stop()
		if ctx.Err() != nil {
			return nil
		}
		pause = min(2*pause, most)
	}
}

// register sends the list once, if the server does not have it.
func (r *registrar) register(ctx context.Context) error {
	r.mu.Lock()
	version, gone := r.want, r.gone
	if version == r.done {
		r.mu.Unlock()
		return nil
	}
	r.gone = nil
	r.mu.Unlock()
	answer, err := r.send(ctx)
	r.mu.Lock()
	if err != nil {
		r.gone = append(gone, r.gone...)
		r.last.err = err
	} else {
		r.done, r.last = version, registered{EndpointsResponse: answer}
	}
	close(r.news)
	r.news = make(chan struct{})
	r.mu.Unlock()
	if err == nil {
		r.l.d.ledger.Gone(gone, answer.Revision)
	}
	return err
}

func (r *registrar) send(ctx context.Context) (api.EndpointsResponse, error) {
	d := r.l.d
	seq, err := d.ledger.NextSequence()
	if err != nil {
		return api.EndpointsResponse{}, err
	}
	list := d.ledger.List()
	req := api.EndpointsRequest{Generation: r.l.lease.Generation, Sequence: seq, Endpoints: make([]api.EndpointRegistration, len(list))}
	for i, e := range list {
		req.Endpoints[i] = api.EndpointRegistration{Container: e.Container, Address: e.Address, App: e.App, Instance: e.Instance, Incarnation: uint64(e.Counter)}
	}
	answer, err := d.client.SetEndpoints(ctx, req)
	if err != nil {
		return api.EndpointsResponse{}, err
	}
	return answer, r.l.settle(answer)
}

// settle takes in what the server said: which app each container is, and which
// apps' slices it will send.
func (l *life) settle(a api.EndpointsResponse) error {
	for container, id := range a.Apps {
		e, ok := l.d.ledger.Get(container)
		if !ok || e.AppID == id {
			continue
		}
		if err := l.d.ledger.SetApp(container, id); err != nil {
			return err
		}
		l.changeApp(container, id)
	}
	for container, why := range a.Refused {
		l.d.log.Warn("the policy server refuses an endpoint", "container", container, "why", why)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	hosted := make(map[policy.AppID]api.Revision, len(l.hosted))
	for _, id := range a.Apps {
		since, was := l.hosted[id]
		if !was || l.hostedAt != a.Epoch {
			since = a.Revision
		}
		hosted[id] = since
	}
	l.hosted, l.hostedAt = hosted, a.Epoch
	return nil
}

// changeApp gives an attached container another app: one that was attached
// before the server said its GUID.
func (l *life) changeApp(container string, id policy.AppID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.attached[container]
	if !ok {
		return
	}
	at.e.AppID = id
	if at.waiting {
		return
	}
	l.names.SetLocal(localInstance(at.e, id))
	l.world.fib.Update(func(b *fib.Builder) {
		if local, _, _ := b.Lookup(at.e.Address); local != nil {
			next := *local
			next.App, next.Tag = id, l.world.tags[id]
			b.PutLocal(next)
		}
	})
	l.path.CutEndpoint(at.e.Address, incarnationUnder(l.lease, at.e))
}

// inForce reports whether the table has everything up to a revision.
func (l *life) inForce(epoch api.Epoch, revision api.Revision) (yes bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.started && l.world.epoch == epoch && l.world.revision >= revision, l.changed
}

// acknowledged reports whether all cells concerned have a revision in force.
func (l *life) acknowledged(epoch api.Epoch, revision api.Revision) (yes bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.world.epoch == epoch && l.world.floor >= revision, l.changed
}

// until waits for a condition that events may bring about.
func until(ctx context.Context, cond func() (bool, <-chan struct{})) bool {
	for {
		yes, changed := cond()
		if yes {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// final reports whether a registration failed for a reason that waiting does
// not mend.
func final(err error) (string, bool) {
	var s *client.StatusError
	if errors.As(err, &s) && s.Code >= http.StatusBadRequest && s.Code < http.StatusInternalServerError {
		return s.Text, true
	}
	return "", false
}
