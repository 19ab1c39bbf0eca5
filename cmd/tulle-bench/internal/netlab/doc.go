// Package netlab makes the hosts and containers that data paths are measured
// between, out of network namespaces that no one else sees: an underlay of two
// hosts joined by a veth pair, and on it what Tulle is measured against, the
// kernel's own VXLAN-GBP with routes and packet filter as silk sets them up.
//
// Everything is held by descriptors of this process and goes with them. It needs
// root.
package netlab
