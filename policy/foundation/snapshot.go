package foundation

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/lease"
)

// slice is what a list of policies says: the policies, the tags of their apps.
type slice struct {
	policies []api.Policy
	tags     []api.AppTag
}

// sliceOf holds a list against itself. A policy that cannot be is left out (the
// original's API v0 stores port 65536), and told. A list in which an app has two
// tags, or a tag two apps, is of no moment of any store: an error, and nothing of it
// counts.
func sliceOf(list []api.Policy, hosts map[policy.AppID]bool) (s slice, leftOut []error, err error) {
	tags, owners := map[policy.AppID]policy.Tag{}, map[policy.Tag]policy.AppID{}
	give := func(app policy.AppID, text string) error {
		tag, err := policy.ParseTag(text)
		switch {
		case err != nil:
			return err
		case tag == policy.NoTag || tag > policy.MaxTag:
			return fmt.Errorf("app %s has tag %q, expected 0001 to FFFF", app, text)
		case tags[app] != policy.NoTag && tags[app] != tag:
			return fmt.Errorf("app %s has two tags, %v and %v", app, tags[app], tag)
		case owners[tag] != "" && owners[tag] != app:
			return fmt.Errorf("tag %v is of two apps, %s and %s", tag, owners[tag], app)
		}
		tags[app], owners[tag] = tag, app
		return nil
	}
	for _, p := range list {
		sourceTag, destinationTag := p.Source.Tag, p.Destination.Tag
		p.Source.Tag, p.Destination.Tag = "", "" // which the domain's type has not
		if _, err := p.Domain(); err != nil {
			leftOut = append(leftOut, fmt.Errorf("policy from %q to %q: %w", p.Source.ID, p.Destination.ID, err))
			continue
		}
		if !hosts[p.Source.ID] && !hosts[p.Destination.ID] {
			continue // of a space's GUID, which is no app's, or more than was asked for
		}
		for _, end := range []struct {
			app policy.AppID
			tag string
		}{{p.Source.ID, sourceTag}, {p.Destination.ID, destinationTag}} {
			if err := give(end.app, end.tag); err != nil {
				return slice{}, nil, err
			}
		}
		s.policies = append(s.policies, p)
	}
	for app, tag := range tags {
		s.tags = append(s.tags, api.AppTag{App: app, Tag: tag})
	}
	slices.SortFunc(s.tags, func(a, b api.AppTag) int { return int(a.Tag) - int(b.Tag) })
	return s, leftOut, nil
}

// peersOf is the other cells of a list of leases. The controller checks little of
// what it stores (reference: measured, lease API): a lease that is no part of the
// pool, whose hardware address is not its own, or that holds what another has, is
// left out and told, and the others stand. Of two that claim the same, one that was
// a peer before is believed.
func (c *Client) peersOf(list []api.SilkLease, before []api.Peer) (peers []api.Peer, leftOut []error) {
	c.mu.Lock()
	own := c.subnet
	c.mu.Unlock()
	known := make(map[string]bool, len(before))
	for _, p := range before {
		known[p.Underlay.String()+" "+p.Subnet.String()] = true
	}
	rank := func(l api.SilkLease) int {
		if known[l.UnderlayIP+" "+l.OverlaySubnet] {
			return 0
		}
		return 1
	}
	ordered := slices.Clone(list)
	slices.SortStableFunc(ordered, func(a, b api.SilkLease) int {
		return cmp.Or(rank(a)-rank(b), strings.Compare(a.UnderlayIP, b.UnderlayIP))
	})
	underlays, subnets := map[netip.Addr]bool{}, map[netip.Prefix]bool{own: true}
	for _, l := range ordered {
		p, err := c.peerOf(l)
		switch {
		case err == nil && p.Underlay == c.opt.Underlay:
			continue
		case err == nil && (underlays[p.Underlay] || subnets[p.Subnet]):
			err = fmt.Errorf("%s is another's already", p.Subnet)
		}
		if err != nil {
			leftOut = append(leftOut, fmt.Errorf("lease of %q: %w", l.UnderlayIP, err))
			continue
		}
		underlays[p.Underlay], subnets[p.Subnet] = true, true
		peers = append(peers, p)
	}
	slices.SortFunc(peers, func(a, b api.Peer) int { return a.Underlay.Compare(b.Underlay) })
	return peers, leftOut
}

func (c *Client) peerOf(l api.SilkLease) (api.Peer, error) {
	underlay, err := netip.ParseAddr(l.UnderlayIP)
	if err != nil || !underlay.Is4() {
		return api.Peer{}, errors.New("the underlay is no IPv4 address")
	}
	subnet, err := netip.ParsePrefix(l.OverlaySubnet)
	switch {
	case err != nil:
		return api.Peer{}, err
	case !c.pool.Contains(subnet) && !c.pool.ContainsSingle(subnet):
		return api.Peer{}, fmt.Errorf("%s is no /%d of %s, nor a single address", subnet, c.opt.SubnetBits, c.opt.Network)
	case !strings.EqualFold(l.OverlayHardwareAddr, lease.Hardware(subnet)):
		return api.Peer{}, fmt.Errorf("its hardware address is %q, expected %s", l.OverlayHardwareAddr, lease.Hardware(subnet))
	}
	// A lease has no generation here: one that was another's meanwhile is another peer's.
	return api.Peer{Name: "silk-" + underlay.String(), Kind: api.KindSilk, Mode: api.ModeVXLAN, Underlay: underlay, Port: c.opt.Port,
		Subnet: subnet, Generation: 1}, nil
}
