package overlay

import (
	"net/netip"
	"testing"

	"tulle/overlay/control"
	"tulle/policy"
	"tulle/policy/api"
)

// TestWhatHoldsForAContainer: its workload and its space choose groups and deny
// networks; a bad rule takes no other with it; where the attachers' rules hold, no
// group does.
func TestWhatHoldsForAContainer(t *testing.T) {
	p := newPlane(t)
	deny := func(c *Config) {
		c.Egress.DenyAlways = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
		c.Egress.DenyRunning = []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}
		c.Egress.DenyStaging = []netip.Prefix{netip.MustParsePrefix("10.3.0.0/16")}
	}
	tcpTo := func(to, ports string) policy.SecurityRule {
		return policy.SecurityRule{Protocol: "tcp", Destination: to, Ports: ports}
	}
	groups := []api.SecurityGroup{
		api.SecurityGroup(policy.SecurityGroup{GUID: "1", Name: "running", RunningDefault: true, Rules: []policy.SecurityRule{tcpTo("10.0.0.0/8", "80"), tcpTo("nowhere", "80"), tcpTo("10.9.0.9", "7")}}),
		api.SecurityGroup(policy.SecurityGroup{GUID: "2", Name: "staging", StagingDefault: true, Rules: []policy.SecurityRule{tcpTo("10.0.0.0/8", "81")}}),
		api.SecurityGroup(policy.SecurityGroup{GUID: "3", Name: "space", RunningSpaces: []string{"s1"}, Rules: []policy.SecurityRule{tcpTo("10.0.0.0/8", "82")}}),
		api.SecurityGroup(policy.SecurityGroup{GUID: "4", Name: "space by name", StagingSpaces: []string{"acme/dev"}, Rules: []policy.SecurityRule{tcpTo("10.0.0.0/8", "83")}}),
	}
	one := p.cell("one", "127.0.0.1", deny)
	static := p.cell("two", "127.0.0.2", func(c *Config) { deny(c); c.Egress.Static = true })
	for _, c := range []*cell{one, static} {
		c.daemon.life.Load().outside.take(&api.GroupChange{Whole: true, Set: groups})
	}
	for _, row := range []struct {
		cell       *cell
		name       string
		workload   policy.Workload
		space, org string
		rules      []policy.SecurityRule
		want       string // of the packets below, in turn
	}{
		// 10.0.0.1 at ports 80 to 83, 10.9.0.9:7, and port 80 or 81 of the deny networks
		{one, "app", "", "", "", nil, "80=allowed 81=no_rule 82=no_rule 83=no_rule 7=allowed always=deny_network running=deny_network staging=allowed"},
		{one, "task", policy.WorkloadTask, "s1", "", nil, "80=allowed 81=no_rule 82=allowed 83=no_rule 7=allowed always=deny_network running=deny_network staging=allowed"},
		{one, "another-space", policy.WorkloadApp, "s2", "", nil, "80=allowed 81=no_rule 82=no_rule 83=no_rule 7=allowed always=deny_network running=deny_network staging=allowed"},
		{one, "staging", policy.WorkloadStaging, "dev", "acme", nil, "80=no_rule 81=allowed 82=no_rule 83=allowed 7=no_rule always=deny_network running=allowed staging=deny_network"},
		{static, "own-rules", policy.WorkloadApp, "s1", "", []policy.SecurityRule{tcpTo("10.0.0.0/8", "83")}, "80=no_rule 81=no_rule 82=no_rule 83=allowed 7=no_rule always=deny_network running=deny_network staging=no_rule"},
		{one, "own-rules-that-do-not-hold", policy.WorkloadApp, "", "", []policy.SecurityRule{tcpTo("10.0.0.0/8", "83")}, "80=allowed 81=no_rule 82=no_rule 83=no_rule 7=allowed always=deny_network running=deny_network staging=allowed"},
	} {
		a := row.cell.attachWith(row.name, policy.AppID(row.name), control.LifelineConnection, func(r *control.Attach) {
			r.Workload, r.App.Space, r.App.Org, r.Rules = row.workload, row.space, row.org, row.rules
		})
		e, ok := row.cell.daemon.ledger.Get(a.id)
		if !ok {
			t.Fatalf("%s is not there", row.name)
		}
		l := row.cell.daemon.life.Load()
		l.mu.Lock()
		set := l.outside.compileLocked(e)
		l.mu.Unlock()
		port := uint16(80)
		if row.workload == policy.WorkloadStaging {
			port = 81
		}
		got := ""
		for _, q := range []struct {
			name, to string
			port     uint16
		}{{"80", "10.0.0.1", 80}, {"81", "10.0.0.1", 81}, {"82", "10.0.0.1", 82}, {"83", "10.0.0.1", 83}, {"7", "10.9.0.9", 7},
			{"always", "10.1.0.1", port}, {"running", "10.2.0.1", port}, {"staging", "10.3.0.1", port}} {
			v := set.Judge(policy.Packet{Protocol: "tcp", To: netip.MustParseAddr(q.to), Port: q.port})
			got += " " + q.name + "=" + v.Reason.String()
		}
		if got[1:] != row.want {
			t.Errorf("%s: %s\nwant %s", row.name, got[1:], row.want)
		}
	}
}
