package garden

import (
	"context"
	"fmt"

	"tulle/cni/attach"
	"tulle/cni/netconf"
	"tulle/policy"
)

// netOutInput is guardian's for one rule, and for several. It names the container's
// address too, which the handle already stands for.
type netOutInput struct {
	Rule  *netconf.NetOutRule  `json:"netout_rule"`
	Rules []netconf.NetOutRule `json:"netout_rules"`
}

// netOut lets a container that is up reach more, all that is asked for or nothing.
// Only our own plugin can: others are told of rules when a container is made.
func (n networker) netOut(ctx context.Context, action, handle string, in netOutInput) error {
	socket, err := n.nets.socket()
	if err != nil {
		return fmt.Errorf("unrecognized action: %s: %w", action, err)
	}
	asked := in.Rules
	if in.Rule != nil {
		asked = append(asked, *in.Rule)
	}
	var rules []policy.SecurityRule
	for i, r := range asked {
		rule, opens, err := r.Rule()
		if err == nil && opens {
			err = rule.Check()
		}
		if err != nil {
			return fmt.Errorf("%s: rule %d: %w", action, i+1, err)
		}
		if !opens {
			fmt.Fprintf(n.log, "%s of %s: rule %d has no networks and opens nothing\n", action, handle, i+1)
			continue
		}
		rules = append(rules, rule)
	}
	if len(rules) == 0 {
		return nil
	}
	inForce, err := attach.AddRules(ctx, attach.Container{ID: handle, Device: device, Socket: socket}, rules)
	if err != nil {
		return fmt.Errorf("%s: %w", action, err)
	}
	if !inForce {
		fmt.Fprintf(n.log, "%s of %s: the cell goes by the security groups of the control plane, the rules are kept and not in force\n", action, handle)
	}
	return nil
}
