package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"tulle/policy"
)

// Paths of security groups. The first two are the external API's (scope
// network.admin), the others are polled by agents and follow the original
// (reference: policy-api, 5.3).
const (
	PathSecurityGroups = "/v1/security-groups"        // GET -> SecurityGroups
	PathSecurityGroup  = "/v1/security-groups/{guid}" // GET, PUT SecurityGroup -> SecurityGroup; DELETE -> 204

	PathInternalGroups        = "/networking/{version}/internal/security_groups"              // GET ?space_guids=…&from=…&limit=… -> GroupsPage
	PathInternalGroupsUpdated = "/networking/{version}/internal/security_groups_last_updated" // GET -> nanoseconds since 1970, bare
)

// SecurityGroup is a group as it is managed. In the body of a PUT the guid may
// be left out: it is the path's.
type SecurityGroup struct {
	GUID           string                `json:"guid"`
	Name           string                `json:"name"`
	Rules          []policy.SecurityRule `json:"rules"`
	StagingDefault bool                  `json:"staging_default"`
	RunningDefault bool                  `json:"running_default"`
	StagingSpaces  []string              `json:"staging_space_guids"`
	RunningSpaces  []string              `json:"running_space_guids"`
}

// MarshalJSON writes empty lists as [], never null.
func (g SecurityGroup) MarshalJSON() ([]byte, error) {
	type plain SecurityGroup
	g.Rules, g.StagingSpaces, g.RunningSpaces = orEmpty(g.Rules), orEmpty(g.StagingSpaces), orEmpty(g.RunningSpaces)
	return json.Marshal(plain(g))
}

// SecurityGroups is the answer of GET /v1/security-groups, by GUID.
type SecurityGroups struct {
	SecurityGroups []SecurityGroup `json:"security_groups"`
}

// MarshalJSON writes an empty list as [], never null.
func (g SecurityGroups) MarshalJSON() ([]byte, error) {
	type plain SecurityGroups
	g.SecurityGroups = orEmpty(g.SecurityGroups)
	return json.Marshal(plain(g))
}

// NewSecurityGroup is the group in the API's shape.
func NewSecurityGroup(g policy.SecurityGroup) SecurityGroup { return SecurityGroup(g) }

// DecodeSecurityGroup reads the body of a PUT of the group guid and checks it.
// The error names the place of the first fault.
func DecodeSecurityGroup(guid string, body []byte) (policy.SecurityGroup, error) {
	// The fields of a rule that ICMP needs are told from those that are 0.
	var in struct {
		SecurityGroup
		Rules []struct {
			policy.SecurityRule
			Type *int `json:"type"`
			Code *int `json:"code"`
		} `json:"rules"`
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		return policy.SecurityGroup{}, fmt.Errorf("security group: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return policy.SecurityGroup{}, errors.New("security group: something follows the JSON value")
	}
	g := policy.SecurityGroup(in.SecurityGroup)
	switch {
	case g.GUID != "" && g.GUID != guid:
		return g, fmt.Errorf("guid %q: is not the path's %q", g.GUID, guid)
	case !isText(guid):
		return g, fmt.Errorf("guid %q: is empty or no text", guid)
	case !isText(g.Name):
		return g, fmt.Errorf("name %q: is empty or no text", g.Name)
	}
	g.GUID = guid
	for i, r := range in.Rules {
		rule := r.SecurityRule
		for _, f := range []struct {
			name string
			from *int
			to   *int
		}{{"type", r.Type, &rule.Type}, {"code", r.Code, &rule.Code}} {
			switch {
			case f.from != nil:
				*f.to = *f.from
			case rule.Protocol == "icmp" || rule.Protocol == "icmpv6":
				return g, fmt.Errorf("rules[%d]: %s: is missing, and protocol %s needs it (-1 is any)", i, f.name, rule.Protocol)
			}
		}
		if err := rule.Check(); err != nil {
			return g, fmt.Errorf("rules[%d]: %w", i, err)
		}
		g.Rules = append(g.Rules, rule)
	}
	for _, f := range []struct {
		name   string
		values []string
	}{{"staging_space_guids", g.StagingSpaces}, {"running_space_guids", g.RunningSpaces}} {
		for i, v := range f.values {
			if !isText(v) {
				return g, fmt.Errorf("%s[%d]: %q is empty or no text", f.name, i, v)
			}
		}
	}
	return g, nil
}

// isText reports whether every database can hold s, and there is something to
// hold.
func isText(s string) bool { return s != "" && utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// PolledGroup is a group as agents poll it: the rules are a string that holds
// their JSON, which is also a valid Go string literal, as agents unquote it.
type PolledGroup struct {
	GUID           string   `json:"guid"`
	Name           string   `json:"name"`
	Rules          string   `json:"rules"`
	StagingDefault bool     `json:"staging_default"`
	RunningDefault bool     `json:"running_default"`
	StagingSpaces  []string `json:"staging_space_guids"`
	RunningSpaces  []string `json:"running_space_guids"`
}

// GroupsPage is one page of groups; Next is where the next begins, 0 the end.
type GroupsPage struct {
	Next   int64         `json:"next"`
	Groups []PolledGroup `json:"security_groups"`
}

// NewGroupsPage is a page in the shape that agents poll.
func NewGroupsPage(groups []policy.SecurityGroup, next int64) (GroupsPage, error) {
	page := GroupsPage{Next: next, Groups: make([]PolledGroup, len(groups))}
	for i, g := range groups {
		rules, err := json.Marshal(orEmpty(g.Rules))
		if err != nil {
			return page, err
		}
		page.Groups[i] = PolledGroup{GUID: g.GUID, Name: g.Name, Rules: string(rules),
			StagingDefault: g.StagingDefault, RunningDefault: g.RunningDefault,
			StagingSpaces: orEmpty(g.StagingSpaces), RunningSpaces: orEmpty(g.RunningSpaces)}
	}
	return page, nil
}
