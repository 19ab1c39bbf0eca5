// Package packet knows the bytes of a container's traffic: IPv4, IPv6, TCP, UDP and
// ICMP headers, their checksums, and the virtio_net_hdr before every packet of a
// TUN device. It answers what a packet is ([Parse]), whether a container's
// offload request is honest ([Virtio.Check]), how a super-packet becomes the
// packets of the wire ([Split]) and they one again ([Coalescer]), and what an
// answer to a refused packet looks like ([AppendReset], [AppendUnreachable]).
// It decides nothing about who may talk to whom.
//
// The package is pure: no sockets, clock or logger, no goroutine, no state but
// the Coalescer, which belongs to one goroutine. Any goroutine may call the
// functions. Nothing on a packet's way allocates; the Append functions grow the
// slice they are given only where its capacity ends.
//
// Slices given are borrowed for the call, unless a comment says otherwise. Only
// CompleteChecksum, DecrementTTL and the Coalescer write into a packet.
//
// Words: a super-packet is one IP packet that stands for several, as the
// kernel's segmentation offloads make them; its headers count once, its payload
// is cut into segments of the virtio header's GSO size.
package packet
