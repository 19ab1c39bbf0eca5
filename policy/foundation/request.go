package foundation

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"tulle/policy/api"
)

// maxAnswer bounds what is read of an answer, in bytes: 10,000 policies are 2 MB.
const maxAnswer = 256 << 20

// Refusal is an answer that is not a success.
type Refusal struct {
	Code int    // HTTP status
	Text string // the server's words, or what it sent instead of any
}

func (r *Refusal) Error() string { return fmt.Sprintf("%s (status %d)", r.Text, r.Code) }

// peer is one of the two servers.
type peer struct {
	name    string
	base    string
	timeout time.Duration
	http    *http.Client
}

// newPeer reads the files once, so that a wrong one is found at the start.
func newPeer(name string, s Server, o *Options) (*peer, error) {
	if _, err := s.config(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	dialer := o.dialer()
	return &peer{
		name: name, base: strings.TrimSuffix(s.URL, "/"), timeout: o.Timeout,
		http: &http.Client{
			Transport: &http.Transport{
				DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
					conf, err := s.config()
					if err != nil {
						return nil, err
					}
					return (&tls.Dialer{NetDialer: dialer, Config: conf}).DialContext(ctx, network, addr)
				},
				IdleConnTimeout: time.Minute,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error {
				return errors.New("it redirects, which the original never does")
			},
		},
	}, nil
}

// do makes a request and gives its answer's body to read, where it is a success.
func (p *peer) do(ctx context.Context, method, path string, in any, read func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, p.base+path, body)
	if err != nil {
		return err
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %w", p.name, refusal(resp))
	}
	if read == nil {
		return nil
	}
	if err := read(io.LimitReader(resp.Body, maxAnswer)); err != nil {
		return fmt.Errorf("%s: read answer: %w", p.name, err)
	}
	return nil
}

// refusal takes the text out of {"error": "…"}, which the original does not
// escape: what is no JSON is shown as it is.
func refusal(resp *http.Response) *Refusal {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // what there is will do
	text, ok := api.ParseError(body)
	if !ok {
		text = strings.TrimSpace(string(body))
	}
	if text == "" {
		text = http.StatusText(resp.StatusCode)
	}
	return &Refusal{resp.StatusCode, text}
}

func decode(out any) func(io.Reader) error {
	return func(r io.Reader) error { return json.NewDecoder(r).Decode(out) }
}
