package client

import (
	"context"
	"errors"
	"net/http"
	"time"

	"tulle/policy/api"
	"tulle/policy/ca"
)

// errRenewed ends a stream whose connection was made with the credential before
// the present one.
var errRenewed = errors.New("the credential was renewed")

// A credential is renewed when two thirds of its life are over; what fails is
// tried again after a tenth of what is left, but neither sooner nor later than
// this. After its end only another clock than ours, or another file, can help.
const (
	renewSoonest = 500 * time.Millisecond
	renewLatest  = time.Hour
	renewExpired = time.Minute
)

// renew keeps the credential from expiring until ctx ends.
func (c *Client) renew(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		timer.Reset(c.renewOnce(ctx))
	}
}

// renewOnce renews the credential if it is time to, and says when to look again.
func (c *Client) renewOnce(ctx context.Context) time.Duration {
	issued, ends, err := ca.CellLife(c.opt.Credentials)
	if err != nil {
		c.opt.Log.Error("credential cannot be read, and so not be renewed", "error", err)
		return renewLatest
	}
	now := time.Now()
	if due := issued.Add(ends.Sub(issued) * 2 / 3); now.Before(due) {
		return min(due.Sub(now), renewLatest) // the file may have been replaced by then
	}
	if err := c.replaceCredential(ctx); err != nil {
		next := min(max(ends.Sub(now)/10, renewSoonest), renewLatest)
		if !now.Before(ends) {
			next = renewExpired
		}
		if ctx.Err() == nil {
			c.opt.Log.Error("credential not renewed", "error", err, "expires", ends, "retry_in", next)
		}
		return next
	}
	c.opt.Log.Info("credential renewed")
	c.reconnect()
	return renewSoonest
}

func (c *Client) replaceCredential(ctx context.Context) error {
	key, request, err := ca.NewRequest()
	if err != nil {
		return err
	}
	var answer api.Renewed
	if err := c.do(ctx, http.MethodPost, api.PathCredential, api.Renewal{Request: string(request)}, &answer); err != nil {
		return err
	}
	credential := &ca.Credential{CertPEM: []byte(answer.Certificate), KeyPEM: key}
	if _, err := credential.TLS(); err != nil {
		return err
	}
	return ca.ReplaceCell(c.opt.Credentials, credential)
}

// reconnect has everything from now on go over a connection that is made with the
// present credential: the stream goes on there from where it is.
func (c *Client) reconnect() {
	c.mu.Lock()
	old, stream := c.http, c.stream
	c.http = c.newHTTP()
	c.stream = nil
	c.mu.Unlock()
	if stream != nil {
		stream(errRenewed)
	}
	old.CloseIdleConnections()
}
