package main

import (
	"testing"

	"tulle/cmd/internal/conf"
	"tulle/policy/lease"
)

// FuzzConfig: an operator's file. It is refused with a reason, or it makes a
// configuration that a server can be built with.
func FuzzConfig(f *testing.F) {
	f.Add([]byte("external: 127.0.0.1:4002\nnetwork: 10.9.0.0/16\nlease_bits: 24\n"))
	f.Add([]byte("external_tls: {cert: a.pem, key: b.pem}\nhosts: [a, 10.0.0.1]\nmax_policies: 1\nallowed_cors_domains: [\"*\"]\nmetrics: \"\"\n"))
	f.Add([]byte("network: 10.9.0.0/32\nlease_bits: -1\nlease_lifetime: 2562047h\n"))
	f.Add([]byte("network: fd00::/64\nlease_bits: 120\n"))
	f.Add([]byte("network: \"\"\nlease_lifetime: -1s\nhosts: []\n"))
	f.Add([]byte("uaa_url: https://[::1]\nuaa_port: 8443\nuaa_client_secret_file: s\ncc_url: http://localhost:9022/\nuaa_verification: keys\nuaa_issuer: x\n"))
	f.Add([]byte("uaa_url: http://127.0.0.1:80\nuaa_client_secret_file: s\ncc_url: https://cc\npolicy_cleanup_interval: 525600\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c := defaults()
		if err := conf.Parse(text, c); err != nil {
			if err.Error() == "" {
				t.Errorf("%q is refused without a word", text)
			}
			return
		}
		l := c.lease()
		if _, err := lease.NewPool(l.Network, l.Bits); err != nil || l.Lifetime <= 0 || c.MaxPolicies < 1 || c.Database == "" {
			t.Errorf("%q becomes %+v: %v", text, c, err)
		}
		if c.UAAURL != "" && (checkURL(c.uaaAddress()) != nil || checkURL(c.CCURL) != nil || c.UAASecretFile == "" || len(c.audience()) == 0) {
			t.Errorf("%q becomes %+v", text, c)
		}
	})
}
