// Package netcfg is the only code that speaks netlink. It answers: how does a
// container's namespace get its device, address and route, and does the overlay
// network clash with something the host already has?
//
// Every function works in the network namespace of the *calling thread*. Whoever
// has just entered one (cni) or was started in one (contain) keeps its goroutine
// on that thread (runtime.LockOSThread) around the call; nothing here starts a
// goroutine that outlives the call, and nothing names a device of another
// namespace. In a test as root, the host's own eth0 is therefore out of reach.
//
// The package owns nothing: a device belongs to whoever holds its descriptor,
// and addresses and routes die with the device.
package netcfg
