package uaa

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"tulle/policy/auth"
)

// DefaultTimeout bounds a request to the UAA. The original has no bound: with a
// UAA that accepts and does not answer, its clients wait for ever.
const DefaultTimeout = 5 * time.Second

// maxAnswer is the longest answer that is read, in bytes.
const maxAnswer = 1 << 20

// Options of a client.
type Options struct {
	URL     string        // https://host:port, without a path behind it
	ID      string        // the server's own client at the UAA
	Secret  string        // of that client
	HTTP    *http.Client  // its transport is used, with the roots to trust; nil: the default one
	Timeout time.Duration // of a request; 0: DefaultTimeout
	Now     func() time.Time
	Log     *slog.Logger
}

// Client talks to a UAA. Safe for concurrent use.
type Client struct {
	options Options
	http    http.Client
	flight  singleflight.Group // of the own token

	mu  sync.Mutex // guards own
	own ownToken
}

var _ auth.Authenticator = (*Client)(nil)

// New makes a client; it sends nothing yet.
func New(o Options) *Client {
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.URL = strings.TrimSuffix(o.URL, "/")
	c := &Client{options: o}
	if o.HTTP != nil {
		c.http = *o.HTTP
	}
	c.http.Timeout = o.Timeout
	// A redirect would take the secret elsewhere.
	c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c
}

// statusError is an answer that is no success.
type statusError struct {
	path   string
	status int
}

func (e *statusError) Error() string { return fmt.Sprintf("uaa answers %s with %d", e.path, e.status) }

// get reads what anybody may read.
func (c *Client) get(ctx context.Context, path string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.options.URL+path, nil)
	if err != nil {
		return nil, err
	}
	return c.do(r, path)
}

// post sends a form as the server's own client.
func (c *Client) post(ctx context.Context, path, form string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.options.URL+path, strings.NewReader(form))
	if err != nil {
		return nil, err
	}
	r.SetBasicAuth(c.options.ID, c.options.Secret)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return c.do(r, path)
}

// do returns the body of a 200; everything else is an error.
func (c *Client) do(r *http.Request, path string) ([]byte, error) {
	r.Header.Set("Accept", "application/json")
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	switch {
	case answer.StatusCode != http.StatusOK:
		return nil, &statusError{path, answer.StatusCode}
	case err != nil:
		return nil, fmt.Errorf("read uaa's answer to %s: %w", path, err)
	case len(body) > maxAnswer:
		return nil, fmt.Errorf("uaa's answer to %s is longer than %d bytes", path, maxAnswer)
	}
	return body, nil
}

// Authenticate asks the UAA about the token.
func (c *Client) Authenticate(ctx context.Context, token string) (auth.Identity, error) {
	if token == "" {
		return auth.Identity{}, fmt.Errorf("%w: it is empty", auth.ErrUnknownToken)
	}
	// A token needs no escaping; what does is none, and may add no field here.
	body, err := c.post(ctx, "/check_token", "token="+url.QueryEscape(token))
	var status *statusError
	switch {
	case errors.As(err, &status) && status.status == http.StatusBadRequest:
		return auth.Identity{}, fmt.Errorf("%w: %w", auth.ErrUnknownToken, err)
	case err != nil:
		return auth.Identity{}, fmt.Errorf("check token: %w", err)
	}
	return decodeChecked(body)
}

// subject is what both a check_token answer and a token say of their owner.
type subject struct {
	Subject  string       `json:"sub"`
	UserName string       `json:"user_name"`
	Scopes   []auth.Scope `json:"scope"`
}

// identity is named after the user, or, for a client's own token, after the
// subject; as the original does in whoami.
func (s subject) identity() (auth.Identity, error) {
	if s.Subject == "" {
		return auth.Identity{}, errors.New("no subject is named")
	}
	i := auth.Identity{Name: s.UserName, Subject: s.Subject, Scopes: s.Scopes}
	if i.Name == "" {
		i.Name = s.Subject
	}
	return i, nil
}

// decodeChecked reads the answer of check_token.
func decodeChecked(body []byte) (auth.Identity, error) {
	var s subject
	err := json.Unmarshal(body, &s)
	if err == nil {
		var i auth.Identity
		if i, err = s.identity(); err == nil {
			return i, nil
		}
	}
	return auth.Identity{}, fmt.Errorf("uaa's answer to /check_token: %w", err)
}
