package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/server"
	"tulle/policy/server/metrics"
)

// ready is the one line on stdout by which a parent knows that the server
// answers, and where.
type ready struct {
	Ready bool `json:"ready"`
	server.Addresses
	Epoch    api.Epoch    `json:"epoch"`
	Revision api.Revision `json:"revision"`
}

// serve runs the server until ctx ends.
func serve(ctx context.Context, p *place, stdout, stderr io.Writer) (err error) {
	c, err := p.load()
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: c.LogLevel}))
	roots, err := ca.Open(c.PKI)
	if err != nil {
		return err
	}
	certificate, err := roots.Server.Certificates(c.Hosts)
	if err != nil {
		return fmt.Errorf("server certificate: %w", err)
	}
	who, directory, own, err := c.foundation(log)
	if err != nil {
		return err
	}
	var external *tls.Config
	if c.ExternalTLS != nil {
		cert, err := tls.LoadX509KeyPair(c.ExternalTLS.Cert, c.ExternalTLS.Key)
		if err != nil {
			return fmt.Errorf("external_tls: %w", err)
		}
		external = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	legacy, err := c.legacyRoot()
	if err != nil {
		return err
	}
	internal := ca.ServerTLS(roots.Cells, certificate)
	var leases *tls.Config
	if legacy != nil {
		internal, leases = ca.InternalTLS(roots.Cells, legacy, certificate), ca.LegacyTLS(legacy, certificate)
	}
	internal = ca.WithJoin(internal, roots.Server)
	discovery, err := c.discovery(legacy, certificate)
	if err != nil {
		return err
	}
	// From here on the machine is touched.
	release, err := c.claimState()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	s, err := c.open(ctx, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	groups, err := c.syncer(own, s, log)
	if err != nil {
		return err
	}
	if discovery.Listener, err = c.hear(s, log); err != nil {
		return err
	}
	meter := metrics.New()
	if discovery.Listener != nil {
		meter.Hear(discovery.Listener)
	}
	if groups == nil && directory == nil {
		if err := firstGroup(ctx, s); err != nil {
			return err
		}
	}
	srv, err := server.New(ctx, server.Options{
		Store: s, Auth: who, Directory: directory,
		SelfService: c.SelfService, CleanupEvery: time.Duration(c.PolicyCleanupInterval) * time.Minute,
		ExternalAddress: c.External, ExternalTLS: external,
		InternalAddress: c.Internal, InternalTLS: internal,
		InternalOptions: server.InternalOptions{Legacy: legacy, Issuer: roots.Cells, Instances: roots.Instances, TrustDomain: c.TrustDomain},
		LegacyAddress:   c.Legacy, LegacyTLS: leases,
		Meter: meter, MetricsAddress: c.Metrics, Discovery: discovery,
		AdminSocket: c.adminSocket(),
		MaxPolicies: c.MaxPolicies, AllowedCORSDomains: c.AllowedCORSDomains,
		Log: log,
	})
	if err != nil {
		return err
	}
	stats, err := s.Stats(ctx)
	if err != nil {
		return errors.Join(err, srv.Close())
	}
	line, err := json.Marshal(ready{true, srv.Addresses(), s.Epoch(), stats.Revision})
	if err != nil {
		return errors.Join(err, srv.Close())
	}
	// The sockets are open: whoever reads the line can connect.
	if _, err := fmt.Fprintf(stdout, "%s\n", line); err != nil {
		return errors.Join(err, srv.Close())
	}
	log.Info("ready", "external", srv.Addresses().External, "internal", srv.Addresses().Internal, "epoch", s.Epoch(), "revision", stats.Revision)
	err = beside(ctx, groups, srv.Run)
	log.Info("stopped")
	return err
}
