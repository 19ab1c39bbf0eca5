// Package overlay is the cell daemon: it joins the parts, and starts and stops
// them in their order.
//
//	 attachers ── control ──┐            ┌── policy/client ── policy server
//	                        ▼            ▼
//	 holder ◄── endpoint ◄─ Daemon ─► world ──► policy/table, fib
//	(kept fds)  (journal)      │                     │ read, never waited for
//	                           ▼                     ▼
//	 container ◄─ tun ──────► datapath (flow, dns) ◄──────► udp ── other cells
//
// A Daemon runs in lives. A life has one lease: it builds the tables, the fib and
// the Path over the lease's network, takes back the devices of the journalled
// endpoints, and only when the first table of this life is published begins to
// judge. A life ends when the daemon stops, when the lease runs out on this
// host's own clock, or when the server gives another; then everything that read a
// packet is closed first. The journal and the holder outlive lives and daemons.
//
// Three goroutines change things, each its own: the watch (what the control plane
// says: world), the registrar (what the control plane is told), and the lease's.
// Attaches and detaches run on the connections of control, one at a time a
// container. Packets run on the Path's goroutines and wait for none of them.
package overlay
