package overlay

import (
	"net/netip"

	"tulle/overlay/dns"
	"tulle/overlay/endpoint"
	"tulle/policy"
	"tulle/policy/api"
)

// takeNames gives the resolver what an event says of names, and of the cells that
// are lost. Policies it hears of where they are entered and removed.
func (w *world) takeNames(e api.Event) {
	switch {
	case e.Snapshot != nil:
		s := e.Snapshot
		w.names.Replace(dns.Change{DomainsSet: s.Domains, RoutesSet: s.Routes, InstancesSet: w.instances(s.Instances)})
	case e.Delta != nil:
		d := e.Delta
		w.names.Apply(dns.Change{
			DomainsRemoved: d.DomainsRemoved, DomainsSet: d.DomainsSet, RoutesRemoved: d.RoutesRemoved, RoutesSet: d.RoutesSet,
			InstancesRemoved: d.InstancesRemoved, InstancesSet: w.instances(d.InstancesSet),
		})
	case e.Liveness != nil:
		w.lost = e.Liveness.Lost
	default:
		return
	}
	var leases []netip.Prefix
	for _, cell := range w.lost {
		if p, ok := w.peers[cell]; ok && cell != w.self {
			leases = append(leases, p.Subnet)
		}
	}
	w.names.SetLost(leases)
}

// instances are those of other cells; what lives here is known from its attach.
func (w *world) instances(list []api.Instance) []dns.Instance {
	out := make([]dns.Instance, 0, len(list))
	for _, i := range list {
		if i.Cell != w.self {
			out = append(out, dns.Instance{App: i.App, Address: i.Address, Index: i.Index})
		}
	}
	return out
}

// localInstance is a container of this cell as the resolver knows it.
func localInstance(e endpoint.Endpoint, app policy.AppID) dns.Instance {
	i := dns.Instance{App: app, Address: e.Address, Index: e.Instance}
	if e.App.Name != "" {
		i.Called = &dns.Called{Name: e.App.Name, Space: e.App.Space, Org: e.App.Org}
	}
	return i
}
