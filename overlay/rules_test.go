package overlay

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"tulle/overlay/control"
	"tulle/policy"
)

// TestRulesAddedLater: who may attach the app may give its container rules, once
// each, and as many as a container may have; nobody else may, and what is refused
// changes nothing.
func TestRulesAddedLater(t *testing.T) {
	p := newPlane(t)
	const user, stranger = 4711, 4712
	one := p.cell("one", "127.0.0.1", func(c *Config) {
		c.Egress.Static = true
		c.Allow = []control.Grant{{UID: user, Apps: []string{"web"}}, {UID: stranger, Apps: []string{"db"}}}
	})
	one.attach("web-1", "web", control.LifelineNone)
	rule := func(i int) policy.SecurityRule {
		return policy.SecurityRule{Protocol: "tcp", Destination: fmt.Sprintf("10.%d.%d.1", i/256, i%256), Ports: "80"}
	}
	many := func(n int) (all []policy.SecurityRule) {
		for i := range n {
			all = append(all, rule(i))
		}
		return all
	}
	for _, row := range []struct {
		name      string
		uid       uint32
		container string
		rules     []policy.SecurityRule
		code      control.Code
		has       int // afterwards
	}{
		{"the app's attacher", user, "web-1", many(1), "", 1},
		{"again", user, "web-1", many(2), "", 2},
		{"nothing new", user, "web-1", many(2), "", 2},
		{"another app's attacher", stranger, "web-1", many(3), control.CodeNotAllowed, 2},
		{"nobody", 4713, "web-1", many(3), control.CodeNotAllowed, 2},
		{"no such container", user, "web-2", many(3), control.CodeNotFound, 2},
		{"all that there may be", 0, "web-1", many(4094 + 2)[2:], "", 4096},
		{"one more", 0, "web-1", many(4097)[4096:], control.CodeBadRequest, 4096},
	} {
		got, err := one.daemon.life.Load().AddRules(t.Context(), control.Peer{UID: row.uid}, control.RulesAdd{Container: row.container, Rules: row.rules})
		if codeOf(err) != row.code || err == nil && !got.InForce {
			t.Errorf("%s: %+v, %v", row.name, got, err)
		}
		if e, _ := one.daemon.ledger.Get("web-1"); len(e.Rules) != row.has {
			t.Errorf("%s: the container has %d rules, want %d", row.name, len(e.Rules), row.has)
		}
	}

	// Many at once: none is lost, and after a restart they are there.
	one.attach("db-1", "db", control.LifelineNone)
	var wg sync.WaitGroup
	for i := range 32 {
		client := one.client()
		wg.Go(func() {
			if _, err := client.AddRules(t.Context(), control.RulesAdd{Container: "db-1", Rules: many(i + 1)[i:]}); err != nil {
				t.Errorf("rule %d of many at once: %v", i, err)
			}
		})
	}
	wg.Wait()
	one.shut()
	one.run()
	e, _ := one.daemon.ledger.Get("db-1")
	for i := range 32 {
		if !slices.Contains(e.Rules, rule(i)) {
			t.Errorf("rule %d is lost", i)
		}
	}
}

// TestRulesAddedWhereGroupsHold: rules of the attachers' are kept, and what is in force
// stays the watch's to change. What was compiled here could be put in force behind it,
// from the groups of before.
func TestRulesAddedWhereGroupsHold(t *testing.T) {
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", nil)
	one.attach("web-1", "web", control.LifelineNone)
	l := one.daemon.life.Load()
	l.mu.Lock()
	// Compiling says of this group that it is bad.
	l.outside.groups["1"] = policy.SecurityGroup{GUID: "1", Name: "bad", RunningDefault: true, Rules: []policy.SecurityRule{{Protocol: "tcp", Destination: "nowhere", Ports: "80"}}}
	l.outside.order = []string{"1"}
	l.mu.Unlock()
	rules := []policy.SecurityRule{{Protocol: "tcp", Destination: "10.0.0.1", Ports: "80"}}
	got, err := l.AddRules(t.Context(), control.Peer{UID: 0}, control.RulesAdd{Container: "web-1", Rules: rules})
	if err != nil || got.InForce {
		t.Fatalf("%+v, %v", got, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.outside.said) != 0 {
		t.Errorf("the groups were compiled: %v", l.outside.said)
	}
	if e, _ := one.daemon.ledger.Get("web-1"); !slices.Equal(e.Rules, rules) || !slices.Equal(l.attached["web-1"].e.Rules, rules) {
		t.Errorf("the container has %v, and in this life %v", e.Rules, l.attached["web-1"].e.Rules)
	}
}
