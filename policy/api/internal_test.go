package api

import (
	"testing"
)

// FuzzInternal: what cells send (leases, endpoints, acknowledgements) and what
// the server streams to them. Either side may be the one that lies. What is read
// is written and read again as the same.
func FuzzInternal(f *testing.F) {
	for _, s := range []string{
		`{"underlay":"192.0.2.1","port":4789,"mode":"vxlan","subnet":"10.255.1.0/24","generation":3}`,
		`{"underlay":"192.0.2.1","port":1,"mode":"wireguard","key":"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","next_key":"AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","wireguard_port":2}`,
		`{"cell":"a","network":"10.255.0.0/16","subnet":"10.255.1.0/24","generation":18446744073709551615,"seconds":-1}`,
		`{"generation":1,"sequence":2,"endpoints":[{"container":"c","address":"10.255.1.2","app":{"name":"web","space":"s","org":"o"},"incarnation":1}]}`,
		`{"epoch":"e","revision":2,"apps":{"c":"g"},"refused":{"d":"why"}}`,
		`{"snapshot":{"epoch":"e","revision":7,"policies":[{"source":{"id":"a"},"destination":{"id":"b","protocol":"tcp","ports":{"start":1,"end":2}}}],"tags":[{"app":"a","tag":1}]}}`,
		`{"delta":{"revision":8,"policies_removed":[],"tags_removed":["a"],"endpoints_removed":[{"cell":"c","address":"10.255.1.2"}],"peers_set":[{"name":"p","subnet":"10.255.2.0/24"}]}}`,
		`{"heartbeat":{"revision":9,"floor":8}}`,
		`{"offers":[{"from":"a","to":"b","sequence":1,"key_id":"00","ciphertext":"AAAA"}],"held":[{"from":"0","to":"a","sequence":18446744073709551615}]}`,
		`{"address":"fe80::1%eth0","subnet":"10.255.1.0/33","tag":4294967296}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		again(t, b, new(LeaseRequest), new(LeaseRequest))
		again(t, b, new(Lease), new(Lease))
		again(t, b, new(EndpointsRequest), new(EndpointsRequest))
		again(t, b, new(EndpointsResponse), new(EndpointsResponse))
		again(t, b, new(Ack), new(Ack))
		again(t, b, new(SecretsRequest), new(SecretsRequest))
		again(t, b, new(Event), new(Event))
		again(t, b, new(Peer), new(Peer))
	})
}
