package control

import (
	"context"

	"tulle/policy"
)

// RulesAdd lets a container that is attached reach more outside the overlay, as
// Attach.Rules did: all of the rules or, if one is bad, none.
type RulesAdd struct {
	Container string                `json:"container"`
	Rules     []policy.SecurityRule `json:"rules"`
}

// RulesAdded is the answer.
type RulesAdded struct {
	// InForce: the rules hold now. Otherwise they are kept, and the cell follows the
	// control plane's security groups.
	InForce bool `json:"in_force"`
}

func (a RulesAdd) check() error {
	if err := checkContainer(a.Container); err != nil {
		return err
	}
	if len(a.Rules) > maxRules {
		return Errorf(CodeBadRequest, "%d rules, at most %d are possible", len(a.Rules), maxRules)
	}
	for i, r := range a.Rules {
		if err := r.Check(); err != nil {
			return Errorf(CodeBadRequest, "rule %d: %v", i+1, err)
		}
	}
	return nil
}

// Room refuses more rules than a container may have, of which it has some.
func (a RulesAdd) Room(has int) error {
	if has+len(a.Rules) > maxRules {
		return Errorf(CodeBadRequest, "container %s has %d rules, with %d more they would be over the %d that are possible", a.Container, has, len(a.Rules), maxRules)
	}
	return nil
}

// AddRules gives a container more rules of its own.
func (c *Client) AddRules(ctx context.Context, a RulesAdd) (RulesAdded, error) {
	var got RulesAdded
	err := c.do(ctx, opRulesAdd, a, &got)
	return got, err
}
