package uaa_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tulle/policy/auth"
	"tulle/policy/auth/uaa"
	"tulle/policy/auth/uaa/uaatest"
)

// clock is the time, and what a test adds to it.
type clock struct{ added atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.added.Load())) }
func (c *clock) advance(d time.Duration) { c.added.Add(int64(d)) }

// rig is a UAA and a client of it.
type rig struct {
	*uaatest.UAA
	client *uaa.Client
	clock  clock
}

func start(t *testing.T, change ...func(*uaa.Options)) *rig {
	r := &rig{UAA: uaatest.New(t)}
	o := uaa.Options{URL: r.URL, ID: uaatest.ClientID, Secret: uaatest.ClientSecret, HTTP: r.HTTP(), Now: r.clock.now}
	for _, f := range change {
		f(&o)
	}
	r.client = uaa.New(o)
	return r
}

func impatient(o *uaa.Options) { o.Timeout = time.Second }

func TestCheckToken(t *testing.T) {
	r := start(t)
	user := r.User("alice", "guid-alice", "network.write", "cloud_controller.read")
	client := r.Claims("", "scaler", "network.admin")
	delete(client, "user_name")
	expired := r.Claims("alice", "guid-alice", "network.admin")
	expired["exp"] = time.Now().Add(-time.Second).Unix()
	revoked := r.User("alice", "guid-alice", "network.admin")
	r.Revoke(revoked)
	opaque := r.Opaque(r.Claims("bob", "guid-bob", "network.admin"))
	for _, c := range []struct {
		name, token string
		want        auth.Identity
		err         error
	}{
		{"user", user, auth.Identity{Name: "alice", Subject: "guid-alice", Scopes: []auth.Scope{auth.Write, "cloud_controller.read"}}, nil},
		{"client without a user", r.Token(client), auth.Identity{Name: "scaler", Subject: "scaler", Scopes: []auth.Scope{auth.Admin}}, nil},
		{"opaque", opaque, auth.Identity{Name: "bob", Subject: "guid-bob", Scopes: []auth.Scope{auth.Admin}}, nil},
		{"expired", r.Token(expired), auth.Identity{}, auth.ErrUnknownToken},
		{"taken back", revoked, auth.Identity{}, auth.ErrUnknownToken},
		{"none", "", auth.Identity{}, auth.ErrUnknownToken},
		{"nonsense", "nonsense", auth.Identity{}, auth.ErrUnknownToken},
		{"one that brings a field along", "x&token=" + user, auth.Identity{}, auth.ErrUnknownToken},
	} {
		got, err := r.client.Authenticate(t.Context(), c.token)
		if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
			t.Errorf("%s: error %v, want %v", c.name, err, c.err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
	if got, want := r.Requests("/check_token")[0], "POST token="+user; got != want {
		t.Errorf("the request was %q, want %q", got, want)
	}
}

func TestCheckTokenWithAWrongSecret(t *testing.T) {
	r := start(t, func(o *uaa.Options) { o.Secret = "guessed" })
	_, err := r.client.Authenticate(t.Context(), r.User("alice", "a", "network.admin"))
	if err == nil || errors.Is(err, auth.ErrUnknownToken) || !strings.Contains(err.Error(), "/check_token with 401") {
		t.Errorf("got %v", err)
	}
}

// TestOutages: a UAA that does not answer well is an error, in time, and no
// verdict on the token; when it is back, so are its answers.
func TestOutages(t *testing.T) {
	r := start(t, impatient)
	token := r.User("alice", "a", "network.admin")
	for name, mood := range map[string]uaatest.Mood{"failing": uaatest.Failing, "garbage": uaatest.Garbage, "slow": uaatest.Slow, "down": uaatest.Down, "halfway": uaatest.Halfway} {
		t.Run(name, func(t *testing.T) {
			r.Be(mood)
			for what, ask := range map[string]func() error{
				"check":     func() error { _, err := r.client.Authenticate(t.Context(), token); return err },
				"own token": func() error { _, err := r.client.Token(t.Context()); return err },
			} {
				begun := time.Now()
				err := ask()
				if err == nil || errors.Is(err, auth.ErrUnknownToken) {
					t.Errorf("%s: got %v", what, err)
				}
				if err != nil && (strings.Contains(err.Error(), token) || strings.Contains(err.Error(), uaatest.ClientSecret)) {
					t.Errorf("%s: the error tells a secret: %v", what, err)
				}
				if took := time.Since(begun); took > 5*time.Second {
					t.Errorf("%s: took %v with a limit of a second", what, took)
				}
			}
		})
	}
	r.Be(uaatest.Well)
	if _, err := r.client.Authenticate(t.Context(), token); err != nil {
		t.Errorf("after the outages: %v", err)
	}
}

func TestOwnToken(t *testing.T) {
	r := start(t)
	r.GiveOwn(10*time.Minute, "uaa.resource cloud_controller.admin_read_only")
	get := func() string {
		t.Helper()
		text, err := r.client.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := r.client.Token(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	first := get()
	r.clock.advance(8 * time.Minute)
	if again := get(); again != first || len(r.Requests("/oauth/token")) != 1 {
		t.Errorf("a good token is asked for again: %d requests", len(r.Requests("/oauth/token")))
	}
	if got, want := r.Requests("/oauth/token")[0], "POST client_id=network-policy&grant_type=client_credentials"; got != want {
		t.Errorf("the request was %q, want %q", got, want)
	}
	if scopes, err := r.client.Scopes(t.Context()); err != nil || !cmp.Equal(scopes, []string{"uaa.resource", "cloud_controller.admin_read_only"}) {
		t.Errorf("scopes %q, %v", scopes, err)
	}
	r.clock.advance(65 * time.Second) // less than a minute before the end
	second := get()
	if second == first {
		t.Error("a token near its end is kept")
	}
	r.client.Forget(first) // not the one it has
	if get() != second {
		t.Error("another token's refusal drops this one")
	}
	r.client.Forget(second)
	if get() == second {
		t.Error("a refused token is kept")
	}
	if n := len(r.Requests("/oauth/token")); n != 3 {
		t.Errorf("%d requests, want 3", n)
	}
}

// TestOwnTokenWithoutALifetime: what may be over at once is not kept.
func TestOwnTokenWithoutALifetime(t *testing.T) {
	r := start(t)
	r.GiveOwn(0, "")
	for range 2 {
		if _, err := r.client.Token(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(r.Requests("/oauth/token")); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
	if scopes, err := r.client.Scopes(t.Context()); err != nil || scopes != nil {
		t.Errorf("scopes that nobody told: %q, %v", scopes, err)
	}
}
