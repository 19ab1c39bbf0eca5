package server

import (
	"encoding/json"
	"testing"

	"tulle/policy/api"
)

// FuzzSilkLease: a renewal comes from any host that holds a legacy certificate.
// What is accepted is written back as the same lease.
func FuzzSilkLease(f *testing.F) {
	for _, body := range []string{
		`{"underlay_ip":"192.0.2.1","overlay_subnet":"10.255.77.0/24","overlay_hardware_addr":"ee:ee:0a:ff:4d:00"}`,
		`{"underlay_ip":"::ffff:192.0.2.1","overlay_subnet":"10.255.0.9/32","overlay_hardware_addr":"EE-EE-0A-FF-00-09"}`,
		`{"underlay_ip":"192.0.2.1","overlay_subnet":"10.255.0.9/24","overlay_hardware_addr":"ee:ee:0a:ff:00:09"}`,
		`{"underlay_ip":"192.0.2.1","overlay_subnet":"::/0","overlay_hardware_addr":"0000.0000.0000"}`,
		`{}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var req api.SilkLease
		if json.Unmarshal(body, &req) != nil {
			return
		}
		l, err := parseSilkLease(req)
		if err != nil {
			return
		}
		again, err := parseSilkLease(silkLease(l))
		if err != nil || again != l {
			t.Errorf("%s: %+v, written and read again: %+v, %v", body, l, again, err)
		}
	})
}
