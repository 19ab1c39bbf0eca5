package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tulle/cmd/internal/conf"
	"tulle/overlay/control"
	"tulle/overlay/trafficlog"
	"tulle/policy/api"
)

const complete = `name: cell-1
server: https://127.0.0.1:4003
credentials: credentials
state_dir: /var/lib/tulle
underlay: 192.0.2.1
`

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "celld.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfig(t *testing.T) {
	path := write(t, complete+`port: 0
metrics: ""
allow:
- uid: 1000
  orgs: [acme]
- uid: 0
  apps: ["*"]
resolvers: [192.0.2.53, "192.0.2.54:5353"]
log_level: debug
`)
	c, err := loadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	d := c.daemon()
	if d.Credentials != filepath.Join(filepath.Dir(path), "credentials") || d.StateDir != "/var/lib/tulle" {
		t.Errorf("paths %s, %s", d.Credentials, d.StateDir)
	}
	if d.Port != 0 || d.Metrics != "" || len(d.Allow) != 2 || d.Allow[0].UID != 1000 || d.Allow[0].Orgs[0] != "acme" {
		t.Errorf("%+v", d)
	}
	if len(d.Resolvers) != 2 || d.Resolvers[0].String() != "192.0.2.53:53" || d.Resolvers[1].String() != "192.0.2.54:5353" {
		t.Errorf("resolvers %v", d.Resolvers)
	}
	c, err = loadConfig(write(t, complete))
	if err != nil {
		t.Fatal(err)
	}
	if d := c.daemon(); d.Mode != api.ModeWireGuard || d.WireGuard != 51820 {
		t.Errorf("defaults: %+v", d)
	}
	c, err = loadConfig(write(t, complete+"mode: vxlan\nwireguard: 0\n"))
	if err != nil {
		t.Fatal(err)
	}
	if d := c.daemon(); d.Mode != api.ModeVXLAN || d.WireGuard != 0 {
		t.Errorf("mode vxlan: %+v", d)
	}
	c, err = loadConfig(write(t, complete))
	if err != nil {
		t.Fatal(err)
	}
	if d := c.daemon(); d.Port != 4789 || d.Metrics != "127.0.0.1:9479" || d.Socket != control.DefaultSocket() {
		t.Errorf("defaults: %+v", d)
	}
}

func TestEgressConfig(t *testing.T) {
	path := write(t, complete+`egress:
  host_services: ["192.0.2.1:5432/tcp", "127.0.0.1:53/udp"]
  deny_networks:
    always: [169.254.0.0/16, 10.0.0.7]
    running: [172.16.0.0/12]
  connections: {rate: 100, burst: 1000, dry_run: true, per_destination: 50}
  log: traffic.log
  log_c2c: true
  log_switch: 127.0.0.1:8721
`)
	c, err := loadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	e := c.daemon().Egress
	if len(e.HostServices) != 2 || e.HostServices[0].Addr.String() != "192.0.2.1:5432" || e.HostServices[1].Protocol != "udp" {
		t.Errorf("host services %+v", e.HostServices)
	}
	if len(e.DenyAlways) != 2 || e.DenyAlways[1].String() != "10.0.0.7/32" || len(e.DenyRunning) != 1 || len(e.DenyStaging) != 0 {
		t.Errorf("deny networks %v, %v, %v", e.DenyAlways, e.DenyRunning, e.DenyStaging)
	}
	if l := e.Limits; l.Rate != 100 || l.Burst != 1000 || !l.DryRun || l.PerDestination != 50 {
		t.Errorf("limits %+v", l)
	}
	if e.Logged != (trafficlog.Switches{Denied: true, ContainersAllowed: true}) || e.LogSwitch.String() != "127.0.0.1:8721" {
		t.Errorf("logged %+v, switch %v", e.Logged, e.LogSwitch)
	}
	if e.Log != filepath.Join(filepath.Dir(path), "traffic.log") {
		t.Errorf("log %s", e.Log)
	}
}

