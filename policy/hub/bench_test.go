package hub

import (
	"fmt"
	"net/netip"
	"testing"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// foundation is 1,000 cells with 50 containers each, of 10,000 apps in five
// instances, each app with ten policies.
func foundation() *Index {
	s := &store.State{Epoch: "e", Revision: 1}
	app := func(i int) policy.AppID { return policy.AppID(fmt.Sprintf("app-%d", i%10_000)) }
	for i := range 50_000 {
		s.Endpoints = append(s.Endpoints, api.Endpoint{
			Cell: fmt.Sprintf("cell-%d", i%1000), Container: fmt.Sprintf("c-%d", i), App: app(i / 5), Incarnation: uint64(i),
			Address: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}),
		})
	}
	for i := range 100_000 {
		s.Policies = append(s.Policies, policy.Policy{
			Source: app(i / 10), Destination: app(i/10 + 1 + i%10*37), Protocol: policy.TCP, Ports: policy.PortRange{Start: 80, End: 80},
		})
	}
	for i := range 10_000 {
		s.Tags = append(s.Tags, api.AppTag{App: app(i), Tag: policy.Tag(i + 1)})
	}
	for i := range 1000 {
		s.Peers = append(s.Peers, api.Peer{Name: fmt.Sprintf("cell-%d", i)})
	}
	return NewIndex(s)
}

// A policy comes or goes, and the cells that it concerns get their deltas.
func BenchmarkPolicyChange(b *testing.B) {
	x := foundation()
	p := []api.Policy{api.FromDomain(policy.Policy{
		Source: "app-1", Destination: "app-2", Protocol: policy.UDP, Ports: policy.PortRange{Start: 1, End: 9},
	})}
	cells := 0
	for b.Loop() {
		d := api.Delta{Revision: x.revision + 1}
		if d.Revision%2 == 0 {
			d.PoliciesAdded = p
		} else {
			d.PoliciesRemoved = p
		}
		ch, err := x.Apply(d)
		if err != nil {
			b.Fatal(err)
		}
		concerned := map[string]bool{}
		x.EachConcerned(ch, func(cell string) { concerned[cell] = true })
		for cell := range concerned {
			x.Delta(cell, []*Change{ch})
		}
		cells = len(concerned)
	}
	b.ReportMetric(float64(cells), "cells")
}

func BenchmarkSnapshot(b *testing.B) {
	x := foundation()
	b.ReportAllocs()
	for b.Loop() {
		x.Snapshot("cell-7")
	}
}

// A cell's floor, with nothing known of any app yet.
func BenchmarkFloor(b *testing.B) {
	h := &Hub{x: foundation(), opt: Options{}.withDefaults()}
	for b.Loop() {
		h.Floor("cell-7")
	}
}
