package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"tulle/cmd/internal/conf"
	"tulle/policy/asgsync"
	"tulle/policy/auth/uaa"
	"tulle/policy/ca"
	"tulle/policy/cc"
	"tulle/policy/lease"
	"tulle/policy/route"
	"tulle/policy/server"
	"tulle/policy/store"
	"tulle/policy/store/postgres"
)

// configFile is the configuration's name in a directory made by init.
const configFile = "config.yaml"

// config is the server's configuration. Paths are relative to the file's
// directory, so that the directory can be moved.
type config struct {
	External            string        `yaml:"external"`             // host:port of the external API
	Internal            string        `yaml:"internal"`             // host:port of the internal API, mutual TLS
	Legacy              string        `yaml:"legacy"`               // host:port of the lease API of silk cells; "": off, and no legacy client is let in
	Metrics             string        `yaml:"metrics"`              // host:port; "": off
	Database            string        `yaml:"database"`             // the SQLite file, or a postgres:// URL
	DatabaseConnections int           `yaml:"database_connections"` // to PostgreSQL, at most
	State               string        `yaml:"state"`                // the directory for the admin socket, with PostgreSQL
	PKI                 string        `yaml:"pki"`                  // the directory with the roots
	Tokens              string        `yaml:"tokens"`               // the file with the tokens' sums
	Hosts               []string      `yaml:"hosts"`                // names and addresses that cells reach the server by
	Network             netip.Prefix  `yaml:"network"`              // the overlay network
	LeaseBits           int           `yaml:"lease_bits"`           // prefix length of a cell's part of it
	LeaseLifetime       time.Duration `yaml:"lease_lifetime"`       // of a cell that is not heard of
	TrustDomain         string        `yaml:"trust_domain"`         // of the SPIFFE IDs in containers' certificates
	ExternalTLS         *externalTLS  `yaml:"external_tls"`         // absent: plain HTTP
	AuditEntries        int           `yaml:"audit_entries"`        // of the audit record, that are kept
	MaxPolicies         int           `yaml:"max_policies"`         // for each source app, of those who are not admin
	AllowedCORSDomains  []string      `yaml:"allowed_cors_domains"` // origins; "*": every one
	LogLevel            slog.Level    `yaml:"log_level"`            // debug, info, warn, error

	// Names by the original's ways.
	Discovery     string   `yaml:"discovery"`                      // host:port of the service-discovery-controller's API, mutual TLS; "": off
	DiscoveryCA   string   `yaml:"discovery_ca"`                   // file, PEM: the root of its clients; "": the legacy root
	NATS          []string `yaml:"nats"`                           // nats://host:port; none: no route emitter is heard
	NATSUser      string   `yaml:"nats_user"`                      // "": none
	NATSPassword  string   `yaml:"nats_password_file"`             // its password
	NATSCA        string   `yaml:"nats_ca"`                        // file, PEM; "": no TLS
	NATSCert      string   `yaml:"nats_cert"`                      // file, PEM; "": no client certificate
	NATSKey       string   `yaml:"nats_key"`                       // file, PEM
	NATSIndex     string   `yaml:"nats_index"`                     // this server's number among its like
	Staleness     int      `yaml:"staleness_threshold_seconds"`    // a registration not repeated for longer goes
	EmitterRepeat int      `yaml:"route_emitter_interval_seconds"` // how often emitters repeat theirs

	// In a Cloud Foundry; the keys are named as the original's.
	UAAURL                string        `yaml:"uaa_url"`                             // https://host; "": the tokens file says who is who
	UAAPort               uint16        `yaml:"uaa_port"`                            // where uaa_url names none
	UAACA                 string        `yaml:"uaa_ca"`                              // file, PEM; "": the machine's roots
	UAAClient             string        `yaml:"uaa_client"`                          // the server's own
	UAASecretFile         string        `yaml:"uaa_client_secret_file"`              // its secret
	UAATimeout            time.Duration `yaml:"uaa_timeout"`                         // of a request
	UAAVerification       string        `yaml:"uaa_verification"`                    // check_token, or keys
	UAAIssuer             string        `yaml:"uaa_issuer"`                          // keys: the tokens' "iss"
	UAAAudience           []string      `yaml:"uaa_audience"`                        // keys: one of them is in the tokens' "aud"
	CCURL                 string        `yaml:"cc_url"`                              // https://host:port
	CCCACert              string        `yaml:"cc_ca_cert"`                          // file, PEM; "": the machine's roots
	CCTimeout             time.Duration `yaml:"cc_timeout"`                          // of a request
	SkipSSLValidation     bool          `yaml:"skip_ssl_validation"`                 // of the UAA's and the Cloud Controller's certificates
	SelfService           bool          `yaml:"enable_space_developer_self_service"` // space developers need no scope
	CCInternalURL         string        `yaml:"cc_internal_url"`                     // https://host:port; "": security groups are managed here
	CCInternalCACert      string        `yaml:"cc_internal_ca_cert"`                 // file, PEM; "": the machine's roots
	CCInternalClientCert  string        `yaml:"cc_internal_client_cert"`             // file, PEM
	CCInternalClientKey   string        `yaml:"cc_internal_client_key"`              // file, PEM
	ASGPollInterval       int           `yaml:"asg_poll_interval_seconds"`           // between two looks at the security groups
	RetryDeadline         int           `yaml:"retry_deadline_seconds"`              // groups not synced for longer are an error in the log
	PolicyCleanupInterval int           `yaml:"policy_cleanup_interval"`             // minutes
}

