package egress_test

import (
	"bytes"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"tulle/overlay/egress"
	"tulle/overlay/trafficlog"
	"tulle/policy"
)

// lines gathers a log's.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) all(t *testing.T) []map[string]any {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []map[string]any
	dec := json.NewDecoder(bytes.NewReader(l.b.Bytes()))
	for dec.More() {
		var m map[string]any
		if err := dec.Decode(&m); err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

func TestTrafficLog(t *testing.T) {
	log := &lines{}
	now := time.Unix(1700000000, 0)
	traffic := trafficlog.New(trafficlog.Options{Out: log, Switches: trafficlog.Switches{Denied: true}, Denied: 2, HostIP: "192.0.2.1", HostID: "cell-1",
		Now: func() time.Time { return now }})
	t.Cleanup(traffic.Close)
	r := newRig(t, func(o *egress.Options) {
		o.Traffic = traffic
	})
	server, _ := tcpServer(t, r.world, "192.0.2.2:8000")
	logged := allow("tcp", "192.0.2.2", "8000")
	logged.Log = true
	c := r.container(1, set(t, allow("tcp", "192.0.2.2", "1-65535"), logged))
	if _, err := c.dial(server.String()); err != nil {
		t.Fatal(err)
	}
	until(t, "the connection is logged", func() bool { return len(log.all(t)) == 1 })
	for range 5 {
		_, err := c.dial("192.0.2.3:80")
		refused(t, err)
	}
	until(t, "all refusals are logged or held back", func() bool { s := traffic.Stats(); return s.Written+s.Limited == 6 })
	got := log.all(t)
	if len(got) != 3 {
		t.Fatalf("%d lines, want one accepted and two of five refusals", len(got))
	}
	field := func(m map[string]any, path ...string) any {
		for _, k := range path[:len(path)-1] {
			m, _ = m[k].(map[string]any)
		}
		return m[path[len(path)-1]]
	}
	for _, c := range []struct {
		line int
		path []string
		want any
	}{
		{0, []string{"message"}, "cfnetworking.iptables.egress-allowed"},
		{0, []string{"data", "packet", "direction"}, "egress"},
		{0, []string{"data", "packet", "allowed"}, true},
		{0, []string{"data", "packet", "src_ip"}, "10.255.7.1"},
		{0, []string{"data", "packet", "dst_ip"}, "192.0.2.2"},
		{0, []string{"data", "packet", "dst_port"}, 8000.0},
		{0, []string{"data", "packet", "protocol"}, "tcp"},
		{0, []string{"data", "source", "container_id"}, "c1"},
		{0, []string{"data", "source", "app_guid"}, "app-c1"},
		{0, []string{"data", "source", "space_guid"}, "space"},
		{0, []string{"data", "source", "organization_guid"}, "org"},
		{0, []string{"data", "source", "host_guid"}, "cell-1"},
		{0, []string{"data", "security_group"}, "g"},
		{1, []string{"message"}, "cfnetworking.iptables.egress-denied"},
		{1, []string{"data", "packet", "allowed"}, false},
		{1, []string{"data", "reason"}, "no_rule"},
	} {
		if got := field(got[c.line], c.path...); got != c.want {
			t.Errorf("line %d: %v is %v, want %v", c.line+1, c.path, got, c.want)
		}
	}
	// A rule without the flag logs nothing.
	c.rules(set(t, policy.SecurityRule{Protocol: "tcp", Destination: "192.0.2.2", Ports: "8000"}))
	if _, err := c.dial(server.String()); err != nil {
		t.Fatal(err)
	}
	until(t, "the connection is counted", func() bool { return r.e.Stats().Verdicts["allowed"] == 2 })
	if s := traffic.Stats(); s.Written+s.Limited+s.Lost != 6 {
		t.Errorf("%+v after a connection that nobody wants logged", s)
	}
	// Switched at run time: the same connection, and no refusal.
	traffic.Set(trafficlog.Switches{Allowed: true})
	_, err := c.dial("192.0.2.3:80")
	refused(t, err)
	if _, err := c.dial(server.String()); err != nil {
		t.Fatal(err)
	}
	until(t, "the connection is logged", func() bool { return traffic.Stats().Written == 4 })
	if last := log.all(t)[3]; field(last, "message") != "cfnetworking.iptables.egress-allowed" {
		t.Errorf("with only the allowed ones on: %v", last)
	}
}
