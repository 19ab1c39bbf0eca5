package overlay

import (
	"context"
	"slices"

	"tulle/overlay/control"
)

// AddRules implements control.Handler. The rules are journalled when it returns, and
// hold where the cell goes by the attachers' rules. Who may attach the app may give
// its containers rules.
func (l *life) AddRules(ctx context.Context, p control.Peer, r control.RulesAdd) (control.RulesAdded, error) {
	got := control.RulesAdded{InForce: l.d.cfg.Egress.Static}
	unlock, err := l.locks.lock(ctx, r.Container)
	if err != nil {
		return got, control.Errorf(control.CodeUnavailable, "rules of %s: %v", r.Container, err)
	}
	defer unlock()
	e, ok := l.d.ledger.Get(r.Container)
	if !ok {
		return got, control.Errorf(control.CodeNotFound, "container %s is not attached to this cell", r.Container)
	}
	if err := l.d.auth.Attach(p, e.App); err != nil {
		return got, err
	}
	rules := slices.Clone(e.Rules)
	for _, rule := range r.Rules {
		if !slices.Contains(rules, rule) {
			rules = append(rules, rule)
		}
	}
	added := len(rules) - len(e.Rules)
	if added == 0 {
		return got, nil
	}
	if err := r.Room(len(e.Rules)); err != nil {
		return got, err
	}
	if err := l.d.ledger.SetRules(r.Container, rules); err != nil {
		return got, err
	}
	e.Rules = rules
	l.mu.Lock()
	at := l.attached[r.Container]
	there := at != nil && !at.waiting
	if at != nil {
		at.e.Rules = rules
	}
	l.mu.Unlock()
	// Where the groups hold, what is in force is the watch's alone: what were compiled
	// of them here could come behind what it compiles next.
	if there && got.InForce {
		l.mu.Lock()
		set := l.outside.compileLocked(e)
		l.mu.Unlock()
		l.outside.e.SetRules(e.Address, incarnationUnder(l.lease, e), set)
	}
	l.d.log.Info("container has more rules", "container", r.Container, "rules", added, "in force", got.InForce, "uid", p.UID)
	return got, nil
}