type externalTLS struct {
	Cert string `yaml:"cert"` // file, PEM, with its chain
	Key  string `yaml:"key"`  // file, PEM
}

func defaults() *config {
	return &config{
		External: "127.0.0.1:4002", Internal: "127.0.0.1:4003", Metrics: "127.0.0.1:9478",
		Database: "policy.db", DatabaseConnections: 10, State: ".", PKI: "pki", Tokens: "tokens.yaml",
		Hosts:   []string{"localhost", "127.0.0.1", "::1"},
		Network: netip.MustParsePrefix("10.255.0.0/16"), LeaseBits: 24, LeaseLifetime: 168 * time.Hour,
		TrustDomain: ca.DefaultTrustDomain, AuditEntries: 100_000, MaxPolicies: server.DefaultMaxPolicies, LogLevel: slog.LevelInfo,
		UAAClient: "network-policy", UAATimeout: uaa.DefaultTimeout, UAAVerification: verifyByUAA,
		ASGPollInterval: int(asgsync.DefaultInterval / time.Second), RetryDeadline: int(asgsync.DefaultRetryDeadline / time.Second),
		NATSIndex: "0", Staleness: int(route.DefaultStale / time.Second), EmitterRepeat: int(route.DefaultInterval / time.Second),
		CCTimeout: cc.DefaultTimeout, PolicyCleanupInterval: int(server.DefaultCleanupEvery / time.Minute),
	}
}

func loadConfig(path string) (*config, error) {
	c := defaults()
	if err := conf.Load(path, c); err != nil {
		return nil, err
	}
	if postgres.IsURL(c.Database) {
		// Not in Validate: what is wrong there is shown with its value, and this
		// one may hold a password.
		if err := postgres.Check(c.Database); err != nil {
			return nil, fmt.Errorf("configuration %s: database: %w", path, err)
		}
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	paths := []*string{&c.State, &c.PKI, &c.Tokens}
	if !postgres.IsURL(c.Database) {
		paths = append(paths, &c.Database)
	}
	if c.ExternalTLS != nil {
		paths = append(paths, &c.ExternalTLS.Cert, &c.ExternalTLS.Key)
	}
	for _, p := range []*string{&c.UAACA, &c.UAASecretFile, &c.CCCACert,
		&c.CCInternalCACert, &c.CCInternalClientCert, &c.CCInternalClientKey,
		&c.DiscoveryCA, &c.NATSPassword, &c.NATSCA, &c.NATSCert, &c.NATSKey} {
		if *p != "" {
			paths = append(paths, p)
		}
	}
	for _, p := range paths {
		if !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	return c, nil
}

// Validate names what is wrong, all of it.
func (c *config) Validate() error {
	var errs []error
	for key, address := range map[string]string{"external": c.External, "internal": c.Internal, "legacy": c.Legacy, "metrics": c.Metrics, "discovery": c.Discovery} {
		if address == "" && (key == "legacy" || key == "metrics" || key == "discovery") {
			continue
		}
		if _, _, err := net.SplitHostPort(address); err != nil {
			errs = append(errs, conf.Bad(key, "must be host:port"))
		}
	}
	for key, path := range map[string]string{"database": c.Database, "state": c.State, "pki": c.PKI, "tokens": c.Tokens} {
		if path == "" {
			errs = append(errs, conf.Bad(key, "must name a path"))
		}
	}
	if c.DatabaseConnections < postgres.MinConnections {
		errs = append(errs, conf.Bad("database_connections", "must be %d or more", postgres.MinConnections))
	}
	if len(c.Hosts) == 0 || slices.Contains(c.Hosts, "") {
		errs = append(errs, conf.Bad("hosts", "must list the names and addresses that cells reach the server by"))
	}
	if _, err := lease.NewPool(c.Network, c.Network.Bits()+1); err != nil {
		errs = append(errs, conf.Bad("network", "%v", err))
	} else if _, err := lease.NewPool(c.Network, c.LeaseBits); err != nil {
		errs = append(errs, conf.Bad("lease_bits", "%v", err))
	}
	if c.LeaseLifetime < time.Minute {
		errs = append(errs, conf.Bad("lease_lifetime", "must be a minute or more"))
	}
	if err := ca.CheckTrustDomain(c.TrustDomain); err != nil {
		errs = append(errs, conf.Bad("trust_domain", "must be a SPIFFE trust domain: lower-case letters, digits, dots, dashes and underscores"))
	}
	if c.AuditEntries < 1 {
		errs = append(errs, conf.Bad("audit_entries", "must be 1 or more"))
	}
	if c.MaxPolicies < 1 {
		errs = append(errs, conf.Bad("max_policies", "must be 1 or more"))
	}
	if c.ExternalTLS != nil && (c.ExternalTLS.Cert == "" || c.ExternalTLS.Key == "") {
		errs = append(errs, conf.Bad("external_tls", "needs cert and key"))
	}
	return errors.Join(slices.Concat(errs, c.validateFoundation(), c.validateASGs(), c.validateDiscovery())...)
}

func (c *config) lease() store.LeaseConfig {
	return store.LeaseConfig{Network: c.Network, Bits: c.LeaseBits, Lifetime: c.LeaseLifetime}
}
