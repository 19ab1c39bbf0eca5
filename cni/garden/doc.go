// Package garden is Garden's external networker: guardian runs it for each
// container that it makes or destroys, and it calls the CNI plugins of its
// configuration, ours or anybody's.
//
// Run is one call, over injected arguments and streams. Flags, inputs, outputs,
// error texts and the state file are those of Cloud Foundry's
// garden-external-networker, so that it takes its place unseen. Calls run side by
// side: what they share is the state file, which is read and replaced under a lock
// and is whole after a crash.
//
// Better than the original on purpose: the pool ends at 65535, an up that fails
// leaves nothing, no iptables is needed, a handle is a name and not a path, and a
// down succeeds whatever became of its files.
package garden
