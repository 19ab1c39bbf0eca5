// Package udp answers how the datagrams between cells are sent and received in
// bulk: many datagrams in one system call, by the kernel's UDP segmentation
// (UDP_SEGMENT, UDP_GRO) where there is one and by sendmmsg and recvmmsg where
// not. It looks into no datagram.
//
// [Listen] opens a real socket; package udptest has a network in memory. One
// goroutine receives from a Conn, any number send on it, anyone closes it.
// The receiver waits in Go's poller, or in a set of package ready. Send and Receive
// allocate nothing; their system calls do not wait, are short, and are made without
// telling Go's scheduler, which would look for other work in the meantime.
package udp
