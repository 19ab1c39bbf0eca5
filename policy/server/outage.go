package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"tulle/policy/hub"
	"tulle/policy/store"
)

// Times of the watch over the database.
const (
	pingEvery   = 2 * time.Second
	pingAway    = 250 * time.Millisecond // while it is away
	pingLimit   = 5 * time.Second        // a database that takes longer is away
	warnEvery   = 10 * time.Second       // reads that fail one by one are told at most so often
	refreshIdle = 30 * time.Second       // what is no part of a revision is read again
)

// steadyStore goes on through an outage of the database: reads are answered from
// what this server has in memory, writes are refused with store.ErrAway. It finds
// out by a ping of its own whether the database is there, so that a request waits
// for a database that says nothing no longer than the ping does, and nobody waits
// once it is known to be away. When it is back, all goes on by itself.
type steadyStore struct {
	store.Store
	hub    *hub.Hub
	memory memory
	log    *slog.Logger

	suspect chan struct{} // capacity 1: somebody met an error, look at once

	mu       sync.Mutex      // guards what follows
	up       context.Context // ends when the database goes away; nil: it is away
	end      context.CancelFunc
	warned   time.Time
	tagsTold bool
}

func newSteady(s store.Store, h *hub.Hub, refresh time.Duration, log *slog.Logger) *steadyStore {
	st := &steadyStore{Store: s, hub: h, memory: memory{rest: refresh}, log: log, suspect: make(chan struct{}, 1)}
	st.up, st.end = context.WithCancel(context.Background())
	return st
}

// run watches over the database, and keeps the memory fresh, until ctx ends.
func (s *steadyStore) run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { s.memory.follow(ctx, s) })
	wg.Go(func() { s.watch(ctx) })
	wg.Wait()
}

func (s *steadyStore) watch(ctx context.Context) {
	timer := time.NewTimer(pingEvery)
	defer timer.Stop()
	var since time.Time // zero: it is there
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.suspect:
		case <-timer.C:
		}
		limited, cancel := context.WithTimeout(ctx, pingLimit)
		err := s.Store.Ping(limited)
		cancel()
		if ctx.Err() != nil {
			return
		}
		next := pingEvery
		switch {
		case err != nil:
			next = pingAway
			if since.IsZero() {
				since = time.Now()
				s.log.Error("the database does not answer: reads go on from memory, writes are refused until it is back", "error", err)
				s.setAway()
			}
		case !since.IsZero():
			s.log.Info("the database is back", "after", time.Since(since).Round(time.Millisecond))
			since = time.Time{}
			s.setUp()
		}
		timer.Reset(next)
	}
}

func (s *steadyStore) setAway() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end()
	s.up = nil
}

func (s *steadyStore) setUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.up, s.end = context.WithCancel(context.Background())
}

// enter is ctx for one operation, which also ends when the database goes away;
// ok is false while it is away. leave must be called after the operation.
func (s *steadyStore) enter(ctx context.Context) (inner context.Context, leave func(), ok bool) {
	s.mu.Lock()
	up := s.up
	s.mu.Unlock()
	if up == nil {
		return nil, nil, false
	}
	inner, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(up, cancel)
	return inner, func() { stop(); cancel() }, true
}

// look has the watch look at the database at once.
func (s *steadyStore) look() {
	select {
	case s.suspect <- struct{}{}:
	default:
	}
}

// requests are the errors by which a store refuses a request; all others are the
// database's own.
var requests = []error{store.ErrConflict, store.ErrNotFound, store.ErrNoLease, store.ErrCompacted, store.ErrTagsExhausted,
	store.ErrLeaseMismatch, store.ErrNotInPool, store.ErrSubnetTaken, store.ErrNotYours, store.ErrRevoked}

// failed reports whether err is the database's fault, not the request's.
func failed(ctx context.Context, err error) bool {
	if err == nil || ctx.Err() != nil { // whoever asked has gone
		return false
	}
	for _, target := range requests {
		if errors.Is(err, target) {
			return false
		}
	}
	return true
}

// unavailable reports whether err says that the database cannot serve now: what
// is asked may well succeed later.
func unavailable(err error) bool {
	return errors.Is(err, store.ErrAway) || errors.Is(err, store.ErrFull) || errors.Is(err, store.ErrCorrupt)
}

// read asks the database, and where it fails, the memory.
func read[T any](ctx context.Context, s *steadyStore, ask func(context.Context) (T, error), recall func() (T, bool)) (T, error) {
	cause := store.ErrAway
	if inner, leave, ok := s.enter(ctx); ok {
		v, err := ask(inner)
		leave()
		if !failed(ctx, err) {
			return v, err
		}
		s.look()
		s.warn(err)
		cause = err
	}
	v, ok := recall()
	if !ok {
		return v, cause
	}
	return v, nil
}

// warn tells of reads that fail while the database seems to be there: damage, for
// one. Once it is away the watch has told.
func (s *steadyStore) warn(err error) {
	s.mu.Lock()
	quiet := s.up == nil || time.Since(s.warned) < warnEvery
	if !quiet {
		s.warned = time.Now()
	}
	s.mu.Unlock()
	if !quiet {
		s.log.Error("the database cannot be read, answering from memory", "error", err)
	}
}

// alter has the database store something, unless it is away. A write that the
// outage interrupts may or may not be stored, as with any error of a commit.
func alter[T any](ctx context.Context, s *steadyStore, change func(context.Context) (T, error)) (v T, err error) {
	inner, leave, ok := s.enter(ctx)
	if !ok {
		return v, store.ErrAway
	}
	defer leave()
	v, err = change(inner)
	switch {
	case err == nil || ctx.Err() != nil:
	case inner.Err() != nil:
		err = fmt.Errorf("%w: %w", store.ErrAway, err)
	case errors.Is(err, store.ErrAway):
		s.look()
	}
	return v, err
}

// changing is alter for writes that answer nothing.
func changing(ctx context.Context, s *steadyStore, change func(context.Context) error) error {
	_, err := alter(ctx, s, func(ctx context.Context) (struct{}, error) { return struct{}{}, change(ctx) })
	return err
}
