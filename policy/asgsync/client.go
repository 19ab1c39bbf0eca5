package asgsync

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"tulle/policy"
)

// maxAnswer is how much of an answer is read, in bytes.
const maxAnswer = 64 << 20

// client is one API of the Cloud Controller.
type client struct {
	url    string
	http   http.Client
	tokens Tokens // nil: none is sent
}

func newClient(url string, h *http.Client, timeout time.Duration, tokens Tokens) client {
	c := client{url: strings.TrimSuffix(url, "/"), tokens: tokens}
	if h != nil {
		c.http = *h
	}
	c.http.Timeout = timeout
	// A redirect would take the token elsewhere.
	c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c
}

// get reads an answer of status 200 into what is given; 404 is the caller's to
// judge, any other status an error. A token that is refused is tried again with
// a new one, once.
func (c *client) get(ctx context.Context, path string, into any) (status int, err error) {
	for again := false; ; again = true {
		var token string
		if c.tokens != nil {
			if token, err = c.tokens.Token(ctx); err != nil {
				return 0, fmt.Errorf("token for the cloud controller: %w", err)
			}
		}
		status, err = c.send(ctx, path, token, into)
		switch {
		case err != nil, status == http.StatusOK, status == http.StatusNotFound:
			return status, err
		case status == http.StatusUnauthorized && c.tokens != nil && !again:
			c.tokens.Forget(token)
		default:
			return status, fmt.Errorf("cloud controller answers %s with %d", path, status)
		}
	}
}

func (c *client) send(ctx context.Context, path, token string, into any) (status int, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+path, nil)
	if err != nil {
		return 0, err
	}
	if token != "" {
		r.Header.Set("Authorization", "bearer "+token)
	}
	r.Header.Set("Accept", "application/json")
	answer, err := c.http.Do(r)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return answer.StatusCode, nil
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	switch {
	case err != nil:
		return 0, fmt.Errorf("read cloud controller's answer to %s: %w", path, err)
	case len(body) > maxAnswer:
		return 0, fmt.Errorf("cloud controller's answer to %s is longer than %d bytes", path, maxAnswer)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return 0, fmt.Errorf("cloud controller's answer to %s: %w", path, err)
	}
	return answer.StatusCode, nil
}

// page is one of GET /v3/security_groups. What may be null is a pointer, or a
// value that null leaves at zero.
type page struct {
	Pagination struct {
		Next *struct {
			Href string `json:"href"`
		} `json:"next"`
	} `json:"pagination"`
	Resources []resource `json:"resources"`
}

type resource struct {
	GUID            string `json:"guid"`
	Name            string `json:"name"`
	GloballyEnabled struct {
		Running bool `json:"running"`
		Staging bool `json:"staging"`
	} `json:"globally_enabled"`
	Rules         []policy.SecurityRule `json:"rules"`
	Relationships struct {
		RunningSpaces relationship `json:"running_spaces"`
		StagingSpaces relationship `json:"staging_spaces"`
	} `json:"relationships"`
}

type relationship struct {
	Data []struct {
		GUID string `json:"guid"`
	} `json:"data"`
}

func (r relationship) guids() []string {
	var guids []string
	for _, d := range r.Data {
		guids = append(guids, d.GUID)
	}
	return guids
}

// group takes the rules as they are: the Cloud Controller has checked them, and
// may know more than this program does.
func (r resource) group() policy.SecurityGroup {
	return policy.SecurityGroup{
		GUID: r.GUID, Name: r.Name, Rules: r.Rules,
		StagingDefault: r.GloballyEnabled.Staging, RunningDefault: r.GloballyEnabled.Running,
		StagingSpaces: r.Relationships.StagingSpaces.guids(), RunningSpaces: r.Relationships.RunningSpaces.guids(),
	}
}
