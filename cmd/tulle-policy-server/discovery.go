package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"tulle/cmd/internal/conf"
	"tulle/policy/ca"
	"tulle/policy/route"
	"tulle/policy/server"
	"tulle/policy/store"
)

// validateDiscovery names what is wrong with the keys of names.
func (c *config) validateDiscovery() (errs []error) {
	for _, s := range c.NATS {
		if u, err := url.Parse(s); err != nil || u.Scheme != "nats" && u.Scheme != "tls" || u.Host == "" || u.User != nil {
			errs = append(errs, conf.Bad("nats", "must list nats://host:port, without user and password"))
		}
	}
	if (c.NATSUser == "") != (c.NATSPassword == "") {
		errs = append(errs, conf.Bad("nats_user", "needs nats_password_file, and that it"))
	}
	if (c.NATSCert == "") != (c.NATSKey == "") || c.NATSCert != "" && c.NATSCA == "" {
		errs = append(errs, conf.Bad("nats_cert", "needs nats_key and nats_ca"))
	}
	if c.EmitterRepeat < 1 {
		errs = append(errs, conf.Bad("route_emitter_interval_seconds", "must be 1 or more"))
	}
	if c.Staleness <= c.EmitterRepeat {
		errs = append(errs, conf.Bad("staleness_threshold_seconds", "must be more than route_emitter_interval_seconds"))
	}
	if c.Discovery != "" && c.DiscoveryCA == "" && c.Legacy == "" {
		errs = append(errs, conf.Bad("discovery", "needs discovery_ca, the root of its clients, or a legacy root (legacy)"))
	}
	return errs
}

// discovery is what the configuration says of names by the original's ways. The
// store is not open yet: the listener is made by hear.
func (c *config) discovery(legacy *ca.Authority, certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)) (server.Discovery, error) {
	d := server.Discovery{Address: c.Discovery, Warm: time.Duration(c.EmitterRepeat) * time.Second}
	if c.Discovery == "" {
		return d, nil
	}
	if c.DiscoveryCA == "" {
		d.TLS = ca.LegacyTLS(legacy, certificate)
		return d, nil
	}
	roots, err := pool(c.DiscoveryCA)
	if err != nil {
		return d, fmt.Errorf("discovery_ca: %w", err)
	}
	d.TLS = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: certificate,
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots}
	return d, nil
}

// hear makes the listener of route emitters; nil where no NATS is named.
func (c *config) hear(s store.Store, log *slog.Logger) (*route.Listener, error) {
	if len(c.NATS) == 0 {
		return nil, nil
	}
	o := route.Options{Store: s, Servers: c.NATS, User: c.NATSUser, Index: c.NATSIndex, Log: log,
		Stale: time.Duration(c.Staleness) * time.Second, Interval: time.Duration(c.EmitterRepeat) * time.Second}
	if len(c.Hosts) > 0 {
		o.Host = c.Hosts[0]
	}
	if c.NATSPassword != "" {
		b, err := os.ReadFile(c.NATSPassword)
		if err != nil {
			return nil, fmt.Errorf("nats_password_file: %w", err)
		}
		o.Password = strings.TrimSpace(string(b))
	}
	if c.NATSCA != "" {
		roots, err := pool(c.NATSCA)
		if err != nil {
			return nil, fmt.Errorf("nats_ca: %w", err)
		}
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	}
	if c.NATSCert != "" {
		pair, err := tls.LoadX509KeyPair(c.NATSCert, c.NATSKey)
		if err != nil {
			return nil, fmt.Errorf("nats_cert: %w", err)
		}
		o.TLS.Certificates = []tls.Certificate{pair}
	}
	return route.NewListener(o)
}

func pool(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New(path + " holds no certificate")
	}
	return roots, nil
}
