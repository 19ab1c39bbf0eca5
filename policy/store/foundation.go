package store

import (
	"fmt"
	"net/netip"
	"time"

	"tulle/policy"
	"tulle/policy/api"
)

// Foundation is what a Cloud Foundry policy server and silk-controller have
// stored: what the first one's external API answers at
// /networking/v1/external/policies and …/tags, what the second one's at /leases,
// or what package cfdump reads out of their databases.
type Foundation struct {
	Policies       api.Policies
	Tags           api.Tags
	SecurityGroups []api.SecurityGroup
	Leases         []FoundationLease
}

// FoundationLease is a lease of a silk cell.
type FoundationLease struct {
	SilkLease
	Renewed time.Time
}

// SilkLeasesOf are the leases of a silk-controller's answer, which does not tell
// when they were renewed: now.
func SilkLeasesOf(answer api.SilkLeases, now time.Time) (leases []FoundationLease, err error) {
	for _, l := range answer.Leases {
		underlay, err := netip.ParseAddr(l.UnderlayIP)
		if err != nil {
			return nil, fmt.Errorf("lease of %q: %w", l.UnderlayIP, err)
		}
		subnet, err := netip.ParsePrefix(l.OverlaySubnet)
		if err != nil {
			return nil, fmt.Errorf("lease of %s: %w", underlay, err)
		}
		leases = append(leases, FoundationLease{SilkLease{underlay, subnet}, now})
	}
	return leases, nil
}

// FromFoundation makes a backup of it. Tags and leases stay as they are, so that
// cells of both kinds mean the same by them; tags below the highest that nobody has
// are free. A lease runs out, lifetime after it was renewed; what has run out by
// now is left out.
func FromFoundation(f Foundation, lifetime time.Duration, now time.Time) (*Backup, error) {
	b := &Backup{Kind: BackupKind, Version: BackupVersion, At: now, PoliciesUpdated: now,
		Policies: f.Policies.Policies, SecurityGroups: f.SecurityGroups}
	if len(f.SecurityGroups) > 0 {
		b.GroupsUpdated = now
	}
	var err error
	if b.Tags, err = foundationTags(f); err != nil {
		return nil, err
	}
	for _, l := range f.Leases {
		expires := l.Renewed.Add(lifetime)
		if !expires.After(now) {
			continue
		}
		if l.Subnet != l.Subnet.Masked() || !l.Underlay.Is4() {
			return nil, fmt.Errorf("the lease %s of %s is not one of a silk cell", l.Subnet, l.Underlay)
		}
		b.Cells = append(b.Cells, BackupCell{Live: true, Renewed: l.Renewed, Expires: expires,
			Peer: api.Peer{Name: SilkName(l.Underlay), Kind: api.KindSilk, Mode: api.ModeVXLAN, Underlay: l.Underlay,
				Port: SilkPort, Subnet: l.Subnet, Generation: 1}})
	}
	if _, err := b.Check(policy.MaxTag); err != nil {
		return nil, fmt.Errorf("policies and tags do not belong together, take both again at one time: %w", err)
	}
	return b, nil
}

func foundationTags(f Foundation) (tags []BackupTag, err error) {
	used := make(map[policy.AppID]bool)
	for _, p := range f.Policies.Policies {
		used[p.Source.ID], used[p.Destination.ID] = true, true
	}
	byTag := make(map[policy.Tag]policy.AppID)
	types := make(map[policy.Tag]string)
	var highest policy.Tag
	for _, t := range f.Tags.Tags {
		tag, err := policy.ParseTag(t.Tag)
		switch {
		case err != nil:
			return nil, err
		case tag == policy.NoTag || tag > policy.MaxTag:
			return nil, fmt.Errorf("tag %s of %s does not exist", t.Tag, t.ID)
		case byTag[tag] != "":
			return nil, fmt.Errorf("tag %s is that of %s and of %s", t.Tag, byTag[tag], t.ID)
		}
		kind := t.Type
		if kind == api.TypeApp {
			kind = ""
		}
		if used[t.ID] || kind != "" { // else its last policy was deleted between the two answers
			byTag[tag], types[tag] = t.ID, kind
			highest = max(highest, tag)
		}
	}
	for tag := policy.Tag(1); tag <= highest; tag++ {
		tags = append(tags, BackupTag{Tag: tag, App: byTag[tag], Type: types[tag]})
	}
	return tags, nil
}

// SilkPort is where silk cells listen.
const SilkPort = 4789

// SilkName is the name of the peer that leases by its underlay address. The
// colon is in no cell's name.
func SilkName(underlay netip.Addr) string { return "silk:" + underlay.String() }
