package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"tulle/cmd/internal/conf"
	"tulle/policy/auth"
	"tulle/policy/auth/uaa"
	"tulle/policy/cc"
	"tulle/policy/server"
)

// The ways to check a UAA's tokens.
const (
	verifyByUAA  = "check_token" // ask the UAA about each, as the original does
	verifyByKeys = "keys"        // by the keys that it publishes
)

// maxCleanupInterval is a year, in minutes.
const maxCleanupInterval = 365 * 24 * 60

// validateFoundation names what is wrong with the keys for a Cloud Foundry.
func (c *config) validateFoundation() []error {
	var errs []error
	bad := func(key, format string, args ...any) { errs = append(errs, conf.Bad(key, format, args...)) }
	if c.PolicyCleanupInterval < 1 || c.PolicyCleanupInterval > maxCleanupInterval {
		bad("policy_cleanup_interval", "must be from 1 to %d minutes", maxCleanupInterval)
	}
	if c.UAAURL == "" {
		for key, set := range map[string]bool{"cc_url": c.CCURL != "", "uaa_client_secret_file": c.UAASecretFile != "",
			"enable_space_developer_self_service": c.SelfService, "skip_ssl_validation": c.SkipSSLValidation, "uaa_issuer": c.UAAIssuer != ""} {
			if set {
				bad(key, "needs uaa_url")
			}
		}
		return errs
	}
	for key, value := range map[string]string{"uaa_url": c.UAAURL, "cc_url": c.CCURL} {
		if err := checkURL(value); err != nil {
			bad(key, "%v", err)
		}
	}
	if u, err := url.Parse(c.UAAURL); err == nil && u.Port() != "" && c.UAAPort != 0 {
		bad("uaa_port", "uaa_url names a port already")
	}
	if c.UAAClient == "" {
		bad("uaa_client", "must name the server's own client")
	}
	if c.UAASecretFile == "" {
		bad("uaa_client_secret_file", "must name the file with the client's secret")
	}
	if c.UAATimeout <= 0 {
		bad("uaa_timeout", "must be more than nothing")
	}
	if c.CCTimeout <= 0 {
		bad("cc_timeout", "must be more than nothing")
	}
	switch c.UAAVerification {
	case verifyByUAA:
	case verifyByKeys:
		if c.UAAIssuer == "" {
			bad("uaa_issuer", "is needed where tokens are checked by keys, such as https://uaa.example.com/oauth/token")
		}
		if c.UAAAudience != nil && len(c.UAAAudience) == 0 || slices.Contains(c.UAAAudience, "") {
			bad("uaa_audience", "must list a name that tokens are for")
		}
	default:
		bad("uaa_verification", "must be %s or %s", verifyByUAA, verifyByKeys)
	}
	return errs
}

// checkURL wants https, since a secret or a token goes there; plain http only
// where it does not leave the machine.
func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("must be a URL such as https://host:port, with nothing behind it")
	}
	host := u.Hostname()
	ip, err := netip.ParseAddr(host)
	if u.Scheme == "https" || u.Scheme == "http" && (host == "localhost" || err == nil && ip.IsLoopback()) {
		return nil
	}
	return errors.New("must begin with https://")
}

// foundation makes of the configuration who says whose a token is and, in a
// Cloud Foundry, who develops what and the server's own tokens; without one the
// tokens file alone counts.
func (c *config) foundation(log *slog.Logger) (auth.Authenticator, server.Directory, *uaa.Client, error) {
	if c.UAAURL == "" {
		tokens, err := auth.OpenTokens(c.Tokens, log)
		return tokens, nil, nil, err
	}
	secret, err := os.ReadFile(c.UAASecretFile)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("uaa_client_secret_file: %w", err)
	}
	uaaHTTP, err := c.trusting(c.UAACA)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("uaa_ca: %w", err)
	}
	ccHTTP, err := c.trusting(c.CCCACert)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("cc_ca_cert: %w", err)
	}
	client := uaa.New(uaa.Options{URL: c.uaaAddress(), ID: c.UAAClient, Secret: strings.TrimRight(string(secret), "\r\n"),
		HTTP: uaaHTTP, Timeout: c.UAATimeout, Log: log})
	var who auth.Authenticator = client
	if c.UAAVerification == verifyByKeys {
		if who, err = uaa.NewVerifier(client, c.UAAIssuer, c.audience()); err != nil {
			return nil, nil, nil, err
		}
	}
	if c.SkipSSLValidation {
		log.Warn("skip_ssl_validation: whoever answers is taken for the UAA and the Cloud Controller")
	}
	return who, cc.New(cc.Options{URL: c.CCURL, Tokens: client, HTTP: ccHTTP, Timeout: c.CCTimeout}), client, nil
}

// audience is whom tokens must be for. A UAA names there what the token's scopes
// begin with; a developer who needs no scope of the network's has those of the
// Cloud Controller.
func (c *config) audience() []string {
	switch {
	case c.UAAAudience != nil:
		return c.UAAAudience
	case c.SelfService:
		return []string{"network", "cloud_controller"}
	}
	return []string{"network"}
}

// uaaAddress is uaa_url with uaa_port, which may stand apart as in the
// original's configuration.
func (c *config) uaaAddress() string {
	u, err := url.Parse(c.UAAURL)
	if err != nil || c.UAAPort == 0 {
		return c.UAAURL
	}
	u.Host = net.JoinHostPort(u.Hostname(), strconv.Itoa(int(c.UAAPort)))
	return u.String()
}

// trusting is a client that believes the roots of the file; with "" those of
// the machine.
func (c *config) trusting(file string) (*http.Client, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.SkipSSLValidation}
	t.Proxy = nil // secrets take the straight way, as the original's
	t.MaxIdleConnsPerHost = 16
	t.IdleConnTimeout = time.Minute
	if file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s holds no certificate", file)
		}
	}
	return &http.Client{Transport: t}, nil
}