// Each fault is told with key, value and line.
func TestConfigFaults(t *testing.T) {
	cases := []struct{ name, text, want string }{
		{"unknown key", complete + "underlai: 1\n", "line 6: underlai"},
		{"port", complete + "port: 70000\n", "line 6: port: 70000"},
		{"mode", complete + "mode: carrier-pigeon\n", `line 6: mode: "carrier-pigeon"`},
		{"one port for both modes", complete + "mode: wireguard\nwireguard: 4789\n", "line 7: wireguard: 4789"},
		{"post-quantum what", complete + "post_quantum: maybe\n", `line 6: post_quantum: "maybe"`},
		{"post-quantum in plain", complete + "mode: vxlan\npost_quantum: required\n", "line 7: post_quantum"},
		{"mtu", complete + "mtu: 100\n", "line 6: mtu: 100"},
		{"metrics", complete + "metrics: nowhere\n", `line 6: metrics: "nowhere"`},
		{"underlay", strings.Replace(complete, "192.0.2.1", "0.0.0.0", 1), `line 5: underlay: "0.0.0.0"`},
		{"underlay that is a name", strings.Replace(complete, "192.0.2.1", "here", 1), `line 5: underlay: "here"`},
		{"server", strings.Replace(complete, "https", "http", 1), `line 2: server: "http://127.0.0.1:4003"`},
		{"no server", strings.Replace(complete, "server: https://127.0.0.1:4003\n", "", 1), "server: is missing"},
		{"grant of nothing", complete + "allow:\n- uid: 7\n", "allow[0].apps: is missing"},
		{"grant to nobody", complete + "allow:\n- apps: [a]\n", "allow[0].uid: is missing"},
		{"uid", complete + "allow:\n- uid: -1\n  apps: [a]\n", "line 7: allow[0].uid: -1"},
		{"host service", complete + "egress:\n  host_services: [192.0.2.1:80]\n", `line 7: egress.host_services[0]: "192.0.2.1:80"`},
		{"host service of any address", complete + "egress:\n  host_services: [\"0.0.0.0:80/tcp\"]\n", `line 7: egress.host_services[0]: "0.0.0.0:80/tcp"`},
		{"tunnel port as a host service", complete + "egress:\n  host_services: [\"192.0.2.1:4789/udp\"]\n", "no container may reach"},
		{"metrics as a host service", complete + "metrics: 127.0.0.1:9999\negress:\n  host_services: [\"127.0.0.1:9999/tcp\"]\n", "no container may reach"},
		{"deny network", complete + "egress:\n  deny_networks:\n    running: [10.0.0.0/40]\n", `line 8: egress.deny_networks.running[0]: "10.0.0.0/40"`},
		{"negative rate", complete + "egress:\n  connections:\n    rate: -1\n", "egress.connections.rate: "},
		{"dry run of nothing", complete + "egress:\n  connections:\n    dry_run: true\n", "of no use without a rate"},
		{"switch of no log", complete + "egress:\n  log_switch: 127.0.0.1:8721\n", `egress.log_switch: "127.0.0.1:8721": is of no use without a log`},
		{"switch for everybody", complete + "egress:\n  log: l\n  log_switch: 0.0.0.0:8721\n", `line 8: egress.log_switch: "0.0.0.0:8721"`},
		{"switch as a host service", complete + "egress:\n  log: l\n  log_switch: 127.0.0.1:8721\n  host_services: [\"127.0.0.1:8721/tcp\"]\n", "no container may reach"},
		{"resolver", complete + "resolvers: [dns.example]\n", `line 6: resolvers[0]: "dns.example"`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := loadConfig(write(t, c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want it to say %q", err, c.want)
			}
		})
	}
}

// FuzzConfig: an operator's file. It is refused with a reason that names what is
// wrong, or it makes a configuration that the daemon can be built with.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(complete))
	f.Add([]byte(complete + "port: 0\nmetrics: \"\"\nallow:\n- uid: 1000\n  orgs: [acme]\nresolvers: [192.0.2.53, \"192.0.2.54:5353\"]\nlog_level: debug\n"))
	f.Add([]byte(complete + "mtu: 576\nmode: vxlan\nsocket: s\nresolvers: [\"[::1]:53\", \"fe80::1%lo\"]\n"))
	f.Add([]byte("underlay: ::ffff:192.0.2.1\nserver: https://[::1]:1\ncredentials: c\nstate_dir: ../s\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c := defaults()
		if err := conf.Parse(text, c); err != nil {
			if err.Error() == "" {
				t.Errorf("%q is refused without a word", text)
			}
			return
		}
		o := c.daemon()
		if !o.Underlay.Is4() || o.Server == "" || o.Credentials == "" || o.StateDir == "" || o.Mode != "vxlan" && o.Mode != "wireguard" {
			t.Errorf("%q becomes %+v", text, o)
		}
		for _, g := range o.Allow {
			if len(g.Orgs)+len(g.Spaces)+len(g.Apps) == 0 {
				t.Errorf("%q grants nothing to %d", text, g.UID)
			}
		}
		for _, r := range o.Resolvers {
			if !r.IsValid() {
				t.Errorf("%q: resolver %v", text, r)
			}
		}
	})
}

