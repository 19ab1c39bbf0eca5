package netconf_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"tulle/cni/netconf"
)

func parsed(t *testing.T, keys string) *netconf.Conf {
	t.Helper()
	if keys != "" {
		keys = "," + keys
	}
	c, err := netconf.Parse([]byte(`{"cniVersion":"1.1.0","name":"net","app":{"name":"web"}` + keys + `}`))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestWish: what a runtime asks for is had, or is refused by name.
func TestWish(t *testing.T) {
	for _, c := range []struct{ name, keys, args, want string }{
		{"nothing", ``, "", "invalid IP"},
		{"ips", `"runtimeConfig":{"ips":["10.255.7.9/32"]}`, "", "10.255.7.9"},
		{"ips without a length", `"runtimeConfig":{"ips":["10.255.7.9"]}`, "", "10.255.7.9"},
		{"podman says it twice", `"runtimeConfig":{"ips":["10.255.7.9"]}`, "IP=10.255.7.9", "10.255.7.9"},
		{"args", ``, "IgnoreUnknown=1;IP=10.255.7.9", "10.255.7.9"},
		{"two addresses", `"runtimeConfig":{"ips":["10.255.7.9","10.255.7.10"]}`, "", "error: one address"},
		{"IPv6", `"runtimeConfig":{"ips":["fd00::1/64"]}`, "", "error: no IPv4 address"},
		{"no address", ``, "IP=here", "error: no IPv4 address"},
		{"mac", `"runtimeConfig":{"mac":"02:42:0a:ff:07:09"}`, "", "invalid IP"},
		{"bad mac", `"runtimeConfig":{"mac":"no"}`, "", "error: no unicast Ethernet address"},
		{"multicast mac", ``, "MAC=01:00:5e:00:00:01", "error: no unicast Ethernet address"},
		{"ports", `"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp"}]}`, "", "invalid IP"},
		{"port at no address", `"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"hostIP":"here"}]}`, "", "error: hostIP \"here\" is no address"},
		{"no ports", `"runtimeConfig":{"portMappings":[],"bandwidth":{"ingressRate":0}}`, "", "invalid IP"},
		{"a rule of no protocol", `"runtimeConfig":{"netOutRules":[{"protocol":4,"networks":[{"start":"0.0.0.0"}]}]}`, "", "error: netOutRules[0]: protocol 4"},
		{"bandwidth", `"runtimeConfig":{"bandwidth":{"egressRate":1000,"egressBurst":1000}}`, "", "invalid IP"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, err := parsed(t, c.keys).Wish(c.args, "c1", func(string) string { return "" })
			got := w.Address.String()
			if err != nil {
				got = "error: " + err.Error()
			}
			want, refusal := strings.CutPrefix(c.want, "error: ")
			if refusal != (err != nil) || !strings.Contains(got, want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TLS is terminated unless the network says no, or the container is Garden's.
func TestTLS(t *testing.T) {
	for _, c := range []struct{ name, keys, want string }{
		{"nothing said", ``, "{0 false  }"},
		{"off", `"tls":{"enabled":false,"backend":80}`, "nil"},
		{"a port and an identity", `"tls":{"backend":8081,"client_certificate":true,"identity":"proxy","off":"x"}`, "{8081 true proxy }"},
		{"Garden", `"metadata":{"app_id":"a"}`, "nil"},
		{"Garden, with a port but not switched on", `"metadata":{"app_id":"a"},"tls":{"backend":80}`, "nil"},
		{"Garden, switched on", `"metadata":{"app_id":"a"},"tls":{"enabled":true}`, "{0 false  }"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, err := parsed(t, c.keys).Wish("", "c1", func(string) string { return "" })
			if err != nil {
				t.Fatal(err)
			}
			got := "nil"
			if w.TLS != nil {
				got = fmt.Sprint(*w.TLS)
			}
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestNames(t *testing.T) {
	own := netip.MustParseAddr("169.254.0.2")
	for _, c := range []struct{ name, keys, want string }{
		{"the daemon's resolver", ``, "[169.254.0.2] [] []"},
		{"the network's domains", `"dns":{"search":["apps.internal"],"options":["ndots:1"]}`, "[169.254.0.2] [apps.internal] [ndots:1]"},
		{"the network's servers", `"dns":{"nameservers":["192.0.2.53"]}`, "[192.0.2.53] [] []"},
		{"the runtime's", `"dns":{"nameservers":["192.0.2.53"],"search":["a"],"options":["x"]},"runtimeConfig":{"dns":{"servers":["192.0.2.54"],"searches":["b"],"options":["y"]}}`, "[192.0.2.54] [b] [y]"},
		{"the runtime's domains alone", `"dns":{"options":["x"]},"runtimeConfig":{"dns":{"searches":["b"]}}`, "[169.254.0.2] [b] [x]"},
	} {
		d := parsed(t, c.keys).Names(own)
		if got := fmt.Sprint(d.Nameservers, d.Search, d.Options); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}
