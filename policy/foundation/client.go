package foundation

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/client"
	"tulle/policy/lease"
)

// Client speaks for one cell. Safe for concurrent use.
type Client struct {
	opt      Options
	pool     lease.Pool
	log      *slog.Logger
	policies *peer
	leases   *peer
	epoch    api.Epoch
	poll     chan struct{} // capacity 1: ask for policies now
	listed   chan struct{} // closed by the first list of endpoints

	mu       sync.Mutex            // guards the fields below
	subnet   netip.Prefix          // of the last lease
	hosts    map[policy.AppID]bool // apps of the list of endpoints
	ids      []string              // what policies are asked for by: apps and spaces, sorted
	revision api.Revision          // of the last snapshot, or due with the next
	status   client.Status
	changed  chan struct{} // closed and replaced when status.Connected is another
}

// New checks the options and reads the certificates. It does not connect yet.
func New(o Options) (*Client, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	pool, err := lease.NewPool(o.Network, o.SubnetBits)
	if err != nil {
		return nil, err
	}
	c := &Client{opt: o, pool: pool, log: o.Log, epoch: api.Epoch("foundation-" + rand.Text()),
		poll: make(chan struct{}, 1), listed: make(chan struct{}), hosts: map[policy.AppID]bool{}, changed: make(chan struct{})}
	if c.policies, err = newPeer("policy server", o.Policies, &c.opt); err != nil {
		return nil, err
	}
	if c.leases, err = newPeer("silk-controller", o.Leases, &c.opt); err != nil {
		return nil, err
	}
	return c, nil
}

// Cell is the cell's name.
func (c *Client) Cell() string { return c.opt.Cell }

// Close drops idle connections. End Watch's context first.
func (c *Client) Close() {
	c.policies.http.CloseIdleConnections()
	c.leases.http.CloseIdleConnections()
}

// Status is the watch's present state. It is connected when the policy server has
// answered the last time it was asked.
func (c *Client) Status() client.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// Connected is Status's.
func (c *Client) Connected() bool { return c.Status().Connected }

// Connection is Connected, and a channel that is closed when that is no longer so.
func (c *Client) Connection() (connected bool, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status.Connected, c.changed
}

// SetEndpoints takes the cell's whole list of endpoints, which nobody else is
// told: it decides whose policies are asked for. The answer's revision is in force
// when those of all its apps are; where an app is new, that is after a round of
// requests that begins at once. Watch waits for the first list.
func (c *Client) SetEndpoints(_ context.Context, r api.EndpointsRequest) (api.EndpointsResponse, error) {
	answer := api.EndpointsResponse{Epoch: c.epoch, Apps: map[string]policy.AppID{}, Refused: map[string]string{}}
	hosts, asked := map[policy.AppID]bool{}, map[string]bool{}
	for _, e := range r.Endpoints {
		if e.App.GUID == "" {
			answer.Refused[e.Container] = fmt.Sprintf("app %q: a foundation's apps are known by GUID alone", e.App.Name)
			continue
		}
		answer.Apps[e.Container] = e.App.GUID
		hosts[e.App.GUID], asked[string(e.App.GUID)] = true, true
		if e.App.Space != "" {
			asked[e.App.Space] = true // as the original's agent asks
		}
	}
	ids := slices.Sorted(maps.Keys(asked))
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.listed:
	default:
		defer close(c.listed)
	}
	if !slices.Equal(ids, c.ids) {
		c.ids, c.hosts = ids, hosts
		c.revision++ // of the snapshot that is due now
		select {
		case c.poll <- struct{}{}:
		default:
		}
	}
	answer.Revision = c.revision
	return answer, nil
}

// ErrNoCertificates: a foundation's containers have their certificates from its own
// platform, and whom to trust by.
var ErrNoCertificates = errors.New("a foundation's policy server signs no certificates")

// Certificate is ErrNoCertificates.
func (c *Client) Certificate(context.Context, api.CertificateRequest) (api.Certificate, error) {
	return api.Certificate{}, ErrNoCertificates
}

// Trust is ErrNoCertificates.
func (c *Client) Trust(context.Context) (api.Trust, error) { return api.Trust{}, ErrNoCertificates }

var errNoNames = errors.New("a foundation's policy server tells cells the GUIDs of apps alone")

// AppName is not to be had.
func (c *Client) AppName(context.Context, policy.AppID) (api.AppName, error) {
	return api.AppName{}, errNoNames
}
