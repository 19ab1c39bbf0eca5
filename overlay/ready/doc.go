// Package ready answers how the reader of a descriptor waits until there is
// something to read, in two ways:
//
// A quiet descriptor costs nothing: its reader is a goroutine that waits for the
// one goroutine of the [Set], which waits in Go's poller.
//
// A busy one is read again within microseconds. There Go's scheduler costs more than
// the packet: it looks for other work, wakes a second thread to look as well, sleeps in
// epoll, is woken, and wakes a third one. So the reader of a busy descriptor sits down
// in one of a few seats, and waits in the kernel itself, on the thread it has, without
// telling the scheduler. It leaves when nothing came for [Patience].
//
// What that means for the rest of the program: a seated reader keeps a processor of
// Go's (a P) while it waits, so whoever makes a Set gives the program as many more of
// them by GOMAXPROCS. It is in the way of nobody who stops the world: the runtime
// interrupts it by signal, as it does a loop, and it is back after Patience without one.
//
// A Source has one reader. All else may be called from any goroutine.
package ready
