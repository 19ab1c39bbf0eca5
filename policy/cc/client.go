package cc

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// DefaultTimeout bounds a request to the Cloud Controller.
const DefaultTimeout = 10 * time.Second

const (
	maxAnswer = 32 << 20 // bytes of a page that are read
	maxPages  = 1000     // of one list
)

// Tokens gives the server's own token; uaa.Client does. Safe for concurrent use.
type Tokens interface {
	// Token is one that is good now.
	Token(ctx context.Context) (string, error)
	// Scopes are what it is good for; nil: nobody said.
	Scopes(ctx context.Context) ([]string, error)
	// Forget drops a token that was refused.
	Forget(token string)
}

// Options of a client.
type Options struct {
	URL     string // https://host:port, without a path behind it
	Tokens  Tokens
	HTTP    *http.Client  // its transport is used, with the roots to trust; nil: the default one
	Timeout time.Duration // of a request; 0: DefaultTimeout
}

// Client talks to a Cloud Controller. Safe for concurrent use.
type Client struct {
	url    string
	tokens Tokens
	http   http.Client
}

// New makes a client; it sends nothing yet.
func New(o Options) *Client {
	c := &Client{url: strings.TrimSuffix(o.URL, "/"), tokens: o.Tokens}
	if o.HTTP != nil {
		c.http = *o.HTTP
	}
	c.http.Timeout = o.Timeout
	if o.Timeout <= 0 {
		c.http.Timeout = DefaultTimeout
	}
	// A redirect would take the token elsewhere.
	c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c
}

// get reads one page. A token that is refused, since it was taken back or its
// key replaced, is tried again with a new one, once.
func (c *Client) get(ctx context.Context, path string, query url.Values) ([]byte, error) {
	for again := false; ; again = true {
		token, err := c.tokens.Token(ctx)
		if err != nil {
			return nil, err
		}
		body, status, err := c.send(ctx, path, query, token)
		switch {
		case err != nil:
			return nil, err
		case status == http.StatusUnauthorized && !again:
			c.tokens.Forget(token)
		case status != http.StatusOK:
			return nil, fmt.Errorf("cloud controller answers %s with %d", path, status)
		case len(body) > maxAnswer:
			return nil, fmt.Errorf("cloud controller's answer to %s is longer than %d bytes", path, maxAnswer)
		default:
			return body, nil
		}
	}
}

func (c *Client) send(ctx context.Context, path string, query url.Values, token string) (body []byte, status int, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+path+"?"+query.Encode(), nil)
	if err != nil {
		return nil, 0, err
	}
	r.Header.Set("Authorization", "bearer "+token)
	r.Header.Set("Accept", "application/json")
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, 0, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, answer.StatusCode, nil
	}
	if body, err = io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1)); err != nil {
		return nil, 0, fmt.Errorf("read cloud controller's answer to %s: %w", path, err)
	}
	return body, answer.StatusCode, nil
}

// list calls add with each resource of a list, page by page.
func list[T any](ctx context.Context, c *Client, path string, query url.Values, add func(T) error) error {
	for range maxPages {
		body, err := c.get(ctx, path, query)
		if err != nil {
			return err
		}
		resources, next, err := decodePage[T](body)
		if err != nil {
			return fmt.Errorf("cloud controller's answer to %s: %w", path, err)
		}
		for _, r := range resources {
			if err := add(r); err != nil {
				return fmt.Errorf("cloud controller's answer to %s: %w", path, err)
			}
		}
		if next == nil {
			return nil
		}
		if next.Encode() == query.Encode() {
			return fmt.Errorf("cloud controller's answer to %s is followed by itself", path)
		}
		query = next
	}
	return fmt.Errorf("cloud controller's answer to %s has more than %d pages", path, maxPages)
}
