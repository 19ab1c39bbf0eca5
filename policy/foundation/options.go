package foundation

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"time"

	"tulle/policy/lease"
)

// Defaults of Options, which are those of the original's jobs.
const (
	DefaultPort          = 4789
	DefaultSubnetBits    = 24
	DefaultLeaseLifetime = 168 * time.Hour
	DefaultPollPolicies  = 5 * time.Second
	DefaultPollLeases    = 30 * time.Second
	DefaultTimeout       = 5 * time.Second
)

// DefaultNetwork is the overlay network of a foundation that was not told another.
var DefaultNetwork = netip.MustParsePrefix("10.255.0.0/16")

// Server is where one of the two is, and how to prove who one is. The files are
// read anew for each connection, so that they may be replaced.
type Server struct {
	URL        string // https://host:port
	CA         string // file: who signed the server's certificate
	Cert, Key  string // files: the client's
	ServerName string // in the server's certificate; optional: the URL's host
}

// Options of New. What is marked optional may be zero.
type Options struct {
	Cell       string       // this cell's name in logs and status
	Policies   Server       // the policy server's internal API
	Leases     Server       // silk-controller
	Underlay   netip.Addr   // of this cell, IPv4
	Port       uint16       // of VXLAN, the same on all cells; optional
	Network    netip.Prefix // optional, as are those below
	SubnetBits int

	// LeaseLifetime is the controller's, which no answer tells. The cell gives its
	// lease up by itself when it has not been renewed for so long.
	LeaseLifetime time.Duration
	PollPolicies  time.Duration
	PollLeases    time.Duration
	Timeout       time.Duration // of a request

	Log *slog.Logger     // optional
	Now func() time.Time // optional; for the generation of a lease that is new
}

func (o *Options) complete() error {
	var errs []error
	need := func(ok bool, text string) {
		if !ok {
			errs = append(errs, errors.New(text))
		}
	}
	need(o.Cell != "", "the cell has no name")
	for _, s := range []struct {
		what string
		*Server
	}{{"policy server", &o.Policies}, {"silk-controller", &o.Leases}} {
		u, err := url.Parse(s.URL)
		need(err == nil && u.Scheme == "https" && u.Host != "" && (u.Path == "" || u.Path == "/") && u.RawQuery == "",
			fmt.Sprintf("%s %q: expected https://host:port", s.what, s.URL))
		need(s.CA != "" && s.Cert != "" && s.Key != "", s.what+": a CA, a client certificate and its key are needed")
	}
	if !o.Network.IsValid() {
		o.Network = DefaultNetwork
	}
	need(o.Underlay.Is4() && !o.Underlay.IsUnspecified() && !o.Underlay.IsMulticast(), "underlay must be an IPv4 address of this host")
	o.Port = cmp.Or(o.Port, DefaultPort)
	o.SubnetBits = cmp.Or(o.SubnetBits, DefaultSubnetBits)
	if _, err := lease.NewPool(o.Network, o.SubnetBits); err != nil {
		errs = append(errs, err)
	}
	o.LeaseLifetime = cmp.Or(o.LeaseLifetime, DefaultLeaseLifetime)
	o.PollPolicies = cmp.Or(o.PollPolicies, DefaultPollPolicies)
	o.PollLeases = cmp.Or(o.PollLeases, DefaultPollLeases)
	o.Timeout = cmp.Or(o.Timeout, DefaultTimeout)
	need(o.LeaseLifetime >= time.Second && o.PollPolicies > 0 && o.PollLeases > 0 && o.Timeout > 0, "times must not be negative, the lease's at least 1 s")
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return errors.Join(errs...)
}

// config is TLS as the original's servers want it: 1.2 or newer, a client
// certificate.
func (s Server) config() (*tls.Config, error) {
	pem, err := os.ReadFile(s.CA)
	if err != nil {
		return nil, fmt.Errorf("CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA: %s holds no certificate in PEM", s.CA)
	}
	pair, err := tls.LoadX509KeyPair(s.Cert, s.Key)
	if err != nil {
		return nil, fmt.Errorf("client certificate: %w", err)
	}
	name := s.ServerName
	if name == "" {
		u, err := url.Parse(s.URL)
		if err != nil {
			return nil, err
		}
		name = u.Hostname()
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: []tls.Certificate{pair}, ServerName: name}, nil
}

// dialer is for connections that are made over seconds, not minutes.
func (o *Options) dialer() *net.Dialer {
	return &net.Dialer{Timeout: o.Timeout, KeepAlive: 15 * time.Second}
}