const founded = `name: cell-1
underlay: 192.0.2.1
state_dir: state
foundation:
  policy_server: https://policy-server.service.cf.internal:4003
  ca_cert: certs/ca.pem
  client_cert: /etc/agent.pem
  client_key: /etc/agent-key.pem
  silk_controller: https://silk-controller.service.cf.internal:4103
`

// The page's configuration is one.
func TestConfigOfTheMovingPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations/moving-a-foundation.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "```yaml\n")
	text, _, ok := strings.Cut(text, "```")
	if !ok {
		t.Fatal("the page has no configuration")
	}
	if c, err := loadConfig(write(t, text)); err != nil || c.daemon().Foundation == nil {
		t.Errorf("%v: %+v", err, c)
	}
}

func TestFoundationConfig(t *testing.T) {
	path := write(t, founded)
	c, err := loadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	d := c.daemon()
	ca := filepath.Join(filepath.Dir(path), "certs", "ca.pem")
	if o := d.Foundation; o == nil || o.Policies.CA != ca || o.Leases.CA != ca || o.Leases.Key != "/etc/agent-key.pem" || o.LeaseLifetime != 0 ||
		o.Leases.URL != "https://silk-controller.service.cf.internal:4103" || d.Credentials != "" || d.Server != "" || d.Port != 4789 || d.Mode != api.ModeVXLAN {
		t.Errorf("%+v of %+v", o, d)
	}
	if c, err = loadConfig(write(t, founded+`  silk_controller_ca_cert: silk-ca.pem
  silk_daemon_client_cert: daemon.pem
  silk_daemon_client_key: daemon-key.pem
  network: 10.128.0.0/12
  subnet_prefix_length: 25
  lease_expiration_seconds: 3600
  policy_poll_interval_seconds: 2
  lease_poll_interval_seconds: 10
  client_timeout_seconds: 7
`)); err != nil {
		t.Fatal(err)
	}
	o := c.daemon().Foundation
	if filepath.Base(o.Leases.CA) != "silk-ca.pem" || filepath.Base(o.Leases.Key) != "daemon-key.pem" || o.Policies.Key != "/etc/agent-key.pem" ||
		o.Network.String() != "10.128.0.0/12" || o.SubnetBits != 25 || o.LeaseLifetime != time.Hour || o.PollPolicies != 2*time.Second ||
		o.PollLeases != 10*time.Second || o.Timeout != 7*time.Second {
		t.Errorf("%+v", o)
	}
	for name, c := range map[string]struct{ text, want string }{
		"both":          {founded + "server: https://127.0.0.1:4003\n", "give it or foundation, not both"},
		"credentials":   {founded + "credentials: cell-1\n", "the foundation's certificates are keys of foundation"},
		"encrypted":     {founded + "mode: wireguard\n", "must be vxlan with foundation"},
		"a free port":   {founded + "port: 0\n", "must be the foundation's"},
		"nameless":      {strings.Replace(founded, "name: cell-1\n", "", 1), "no credential says it"},
		"IPv6":          {strings.Replace(founded, "192.0.2.1", "2001:db8::1", 1), "must be an IPv4 address with foundation"},
		"http":          {strings.Replace(founded, "https://silk", "http://silk", 1), "silk_controller"},
		"no key":        {strings.Replace(founded, "  client_key: /etc/agent-key.pem\n", "", 1), "client_key"},
		"half a pair":   {founded + "  silk_daemon_client_cert: x.pem\n", "stand together"},
		"subnet length": {founded + "  subnet_prefix_length: 8\n", "does not go with subnet_prefix_length"},
		"a time":        {founded + "  client_timeout_seconds: -1\n", "number of seconds"},
		"unknown":       {founded + "  vni: 7\n", "vni"},
	} {
		if _, err := loadConfig(write(t, c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
