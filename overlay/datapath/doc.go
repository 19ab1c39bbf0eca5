// Package datapath moves packets between the containers of this cell and to and
// from other cells, and lets none pass without an allowing verdict.
//
// [Path] has one goroutine for each container's device (egress) and one for the
// VXLAN socket (ingress); what comes through WireGuard is carried in the tunnel's
// goroutines. The goroutine that read a packet carries it to its end:
// judges it, and writes it to a device or sends it to a peer, or drops it, counts
// why (a [Reason]) and answers its sender. On that way there is no lock but a flow
// shard's when a flow begins or ends, no allocation, no clock, no log.
//
//	egress    read ─ check ─ parse ─ source ─┬─ resolver
//	                                         ├─ overlay: judge ─┬─ device of a container here
//	                                         │                  └─ split ─ seal ─ send to the peer
//	                                         └─ outside: refused
//	ingress   receive ─ open ─ lease ─ tag ─ judge ─ coalesce ─ device
//
// A verdict is made of three things that others publish and that never wait for a
// packet: who is where (fib), which tag may reach which (policy/table), and which
// conversations were already judged (flow, which is the Path's own). A flow is
// recorded only under an allowing verdict of this cell's own table, at the source
// and at the destination each.
//
// Egress and ingress are the container's: egress is what it sends. Between two
// containers of this cell there is one verdict, for both ends have the same table.
//
// The daemon changes the tables, then the fib, then calls [Path.Cut], which ends
// the flows that are no longer allowed; see there.
package datapath
