package netconf_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tulle/overlay/control"
	"tulle/policy"
)

func nobody(string) string { return "" }

// TestPorts in both spellings, and those of the network.
func TestPorts(t *testing.T) {
	w, err := parsed(t, `"runtimeConfig": {"portMappings": [
		{"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "127.0.0.1"}, {"hostPort": 0, "containerPort": 81},
		{"hostPort": 53, "containerPort": 5353, "protocol": "udp"}, {"host_port": 61000, "container_port": 8080},
		{"hostPort": 443, "containerPort": 8443}]},
		"ports": [{"hostPort": 443, "containerPort": 8443}], "keep_ports": true`).Wish("", "c1", nobody)
	if err != nil {
		t.Fatal(err)
	}
	want := []control.Port{
		{Protocol: "tcp", HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 8080, Port: 80, Keep: true},
		{Protocol: "udp", HostPort: 53, Port: 5353, Keep: true},
		{HostPort: 61000, Port: 8080, Keep: true},
		{HostPort: 443, Port: 8443, Keep: true},
	}
	if diff := cmp.Diff(want, w.Ports, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
}

// TestGardenRules become a security group's, which is what the cell judges by.
func TestGardenRules(t *testing.T) {
	w, err := parsed(t, `"metadata": {"app_id": "a", "container_workload": "staging"}, "runtimeConfig": {"netOutRules": [
		{"protocol": 1, "networks": [{"start": "10.20.0.0", "end": "10.20.0.255"}, {"start": "10.21.0.1", "end": "10.21.0.1"}], "ports": [{"start": 5432, "end": 5432}, {"start": 6000, "end": 6010}], "log": true},
		{"protocol": 2, "networks": [{"start": "10.22.0.1"}]},
		{"protocol": 3, "networks": [{"start": "0.0.0.0", "end": "255.255.255.255"}], "icmps": {"type": 8, "code": 0}},
		{"protocol": 3, "networks": [{"start": "10.0.0.1"}], "icmps": {"type": 8}},
		{"protocol": 3, "networks": [{"start": "10.0.0.1"}]},
		{"networks": [{"start": "10.23.0.0", "end": "10.23.255.255"}]},
		{"protocol": 1, "networks": [], "ports": [{"start": 1, "end": 2}]}]}`).Wish("", "c1", nobody)
	if err != nil {
		t.Fatal(err)
	}
	want := []policy.SecurityRule{
		{Protocol: "tcp", Destination: "10.20.0.0-10.20.0.255,10.21.0.1", Ports: "5432,6000-6010", Log: true},
		{Protocol: "udp", Destination: "10.22.0.1", Ports: "1-65535"},
		{Protocol: "icmp", Destination: "0.0.0.0-255.255.255.255", Type: 8},
		{Protocol: "icmp", Destination: "10.0.0.1", Type: 8, Code: -1},
		{Protocol: "icmp", Destination: "10.0.0.1", Type: -1, Code: -1},
		{Protocol: "all", Destination: "10.23.0.0-10.23.255.255"},
	}
	if diff := cmp.Diff(want, w.Rules); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	for _, r := range w.Rules {
		if err := r.Check(); err != nil {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if w.Workload != policy.WorkloadStaging {
		t.Errorf("workload %q", w.Workload)
	}
}
