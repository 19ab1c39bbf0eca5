package foundation

import (
	"bytes"
	"net/netip"
	"testing"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/lease"
)

// FuzzPolicies: the server of a foundation, or whoever plays it, answers anything. What
// counts of it has policies that can be, each of an app of this cell's, and gives no app
// two tags and no tag two apps.
func FuzzPolicies(f *testing.F) {
	f.Add([]byte(`{"total_policies":1,"policies":[{"source":{"id":"web","tag":"0001"},"destination":{"id":"db","tag":"0002","protocol":"tcp","ports":{"start":80,"end":90}}}]}`))
	f.Add([]byte(`{"policies":[{"source":{"id":"web","tag":"0001"},"destination":{"id":"db","tag":"1","protocol":"udp","ports":{"start":1,"end":65536}}}]}`))
	f.Add([]byte(`{"policies":[{"source":{"id":"web","tag":"FFFF"},"destination":{"id":"web","tag":"FFFE","protocol":"tcp","port":80,"ports":{"start":80,"end":80}}},{}]}`))
	hosts := map[policy.AppID]bool{"web": true, "db": true}
	f.Fuzz(func(t *testing.T, b []byte) {
		var got api.Policies
		if decode(&got)(bytes.NewReader(b)) != nil {
			return
		}
		s, leftOut, err := sliceOf(got.Policies, hosts)
		if err != nil && (len(s.policies) != 0 || len(s.tags) != 0) {
			t.Errorf("%v, and %+v counts", err, s)
		}
		if len(s.policies)+len(leftOut) > len(got.Policies) {
			t.Errorf("%d policies and %d left out of %d", len(s.policies), len(leftOut), len(got.Policies))
		}
		tags, apps := map[policy.AppID]policy.Tag{}, map[policy.Tag]policy.AppID{}
		for _, at := range s.tags {
			if at.Tag == policy.NoTag || at.Tag > policy.MaxTag || tags[at.App] != policy.NoTag || apps[at.Tag] != "" {
				t.Errorf("%+v, twice or none", at)
			}
			tags[at.App], apps[at.Tag] = at.Tag, at.App
		}
		for _, p := range s.policies {
			d, err := p.Domain()
			if err != nil || d.Validate() != nil {
				t.Errorf("%+v: %v, %v", p, err, d.Validate())
			}
			if !hosts[d.Source] && !hosts[d.Destination] || tags[d.Source] == policy.NoTag || tags[d.Destination] == policy.NoTag {
				t.Errorf("%+v is not this cell's, or has no tags", p)
			}
		}
	})
}

// FuzzLeases: a controller lists anything. The peers that come of it each have an
// underlay address and a subnet to themselves, within the network, neither being this
// cell's own.
func FuzzLeases(f *testing.F) {
	network, own := netip.MustParsePrefix("10.255.0.0/16"), netip.MustParsePrefix("10.255.7.0/24")
	pool, err := lease.NewPool(network, 24)
	if err != nil {
		f.Fatal(err)
	}
	c := &Client{opt: Options{Network: network, SubnetBits: 24, Underlay: netip.MustParseAddr("192.0.2.1"), Port: 4789}, pool: pool, subnet: own}
	f.Add([]byte(`{"leases":[{"underlay_ip":"192.0.2.2","overlay_subnet":"10.255.30.0/24","overlay_hardware_addr":"ee:ee:0a:ff:1e:00"},
		{"underlay_ip":"192.0.2.1","overlay_subnet":"10.255.7.0/24","overlay_hardware_addr":"ee:ee:0a:ff:07:00"}]}`))
	f.Add([]byte(`{"leases":[{"underlay_ip":"192.0.2.2","overlay_subnet":"10.255.0.9/32","overlay_hardware_addr":"ee:ee:0a:ff:00:09"},
		{"underlay_ip":"192.0.2.3","overlay_subnet":"10.255.0.9/32","overlay_hardware_addr":"ee:ee:0a:ff:00:09"}]}`))
	f.Add([]byte(`{"leases":[{"underlay_ip":"::ffff:192.0.2.2","overlay_subnet":"10.255.30.0/23","overlay_hardware_addr":"EE:ee:0a:ff:1e:00"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var got api.SilkLeases
		if decode(&got)(bytes.NewReader(b)) != nil {
			return
		}
		peers, leftOut := c.peersOf(got.Leases, nil)
		if len(peers)+len(leftOut) > len(got.Leases) {
			t.Errorf("%d peers and %d left out of %d", len(peers), len(leftOut), len(got.Leases))
		}
		for i, p := range peers {
			if !p.Underlay.Is4() || p.Underlay == c.opt.Underlay || !p.Subnet.IsValid() || p.Subnet.Overlaps(own) ||
				p.Subnet.Masked() != p.Subnet || !network.Contains(p.Subnet.Addr()) || p.Subnet.Bits() < 24 || p.Kind != api.KindSilk || p.Mode != api.ModeVXLAN {
				t.Errorf("%+v is a peer", p)
			}
			for _, q := range peers[:i] {
				if p.Underlay == q.Underlay || p.Subnet.Overlaps(q.Subnet) {
					t.Errorf("%+v and %+v are peers", p, q)
				}
			}
		}
		// Whoever was a peer before is believed before others.
		if again, _ := c.peersOf(got.Leases, peers); len(again) != len(peers) {
			t.Errorf("%d peers, and %d when asked again", len(peers), len(again))
		}
	})
}
