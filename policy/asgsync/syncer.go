// Package asgsync makes the security groups of a Cloud Controller the store's
// own, and keeps them so: the original's ASG syncer (reference: policy-api, 6).
//
// While a Syncer runs the Cloud Controller is the only source of groups; what
// was stored otherwise goes with the next listing. Run and Sync belong to one
// goroutine. Several servers on one database may each run one: a listing that is
// stored already changes nothing. Nothing is stored of a listing that failed or
// changed while it was read, so agents see the groups of one moment.
package asgsync

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"tulle/policy"
)

// The original's defaults.
const (
	DefaultInterval      = time.Minute
	DefaultRetryDeadline = 5 * time.Minute
	DefaultTimeout       = 30 * time.Second
)

const (
	perPage  = 5000
	maxPages = 1000
	attempts = 3 // to read a listing that does not change meanwhile
)

// tick is more than the time of an update is exact to: a Cloud Controller on MySQL
// keeps whole seconds.
const tick = 2 * time.Second

// ErrUnstable means that the groups changed again and again while they were
// listed.
var ErrUnstable = errors.New("the cloud controller's security groups changed while they were listed")

// Tokens gives the server's own token at the UAA. Safe for concurrent use.
type Tokens interface {
	// Token is one that is good now.
	Token(ctx context.Context) (string, error)
	// Forget drops a token that was refused.
	Forget(token string)
}

// Groups is where the groups are kept: store.SecurityGroupStore.
type Groups interface {
	// ReplaceSecurityGroups makes the list what there is, by one change.
	ReplaceSecurityGroups(ctx context.Context, gs []policy.SecurityGroup) error
}

// Options of a Syncer. Zero durations are the defaults.
type Options struct {
	URL         string       // of the Cloud Controller's API, https://host:port
	HTTP        *http.Client // for it
	InternalURL string       // of its internal API
	Internal    *http.Client // for that: mutual TLS
	Tokens      Tokens
	Groups      Groups

	Interval      time.Duration    // between two looks
	RetryDeadline time.Duration    // a failure that lasts longer is an error in the log
	Timeout       time.Duration    // of a request
	Now           func() time.Time // the clock; time.Now
	Log           *slog.Logger
}

// Syncer follows a Cloud Controller's groups.
type Syncer struct {
	o        Options
	api      client
	internal client

	heard   time.Time // the latest update, as it was told last
	since   time.Time // when it was told first
	seen    time.Time // the latest update that is stored; zero: none
	settled bool      // and no later one can have the same time
	success time.Time // of the last Sync that did not fail, or the start
}

// New makes a syncer; it sends nothing yet.
func New(o Options) *Syncer {
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{{&o.Interval, DefaultInterval}, {&o.RetryDeadline, DefaultRetryDeadline}, {&o.Timeout, DefaultTimeout}} {
		if *d.value <= 0 {
			*d.value = d.fallback
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Syncer{
		o:        o,
		api:      newClient(o.URL, o.HTTP, o.Timeout, o.Tokens),
		internal: newClient(o.InternalURL, o.Internal, o.Timeout, nil), // its certificate says who asks
		success:  o.Now(),
	}
}

// Run syncs at once and at every interval until ctx ends; then it returns nil. A
// failure is tried again at the next interval: the groups that are stored stand.
func (s *Syncer) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		if err := s.Sync(ctx); err != nil && ctx.Err() == nil {
			since := s.o.Now().Sub(s.success)
			level := slog.LevelWarn
			if since > s.o.RetryDeadline {
				level = slog.LevelError
			}
			s.o.Log.Log(ctx, level, "security groups are not synced", "since", since, "error", err)
		}
		timer.Reset(s.o.Interval)
	}
}

// Sync looks once: when the Cloud Controller has had an update since the last
// one stored, or does not say, its groups are listed and stored. So they are once
// more when there can be no second update of the same time any more.
func (s *Syncer) Sync(ctx context.Context) error {
	before, err := s.latestUpdate(ctx)
	if err != nil {
		return err
	}
	if before.known && !s.seen.IsZero() && !before.at.After(s.seen) && s.settled {
		s.success = s.o.Now()
		return nil
	}
	for range attempts {
		if !before.at.Equal(s.heard) {
			s.heard, s.since = before.at, s.o.Now()
		}
		settled := s.o.Now().Sub(s.since) >= tick
		groups, after, err := s.list(ctx, before)
		if errors.Is(err, ErrUnstable) {
			before = after
			continue
		}
		if err != nil {
			return err
		}
		if err := s.o.Groups.ReplaceSecurityGroups(ctx, groups); err != nil {
			return err
		}
		s.seen, s.settled, s.success = after.at, settled, s.o.Now()
		s.o.Log.Info("security groups synced", "groups", len(groups), "latest_update", after.at)
		return nil
	}
	return ErrUnstable
}

// update is the time of the latest update of any group. A Cloud Controller that
// does not know it has none to compare.
type update struct {
	known bool
	at    time.Time
}

func (s *Syncer) latestUpdate(ctx context.Context) (update, error) {
	const path = "/internal/v4/asg_latest_update"
	var answer struct {
		LastUpdate time.Time `json:"last_update"` // RFC 3339
	}
	switch status, err := s.internal.get(ctx, path, &answer); {
	case err != nil:
		return update{}, err
	case status == http.StatusNotFound:
		return update{}, nil
	}
	return update{known: true, at: answer.LastUpdate}, nil
}

// list reads all pages. After each it asks again for the latest update; one that
// is not before makes the listing ErrUnstable, and is returned.
func (s *Syncer) list(ctx context.Context, before update) ([]policy.SecurityGroup, update, error) {
	groups := []policy.SecurityGroup{}
	there := map[string]bool{}
	for n := 1; n <= maxPages; n++ {
		path := fmt.Sprintf("/v3/security_groups?per_page=%d&page=%d", perPage, n)
		var p page
		status, err := s.api.get(ctx, path, &p)
		if err != nil {
			return nil, before, err
		}
		if status != http.StatusOK {
			return nil, before, fmt.Errorf("cloud controller answers %s with %d", path, status)
		}
		for _, r := range p.Resources {
			if r.GUID == "" || there[r.GUID] {
				return nil, before, fmt.Errorf("cloud controller's answer to %s: group %q is without a GUID or there twice", path, r.GUID)
			}
			there[r.GUID] = true
			groups = append(groups, r.group())
		}
		after, err := s.latestUpdate(ctx)
		if err != nil {
			return nil, before, err
		}
		if after.known != before.known || !after.at.Equal(before.at) {
			return nil, after, ErrUnstable
		}
		if p.Pagination.Next == nil || strings.TrimSpace(p.Pagination.Next.Href) == "" {
			return groups, after, nil
		}
	}
	return nil, before, fmt.Errorf("cloud controller lists its security groups on more than %d pages", maxPages)
}
