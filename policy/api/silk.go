package api

import "encoding/json"

// Paths of the lease API, which is silk-controller's (mutual TLS, legacy root;
// reference: silk-controller, 1.2).
const (
	PathSilkLeases  = "/leases"         // GET -> SilkLeases
	PathSilkAcquire = "/leases/acquire" // PUT SilkAcquire -> SilkLease
	PathSilkRenew   = "/leases/renew"   // PUT SilkLease -> {}
	PathSilkRelease = "/leases/release" // PUT SilkRelease -> {}
)

// SilkLease is a cell's part of the overlay as silk-controller writes it. The
// fields are text: what stands in them is checked where the answer for bad ones
// is known.
type SilkLease struct {
	UnderlayIP          string `json:"underlay_ip"`
	OverlaySubnet       string `json:"overlay_subnet"`
	OverlayHardwareAddr string `json:"overlay_hardware_addr"`
}

// SilkLeases is the answer of GET /leases, in no order.
type SilkLeases struct {
	Leases []SilkLease `json:"leases"`
}

// MarshalJSON writes an empty list as [], never null.
func (l SilkLeases) MarshalJSON() ([]byte, error) {
	type plain SilkLeases
	l.Leases = orEmpty(l.Leases)
	return json.Marshal(plain(l))
}

// SilkAcquire asks for the lease of an underlay address: a block, or for a host
// without containers a single address.
type SilkAcquire struct {
	UnderlayIP      string `json:"underlay_ip"`
	SingleOverlayIP bool   `json:"single_overlay_ip"`
}

// SilkRelease gives the lease of an underlay address back.
type SilkRelease struct {
	UnderlayIP string `json:"underlay_ip"`
}
