package api

import "tulle/policy"

// Policies is the v1 list: request of create and delete, answer of list and
// cleanup. Total is optional in and ignored on requests.
type Policies struct {
	Total    int      `json:"total_policies"`
	Policies []Policy `json:"policies"`
}

// Policy is a policy in the v1 shape. Ports are plain ints here since a request
// may hold anything; Validate and Domain turn it into a policy.Policy.
type Policy struct {
	Source      Source      `json:"source"`
	Destination Destination `json:"destination"`
}

// Source is the end that opens flows. Tag is set in the internal API only.
type Source struct {
	ID  policy.AppID `json:"id"`
	Tag string       `json:"tag,omitempty"`
}

// Destination is the end that is reached.
type Destination struct {
	ID       policy.AppID `json:"id"`
	Tag      string       `json:"tag,omitempty"`
	Protocol string       `json:"protocol"`
	Ports    Ports        `json:"ports"`
}

// Ports is a range, both ends included.
type Ports struct {
	Start int `json:"start"`
	End   int `json:"end"`
}

// FromDomain is p in the v1 shape, without tags.
func FromDomain(p policy.Policy) Policy {
	return Policy{
		Source: Source{ID: p.Source},
		Destination: Destination{
			ID:       p.Destination,
			Protocol: p.Protocol.String(),
			Ports:    Ports{Start: int(p.Ports.Start), End: int(p.Ports.End)},
		},
	}
}
