package cli

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"tulle/policy/api"
)

const (
	maxAnswer = 256 << 20 // a million policies fit
	tries     = 3
)

// client speaks the policy server's external API.
type client struct {
	base  string
	token string
	from  string // where the token is from
	http  *http.Client
}

// client is made from flags and environment.
func (p *program) client() (*client, error) {
	base := first(p.server, p.env(envServer), defaultServer)
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("server %q: must be a URL such as https://policy.example:4002", base)
	}
	c := &client{base: strings.TrimSuffix(base, "/"), http: &http.Client{Timeout: time.Minute}}
	if c.token, c.from, err = p.token(); err != nil {
		return nil, err
	}
	if file := first(p.ca, p.env(envCA)); file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read the server's CA: %w", err)
		}
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read the server's CA: %s holds no certificate", file)
		}
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
		c.http.Transport = t
	}
	return c, nil
}

// token is the flag's, else the environment's, and from says where it is from.
func (p *program) token() (token, from string, err error) {
	file := p.tokenFile
	if file == "" {
		if t := p.env(envToken); t != "" {
			return t, envToken, nil
		}
		if file = p.env(envTokenFile); file == "" {
			return "", "", fmt.Errorf("no token: name its file with --token-file or %s, or put it into %s", envTokenFile, envToken)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", "", fmt.Errorf("read the token: %w", err)
	}
	t := strings.TrimSpace(string(b))
	if t == "" || strings.ContainsAny(t, "\r\n") {
		return "", "", fmt.Errorf("read the token: %s must hold one line", file)
	}
	return t, file, nil
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// get asks for path, with {version} v1, and reads the answer into into.
func (c *client) get(ctx context.Context, path string, query url.Values, into any) error {
	path = v1(path)
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return c.do(ctx, http.MethodGet, path, nil, into)
}

// post sends policies to path; an answer without an error is all there is.
func (c *client) post(ctx context.Context, path string, body api.Policies) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodPost, v1(path), b, nil)
}

func v1(path string) string { return strings.Replace(path, "{version}", string(api.V1), 1) }

// do tries again, as the cf CLI does, where the transport broke or the server
// did: every request of this API may be sent twice.
func (c *client) do(ctx context.Context, method, path string, body []byte, into any) (err error) {
	for range tries {
		var again bool
		if again, err = c.try(ctx, method, path, body, into); !again || ctx.Err() != nil {
			break
		}
	}
	return err
}

func (c *client) try(ctx context.Context, method, path string, body []byte, into any) (again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Authorization", "Bearer "+c.token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // the URL is told once
		}
		return true, fmt.Errorf("ask the policy server at %s: %w", c.base, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return true, fmt.Errorf("read the answer of the policy server at %s: %w", c.base, err)
	}
	if len(answer) > maxAnswer {
		return false, fmt.Errorf("the answer of the policy server at %s is longer than %d bytes", c.base, maxAnswer)
	}
	if resp.StatusCode >= 400 {
		err := refused(resp, answer)
		if resp.StatusCode == http.StatusUnauthorized {
			// The text is the original's, also where there is no UAA.
			err.text += fmt.Sprintf("\n%s does not take the token of %s: it is another server's, was removed or has expired", c.base, c.from)
		}
		return retriable(resp.StatusCode), err
	}
	if into == nil {
		return false, nil
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return false, fmt.Errorf("the answer to %s of %s is not the policy server's: %w", path, c.base, err)
	}
	return false, nil
}

// retriable statuses are the server's own faults, but for those that a gateway
// in between made.
func retriable(status int) bool {
	switch status {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return false
	}
	return status >= 500
}

// statusError is an answer that is an error.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return e.text }

// refused is the error for a status: the server's text where the status is one
// of those it gives to people, else all there is to know.
func refused(resp *http.Response, body []byte) *statusError {
	text, ok := api.ParseError(body)
	if !ok {
		text = strings.TrimSpace(string(body))
	}
	switch resp.StatusCode {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden,
		http.StatusNotFound, http.StatusNotAcceptable, http.StatusConflict:
		if ok {
			return &statusError{resp.StatusCode, text}
		}
	}
	lines := []string{"Unexpected Response", fmt.Sprintf("Response code: %d", resp.StatusCode)}
	for _, id := range resp.Header.Values("X-Vcap-Request-Id") {
		lines = append(lines, "Request ID: "+id)
	}
	return &statusError{resp.StatusCode, strings.Join(append(lines, "Description: "+text), "\n")}
}

// user is the name of the token. Only an admin may ask for it; any other is
// told by its right.
func (c *client) user(ctx context.Context) (string, error) {
	var me api.Whoami
	err := c.get(ctx, api.PathWhoami, nil, &me)
	var refusal *statusError
	if errors.As(err, &refusal) && refusal.status == http.StatusForbidden {
		return "network.write", nil
	}
	return me.Subject, err
}
