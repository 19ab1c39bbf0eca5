package main

import (
	"errors"
	"net/netip"
	"net/url"
	"time"

	"tulle/cmd/internal/conf"
	"tulle/policy/api"
	"tulle/policy/foundation"
	"tulle/policy/lease"
)

// foundationOf is where a Cloud Foundry foundation's servers are. The keys are
// named after the properties of the jobs whose work the daemon does, silk-daemon and
// vxlan-policy-agent; so are the defaults.
type foundationOf struct {
	PolicyServer string `yaml:"policy_server"` // https://host:port of policy-server-internal
	CACert       string `yaml:"ca_cert"`       // file: who signed its certificate
	ClientCert   string `yaml:"client_cert"`   // file: the agent's certificate
	ClientKey    string `yaml:"client_key"`    // file: its key

	SilkController string `yaml:"silk_controller"`         // https://host:port
	SilkCACert     string `yaml:"silk_controller_ca_cert"` // file; default: ca_cert
	SilkCert       string `yaml:"silk_daemon_client_cert"` // file; default: client_cert
	SilkKey        string `yaml:"silk_daemon_client_key"`  // file; default: client_key

	Network       netip.Prefix `yaml:"network"`                      // the overlay network
	SubnetBits    int          `yaml:"subnet_prefix_length"`         // of a cell's lease
	LeaseSeconds  int          `yaml:"lease_expiration_seconds"`     // silk-controller's
	PolicySeconds int          `yaml:"policy_poll_interval_seconds"` // how often to ask for policies
	LeasePoll     int          `yaml:"lease_poll_interval_seconds"`  // how often to renew the lease and list the others
	Timeout       int          `yaml:"client_timeout_seconds"`       // of each request
}

// serverFault is what is wrong with the URL of a server.
func serverFault(key, text string) error {
	switch u, err := url.Parse(text); {
	case text == "":
		return conf.Bad(key, "is missing")
	case err != nil || u.Scheme != "https" || u.Host == "":
		return conf.Bad(key, "must be https://host:port")
	}
	return nil
}

func (f *foundationOf) Validate() error {
	errs := []error{serverFault("policy_server", f.PolicyServer), serverFault("silk_controller", f.SilkController)}
	bad := func(key, format string, args ...any) { errs = append(errs, conf.Bad(key, format, args...)) }
	for key, file := range map[string]string{"ca_cert": f.CACert, "client_cert": f.ClientCert, "client_key": f.ClientKey} {
		if file == "" {
			bad(key, "is missing")
		}
	}
	if (f.SilkCert == "") != (f.SilkKey == "") {
		bad("silk_daemon_client_key", "and silk_daemon_client_cert stand together or not at all")
	}
	network, bits := f.Network, f.SubnetBits
	if !network.IsValid() {
		network = foundation.DefaultNetwork
	}
	if bits == 0 {
		bits = foundation.DefaultSubnetBits
	}
	if _, err := lease.NewPool(network, bits); err != nil {
		bad("network", "does not go with subnet_prefix_length: %v", err)
	}
	for key, n := range map[string]int{"lease_expiration_seconds": f.LeaseSeconds, "policy_poll_interval_seconds": f.PolicySeconds,
		"lease_poll_interval_seconds": f.LeasePoll, "client_timeout_seconds": f.Timeout} {
		if n < 0 {
			bad(key, "must be a number of seconds")
		}
	}
	return errors.Join(errs...)
}

// foundationFaults are those that concern other keys.
func (c *config) foundationFaults() error {
	var errs []error
	bad := func(key, format string, args ...any) { errs = append(errs, conf.Bad(key, format, args...)) }
	if c.Server != "" {
		bad("server", "is for a Tulle policy server: give it or foundation, not both")
	}
	if c.Credentials != "" {
		bad("credentials", "is for a Tulle policy server: the foundation's certificates are keys of foundation")
	}
	if c.Name == "" {
		bad("name", "is missing: with foundation no credential says it")
	}
	if c.tunnelMode() != api.ModeVXLAN {
		bad("mode", "must be vxlan with foundation: silk knows no other")
	}
	if c.Port == 0 {
		bad("port", "must be the foundation's with foundation, 4789 where nobody changed it")
	}
	if c.Underlay.IsValid() && !c.Underlay.Is4() {
		bad("underlay", "must be an IPv4 address with foundation")
	}
	return errors.Join(errs...)
}

// files are those that stand relative to the configuration. f may be nil.
func (f *foundationOf) files() []*string {
	if f == nil {
		return nil
	}
	return []*string{&f.CACert, &f.ClientCert, &f.ClientKey, &f.SilkCACert, &f.SilkCert, &f.SilkKey}
}

func (f *foundationOf) options() *foundation.Options {
	seconds := func(n int) time.Duration { return time.Duration(n) * time.Second }
	o := &foundation.Options{
		Policies: foundation.Server{URL: f.PolicyServer, CA: f.CACert, Cert: f.ClientCert, Key: f.ClientKey},
		Leases:   foundation.Server{URL: f.SilkController, CA: f.CACert, Cert: f.ClientCert, Key: f.ClientKey},
		Network:  f.Network, SubnetBits: f.SubnetBits, LeaseLifetime: seconds(f.LeaseSeconds),
		PollPolicies: seconds(f.PolicySeconds), PollLeases: seconds(f.LeasePoll), Timeout: seconds(f.Timeout),
	}
	if f.SilkCACert != "" {
		o.Leases.CA = f.SilkCACert
	}
	if f.SilkCert != "" {
		o.Leases.Cert, o.Leases.Key = f.SilkCert, f.SilkKey
	}
	return o
}
