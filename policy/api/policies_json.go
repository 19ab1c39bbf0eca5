package api

import (
	"encoding/json"

	"tulle/policy"
)

// NewPolicies is ps in the v1 shape, with its total.
func NewPolicies(ps []policy.Policy) Policies {
	list := make([]Policy, len(ps))
	for i, p := range ps {
		list[i] = FromDomain(p)
	}
	return Policies{Total: len(list), Policies: list}
}

// MarshalJSON writes an empty list as [], never null.
func (l Policies) MarshalJSON() ([]byte, error) {
	type plain Policies
	l.Policies = orEmpty(l.Policies)
	return json.Marshal(plain(l))
}
