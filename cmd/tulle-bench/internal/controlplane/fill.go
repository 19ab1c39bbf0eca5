package controlplane

import (
	"context"
	"fmt"
	"math/rand/v2"

	"tulle/policy"
	"tulle/policy/api"
)

// Sizes at full scale.
const (
	apps     = 20_000
	policies = 60_000
	million  = 1_000_000
)

// atOnce is how many policies one request of the filling has; more than a
// hundred thousand do not fit into a request's 10 MiB.
const atOnce = 5_000

// appID looks like the GUIDs that platforms give.
func appID(n int) policy.AppID {
	return policy.AppID(fmt.Sprintf("%08x-7e1e-4a11-8000-%012x", uint32(n)*2654435761, n))
}

func tcp(source, destination policy.AppID, port uint16) api.Policy {
	return api.FromDomain(policy.Policy{Source: source, Destination: destination, Protocol: policy.TCP,
		Ports: policy.PortRange{Start: port, End: port}})
}

// somePolicies are n policies among so many apps: every app is
// the source of as many as another, of destinations by chance.
func somePolicies(n, apps int) []api.Policy {
	chance := rand.New(rand.NewPCG(1, 2))
	ps := make([]api.Policy, 0, n)
	for i := range n {
		// The port makes them different even where the pair is the same.
		ps = append(ps, tcp(appID(i%apps), appID(chance.IntN(apps)), uint16(1024+i/apps)))
	}
	return ps
}

// fill stores policies through the API.
func (s *site) fill(ctx context.Context, ps []api.Policy) error {
	u := s.user()
	defer u.close()
	for len(ps) > 0 {
		n := min(atOnce, len(ps))
		body, err := encode(ps[:n]...)
		if err != nil {
			return err
		}
		if _, err := u.do(ctx, "POST", pathPolicies, body); err != nil {
			return fmt.Errorf("fill: %w", err)
		}
		ps = ps[n:]
	}
	return nil
}
