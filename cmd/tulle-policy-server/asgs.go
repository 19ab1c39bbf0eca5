package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"tulle/cmd/internal/conf"
	"tulle/policy/asgsync"
)

// maxPollInterval and maxRetryDeadline are a day, in seconds.
const maxPollInterval, maxRetryDeadline = 24 * 60 * 60, 24 * 60 * 60

// validateASGs names what is wrong with the keys for security groups.
func (c *config) validateASGs() []error {
	var errs []error
	bad := func(key, format string, args ...any) { errs = append(errs, conf.Bad(key, format, args...)) }
	if c.ASGPollInterval < 1 || c.ASGPollInterval > maxPollInterval {
		bad("asg_poll_interval_seconds", "must be from 1 to %d", maxPollInterval)
	}
	if c.RetryDeadline < 1 || c.RetryDeadline > maxRetryDeadline {
		bad("retry_deadline_seconds", "must be from 1 to %d", maxRetryDeadline)
	}
	files := []struct{ key, file string }{{"cc_internal_ca_cert", c.CCInternalCACert},
		{"cc_internal_client_cert", c.CCInternalClientCert}, {"cc_internal_client_key", c.CCInternalClientKey}}
	if c.CCInternalURL == "" {
		for _, f := range files {
			if f.file != "" {
				bad(f.key, "needs cc_internal_url")
			}
		}
		return errs
	}
	if c.UAAURL == "" {
		bad("cc_internal_url", "needs uaa_url")
	}
	if err := checkURL(c.CCInternalURL); err != nil {
		bad("cc_internal_url", "%v", err)
	}
	for _, f := range files[1:] {
		if f.file == "" {
			bad(f.key, "must name a file: the internal API asks who it is")
		}
	}
	return errs
}

// syncer follows the Cloud Controller's security groups; nil where the
// configuration does not say so. tokens gives the server's own.
func (c *config) syncer(tokens asgsync.Tokens, groups asgsync.Groups, log *slog.Logger) (*asgsync.Syncer, error) {
	if c.CCInternalURL == "" {
		return nil, nil
	}
	api, err := c.trusting(c.CCCACert)
	if err != nil {
		return nil, fmt.Errorf("cc_ca_cert: %w", err)
	}
	internal, err := c.trusting(c.CCInternalCACert)
	if err != nil {
		return nil, fmt.Errorf("cc_internal_ca_cert: %w", err)
	}
	pair, err := tls.LoadX509KeyPair(c.CCInternalClientCert, c.CCInternalClientKey)
	if err != nil {
		return nil, fmt.Errorf("cc_internal_client_cert: %w", err)
	}
	internal.Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{pair}
	return asgsync.New(asgsync.Options{
		URL: c.CCURL, HTTP: api, InternalURL: c.CCInternalURL, Internal: internal, Tokens: tokens, Groups: groups,
		Interval:      time.Duration(c.ASGPollInterval) * time.Second,
		RetryDeadline: time.Duration(c.RetryDeadline) * time.Second,
		Log:           log,
	}), nil
}

// beside runs the syncer, if there is one, for as long as run runs.
func beside(ctx context.Context, syncer *asgsync.Syncer, run func(context.Context) error) error {
	if syncer == nil {
		return run(ctx)
	}
	ctx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- syncer.Run(ctx) }()
	err := run(ctx)
	stop()
	return errors.Join(err, <-done)
}
