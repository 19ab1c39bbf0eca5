package cfdump

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// Read reads a dump of a policy server's database, of a silk-controller's, or of
// both in one. Its error names the line, or the row, that is at fault.
func Read(text string) (store.Foundation, error) {
	t, err := scan(text, "groups", "destinations", "policies", "security_groups", "subnets")
	if err != nil {
		return store.Foundation{}, err
	}
	var f store.Foundation
	_, hasPolicies := t.columns["policies"]
	_, hasSubnets := t.columns["subnets"]
	if !hasPolicies && !hasSubnets {
		return f, errors.New("the dump makes neither the table policies of a policy server nor the table subnets of a silk-controller")
	}
	groups, err := t.groups(&f)
	if err != nil {
		return f, err
	}
	if err := t.policies(&f, groups); err != nil {
		return f, err
	}
	if err := t.securityGroups(&f); err != nil {
		return f, err
	}
	return f, t.subnets(&f)
}

// int reads a number of a row.
func (r row) int(column string) (int, error) {
	v, ok := r[column]
	if !ok || v.null {
		return 0, fmt.Errorf("column %s is missing", column)
	}
	n, err := strconv.Atoi(v.text)
	if err != nil {
		return 0, fmt.Errorf("column %s: %q is not a number", column, v.text)
	}
	return n, nil
}

// truth reads a boolean, which each database writes in its own way.
func (r row) truth(column string) (bool, error) {
	switch text := r[column].text; text {
	case "1", "t", "true", "TRUE":
		return true, nil
	case "", "0", "f", "false", "FALSE", "\x00":
		return false, nil
	case "\x01":
		return true, nil
	default:
		return false, fmt.Errorf("column %s: %q is neither true nor false", column, text)
	}
}

// groups are the tags in use, by row id, which is the tag.
func (t tables) groups(f *store.Foundation) (map[int]policy.AppID, error) {
	byID := make(map[int]policy.AppID)
	for _, r := range t.rows["groups"] {
		guid := r["guid"]
		if guid.null || guid.text == "" { // a tag that is free
			continue
		}
		id, err := r.int("id")
		if err != nil {
			return nil, fmt.Errorf("table groups: %w", err)
		}
		if id < 1 || id > int(policy.MaxTag) {
			return nil, fmt.Errorf("table groups: %s has the tag %d, which does not exist", guid.text, id)
		}
		kind := r["type"].text
		if kind == "" {
			kind = api.TypeApp
		}
		byID[id] = policy.AppID(guid.text)
		f.Tags.Tags = append(f.Tags.Tags, api.Tag{ID: policy.AppID(guid.text), Tag: policy.Tag(id).String(), Type: kind})
	}
	return byID, nil
}

func (t tables) policies(f *store.Foundation, groups map[int]policy.AppID) error {
	destinations := make(map[int]api.Destination)
	for _, r := range t.rows["destinations"] {
		id, err1 := r.int("id")
		group, err2 := r.int("group_id")
		start, err3 := r.int("start_port")
		end, err4 := r.int("end_port")
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			return fmt.Errorf("table destinations: %w", err)
		}
		if start == 0 && end == 0 { // from before there were ranges
			port, err := r.int("port")
			if err != nil {
				return fmt.Errorf("table destinations: %w", err)
			}
			start, end = port, port
		}
		destinations[id] = api.Destination{ID: groups[group], Protocol: r["protocol"].text, Ports: api.Ports{Start: start, End: end}}
	}
	for _, r := range t.rows["policies"] {
		source, err1 := r.int("group_id")
		destination, err2 := r.int("destination_id")
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("table policies: %w", err)
		}
		p := api.Policy{Source: api.Source{ID: groups[source]}, Destination: destinations[destination]}
		if p.Source.ID == "" || p.Destination.ID == "" {
			return fmt.Errorf("table policies: group %d or destination %d of a policy is not in the dump", source, destination)
		}
		f.Policies.Policies = append(f.Policies.Policies, p)
	}
	f.Policies.Total = len(f.Policies.Policies)
	return nil
}

func (t tables) securityGroups(f *store.Foundation) error {
	rows := t.rows["security_groups"]
	ids := make(map[string]int, len(rows))
	for _, r := range rows {
		id, err := r.int("id")
		if err != nil {
			return fmt.Errorf("table security_groups: %w", err)
		}
		ids[r["guid"].text] = id
	}
	for _, r := range rows {
		g := api.SecurityGroup{GUID: r["guid"].text, Name: r["name"].text}
		var err1, err2 error
		g.StagingDefault, err1 = r.truth("staging_default")
		g.RunningDefault, err2 = r.truth("running_default")
		errs := []error{err1, err2}
		for column, into := range map[string]any{"rules": &g.Rules, "staging_spaces": &g.StagingSpaces, "running_spaces": &g.RunningSpaces} {
			if text := r[column].text; text != "" {
				if err := json.Unmarshal([]byte(text), into); err != nil {
					errs = append(errs, fmt.Errorf("column %s: %w", column, err))
				}
			}
		}
		if err := errors.Join(errs...); err != nil {
			return fmt.Errorf("table security_groups: %s: %w", g.GUID, err)
		}
		f.SecurityGroups = append(f.SecurityGroups, g)
	}
	slices.SortFunc(f.SecurityGroups, func(a, b api.SecurityGroup) int { return ids[a.GUID] - ids[b.GUID] })
	return nil
}

func (t tables) subnets(f *store.Foundation) error {
	for _, r := range t.rows["subnets"] {
		underlay, err1 := netip.ParseAddr(r["underlay_ip"].text)
		subnet, err2 := netip.ParsePrefix(r["overlay_subnet"].text)
		renewed, err3 := r.int("last_renewed_at")
		if err := errors.Join(err1, err2, err3); err != nil {
			return fmt.Errorf("table subnets: %w", err)
		}
		f.Leases = append(f.Leases, store.FoundationLease{
			SilkLease: store.SilkLease{Underlay: underlay, Subnet: subnet}, Renewed: time.Unix(int64(renewed), 0)})
	}
	return nil
}
