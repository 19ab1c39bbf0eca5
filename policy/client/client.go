package client

import (
	"bytes"
	"context"
	"crypto/tls"
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

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/ca"
)

// Options of New. Either Credentials or TLS with Cell is needed; zero values of
// the others are the defaults.
type Options struct {
	Server      string      // https://host:port of the internal API
	Credentials string      // directory with cell.pem, cell-key.pem, server-ca.pem
	TLS         *tls.Config // instead of Credentials
	Cell        string      // the cell's name, where TLS is given

	RequestTimeout time.Duration // of everything but the stream; 10 s
	Silence        time.Duration // a stream without a line for so long is dead; 20 s
	AckEvery       time.Duration // sign of life without news; 10 s
	BackoffMin     time.Duration // before the first reconnect; 50 ms
	BackoffMax     time.Duration // 5 s
	Log            *slog.Logger
}

// Client speaks for one cell. Safe for concurrent use.
type Client struct {
	opt  Options
	base string

	mu      sync.Mutex // guards what follows
	http    *http.Client
	stream  context.CancelCauseFunc // ends the stream that is open; nil: none is
	status  Status
	changed chan struct{} // closed and replaced when status.Connected changes
}

// StatusError is an answer of the server that is not a success.
type StatusError struct {
	Code int    // HTTP status
	Text string // the server's words
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("policy server: %s (status %d)", e.Text, e.Code)
}

// pingAfter is how long a connection may be quiet before it is probed, and how
// long the answer may take.
const pingAfter = 5 * time.Second

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 64 << 20

// New reads the credentials and makes a client. It does not connect yet.
func New(opt Options) (*Client, error) {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&opt.RequestTimeout, 10*time.Second)
	def(&opt.Silence, 20*time.Second)
	def(&opt.AckEvery, 10*time.Second)
	def(&opt.BackoffMin, 50*time.Millisecond)
	def(&opt.BackoffMax, 5*time.Second)
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	u, err := url.Parse(opt.Server)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("policy server %q: expected https://host:port", opt.Server)
	}
	if opt.TLS == nil {
		conf, peer, err := ca.CellTLS(opt.Credentials)
		if err != nil {
			return nil, err
		}
		opt.TLS, opt.Cell = conf, peer.Name
	}
	if err := ca.CheckCellName(opt.Cell); err != nil {
		return nil, err
	}
	c := &Client{opt: opt, changed: make(chan struct{}), base: "https://" + u.Host + strings.TrimSuffix(u.Path, "/")}
	c.http = c.newHTTP()
	return c, nil
}

func (c *Client) newHTTP() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:     c.opt.TLS.Clone(),
			ForceAttemptHTTP2:   true,
			TLSHandshakeTimeout: c.opt.RequestTimeout,
			IdleConnTimeout:     time.Minute,
			// A connection whose other end is gone without a word is given up,
			// and the next request makes a new one.
			HTTP2: &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingAfter},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("the policy server never redirects")
		},
	}
}

// client is the one whose connection has the present credential.
func (c *Client) client() *http.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.http
}

// Cell is the name in the credential.
func (c *Client) Cell() string { return c.opt.Cell }

// Close drops idle connections. End Watch's context first.
func (c *Client) Close() { c.client().CloseIdleConnections() }

// Lease asks for the cell's share of the overlay, or renews it.
func (c *Client) Lease(ctx context.Context, r api.LeaseRequest) (api.Lease, error) {
	var lease api.Lease
	if err := c.do(ctx, http.MethodPut, api.PathLease, r, &lease); err != nil {
		return api.Lease{}, fmt.Errorf("lease: %w", err)
	}
	return lease, nil
}

// Release gives the lease back.
func (c *Client) Release(ctx context.Context) error {
	if err := c.do(ctx, http.MethodDelete, api.PathLease, nil, nil); err != nil {
		return fmt.Errorf("release lease: %w", err)
	}
	return nil
}

// SetEndpoints replaces the cell's list of endpoints.
func (c *Client) SetEndpoints(ctx context.Context, r api.EndpointsRequest) (api.EndpointsResponse, error) {
	var answer api.EndpointsResponse
	if err := c.do(ctx, http.MethodPut, api.PathEndpoints, r, &answer); err != nil {
		return api.EndpointsResponse{}, fmt.Errorf("register endpoints: %w", err)
	}
	return answer, nil
}

// PutSecrets offers secrets to peers, and says which of theirs were taken up.
func (c *Client) PutSecrets(ctx context.Context, r api.SecretsRequest) error {
	if err := c.do(ctx, http.MethodPut, api.PathSecrets, r, nil); err != nil {
		return fmt.Errorf("secrets of pairs: %w", err)
	}
	return nil
}

// Certificate has the server sign for one of the cell's endpoints.
func (c *Client) Certificate(ctx context.Context, r api.CertificateRequest) (api.Certificate, error) {
	var answer api.Certificate
	if err := c.do(ctx, http.MethodPost, api.PathCertificates, r, &answer); err != nil {
		return api.Certificate{}, fmt.Errorf("certificate of %s: %w", r.Container, err)
	}
	return answer, nil
}

// Trust is what containers trust each other's certificates by.
func (c *Client) Trust(ctx context.Context) (api.Trust, error) {
	var answer api.Trust
	if err := c.do(ctx, http.MethodGet, api.PathTrust, nil, &answer); err != nil {
		return api.Trust{}, fmt.Errorf("trust of containers: %w", err)
	}
	return answer, nil
}

// AppName asks who an app is that concerns the cell; see api.PathAppName.
func (c *Client) AppName(ctx context.Context, app policy.AppID) (api.AppName, error) {
	var answer api.AppName
	if err := c.do(ctx, http.MethodGet, strings.ReplaceAll(api.PathAppName, "{guid}", url.PathEscape(string(app))), nil, &answer); err != nil {
		return api.AppName{}, fmt.Errorf("name of app %s: %w", app, err)
	}
	return answer, nil
}

// ack tells what is in force on the cell.
func (c *Client) ack(ctx context.Context, a api.Ack) error {
	if err := c.do(ctx, http.MethodPost, api.PathAck, a, nil); err != nil {
		return fmt.Errorf("acknowledge revision %d: %w", a.Revision, err)
	}
	return nil
}

// do sends one request with a JSON body and reads a JSON answer into out, where
// they are not nil.
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, c.opt.RequestTimeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	path = strings.Replace(path, "{name}", url.PathEscape(c.opt.Cell), 1)
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.client().Do(req)
	if err != nil {
		return c.explain(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return statusError(resp)
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	return nil
}

// explain names an expired credential where a request got no answer. The server's
// alert may come too late to be read: then all that is seen is a broken pipe.
func (c *Client) explain(err error) error {
	if _, ends, unread := ca.CellLife(c.opt.Credentials); unread == nil && !time.Now().Before(ends) {
		return fmt.Errorf("%w; the credential in %s expired on %s: get another, tulle-celld join", err, c.opt.Credentials, ends.Format(time.RFC3339))
	}
	return err
}

func statusError(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return fmt.Errorf("read answer of status %d: %w", resp.StatusCode, err)
	}
	text, ok := api.ParseError(body)
	if !ok {
		text = http.StatusText(resp.StatusCode)
	}
	return &StatusError{Code: resp.StatusCode, Text: text}
}
