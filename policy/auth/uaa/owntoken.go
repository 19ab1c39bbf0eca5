package uaa

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// A token is given up before it expires, so that it is still good when it
// arrives: at half its life, or a minute before the end if that is later.
const renewBefore = time.Minute

// longest is how long a token is kept, whatever life it is said to have.
const longest = 12 * time.Hour

// ownToken is the server's own token. renew is when it is asked for again.
type ownToken struct {
	text   string
	scopes []string
	renew  time.Time
}

// Token is the server's own token, by its client's credentials; kept until
// shortly before it expires. Callers at the same time share one request.
func (c *Client) Token(ctx context.Context) (string, error) {
	t, err := c.ownToken(ctx)
	return t.text, err
}

// Scopes are what the server's own client may do; nil where the UAA does not say.
func (c *Client) Scopes(ctx context.Context) ([]string, error) {
	t, err := c.ownToken(ctx)
	return t.scopes, err
}

// Forget drops the token, which somebody refused to take, so that the next one
// asked for is new.
func (c *Client) Forget(token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.own.text == token {
		c.own = ownToken{}
	}
}

func (c *Client) ownToken(ctx context.Context) (ownToken, error) {
	if t, ok := c.kept(); ok {
		return t, nil
	}
	// The request is of all who wait; it ends by its own time limit, not with
	// the one of them who was first.
	got, err, _ := c.flight.Do("token", func() (any, error) {
		if t, ok := c.kept(); ok {
			return t, nil
		}
		return c.newToken(context.WithoutCancel(ctx))
	})
	if err != nil {
		return ownToken{}, fmt.Errorf("the server's own token: %w", err)
	}
	return got.(ownToken), nil
}

func (c *Client) kept() (ownToken, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.own, c.own.text != "" && c.options.Now().Before(c.own.renew)
}

func (c *Client) newToken(ctx context.Context) (ownToken, error) {
	asked := c.options.Now()
	body, err := c.post(ctx, "/oauth/token", "client_id="+url.QueryEscape(c.options.ID)+"&grant_type=client_credentials")
	if err != nil {
		return ownToken{}, err
	}
	t, life, err := decodeToken(body)
	if err != nil {
		return ownToken{}, err
	}
	t.renew = asked.Add(life - min(renewBefore, life/2))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.own = t
	return t, nil
}

// decodeToken reads the answer of /oauth/token (RFC 6749 5.1).
func decodeToken(body []byte) (ownToken, time.Duration, error) {
	var a struct {
		Token     string `json:"access_token"`
		ExpiresIn int64  `json:"expires_in"` // seconds
		Scope     string `json:"scope"`      // separated by spaces
	}
	err := json.Unmarshal(body, &a)
	if err == nil && (a.Token == "" || strings.ContainsFunc(a.Token, func(r rune) bool { return r <= ' ' || r >= 0x7f })) {
		err = errors.New("it holds no token")
	}
	if err != nil {
		return ownToken{}, 0, fmt.Errorf("uaa's answer to /oauth/token: %w", err)
	}
	life := time.Duration(min(max(a.ExpiresIn, 0), int64(longest/time.Second))) * time.Second
	t := ownToken{text: a.Token}
	if a.Scope != "" {
		t.scopes = strings.Fields(a.Scope)
	}
	return t, life, nil
}
