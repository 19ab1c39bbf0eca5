package uaa

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// How long published keys are used.
const (
	keysFresh = 10 * time.Minute // without asking again, so a key taken back is soon gone
	keysStale = 24 * time.Hour   // while the UAA does not answer; then no token can be checked
	keysPause = 10 * time.Second // between two requests for keys, whatever tokens come
)

var (
	errNoKey = errors.New("uaa publishes no such key")
	errNoUAA = errors.New("uaa's keys are not known")
)

// keyring keeps the UAA's keys. A token that names a key which is not here makes
// it ask again, but at most once a pause: tokens cost nothing to make up.
type keyring struct {
	client *Client
	flight singleflight.Group

	mu     sync.Mutex // guards what follows
	keys   map[string]key
	got    time.Time // when keys were
	asked  time.Time // when they were last asked for
	asking bool      // a request is under way
	failed error     // how the last one went
}

// key is the key of that id. The caller for whose token there is a request waits
// for it, and with it those who lack the same; all others go by what is here.
func (r *keyring) key(ctx context.Context, id string) (key, error) {
	k, ok, ask := r.here(id)
	if !ask {
		return k, r.verdict(id, ok)
	}
	_, err, _ := r.flight.Do("keys", func() (any, error) {
		if !r.begin(id) {
			return nil, nil
		}
		return nil, r.fetch(context.WithoutCancel(ctx))
	})
	if err != nil {
		r.options().Log.Warn("uaa keys cannot be read, the last ones stand", "error", err)
	}
	k, ok, _ = r.here(id)
	return k, r.verdict(id, ok)
}

// here looks the key up, and says whether there is a request to wait for: one
// under way, for a key that is not here, or one that it is time for.
func (r *keyring) here(id string) (k key, ok, ask bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hereLocked(id)
}

func (r *keyring) hereLocked(id string) (k key, ok, ask bool) {
	now := r.options().Now()
	k, ok = r.keys[id]
	ok = ok && now.Sub(r.got) < keysStale
	due := !ok || now.Sub(r.got) >= keysFresh
	rested := r.asked.IsZero() || now.Sub(r.asked) >= keysPause
	return k, ok, due && rested || !ok && r.asking
}

// begin starts a request, unless somebody else's has just ended.
func (r *keyring) begin(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, _, ask := r.hereLocked(id); !ask {
		return false
	}
	r.asked, r.asking = r.options().Now(), true
	return true
}

func (r *keyring) options() *Options { return &r.client.options }

func (r *keyring) verdict(id string, ok bool) error {
	if ok {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed != nil {
		return fmt.Errorf("key %q: %w: %w", id, errNoUAA, r.failed)
	}
	return fmt.Errorf("key %q: %w", id, errNoKey)
}

// fetch replaces the keys by those that are published now.
func (r *keyring) fetch(ctx context.Context) error {
	// Without credentials: they would be answered with keys of the HS family too.
	body, err := r.client.get(ctx, "/token_keys")
	var keys map[string]key
	var unused []error
	if err == nil {
		keys, unused, err = parseKeys(body)
	}
	for _, why := range unused {
		r.options().Log.Warn("uaa publishes a key that is not used", "reason", why)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asking, r.failed = false, err
	if err == nil {
		r.keys, r.got = keys, r.options().Now()
	}
	return err
}
