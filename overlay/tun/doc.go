// Package tun answers how a container's packets come in and go out: whole
// super-packets, each behind its virtio header, over a TUN device's descriptor
// that somebody with rights in the container's network namespace made and passed
// to us. It looks into no packet.
//
// [FromFD] and [FromFile] make a [Kernel], the [Device] over a real descriptor;
// package tuntest has one in memory. One goroutine reads a device, any number
// write to it, anyone closes it. The reader waits in Go's poller, or in a set of
// package ready ([FromFileIn]).
//
// The wrapper never asks for the link's name, MTU or state in this process's own
// network namespace: the device lives in another, where the same name is
// another link.
package tun
