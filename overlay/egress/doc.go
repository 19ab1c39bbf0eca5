// Package egress carries what containers say to the world outside the overlay,
// through ordinary sockets of the daemon, and what the world says to their
// forwarded ports.
//
// An [Egress] is the data path's Outside: its readers hand it a container's
// packets, and it keeps a netstack.Stack for each container that ever sent one.
// A conversation is judged before anything of it leaves the host:
//
//	packet ─ netstack ─ judge ─┬─ refuse (RST, ICMP) and log
//	                           └─ socket ─ connect ─ judge again ─ copy both ways
//
// The judgement ([Egress.judge]) has two parts. What no rule can open comes first:
// addresses that mean this host or no single host in whatever spelling, whatever
// the kernel's routing calls local at that moment, tunnel, control and metrics
// ports. Then the container's own rules (package rules). Live conversations are
// judged again when rules or surroundings change, and end when they would not be
// allowed any more.
//
// TCP sockets are watched by one poller for all ([poller]); who learns of little
// carries it at once, and what takes longer is a worker's ([workers]).
//
// Every socket's source port is noted in a bounded log (package natlog), so that it
// can be said later whose it was.
package egress
