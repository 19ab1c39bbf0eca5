// Package contain is `tulle run`: it gives one command a container network of
// its own, without any runtime and without root, and keeps it from everything
// that is not the command's.
//
// A main that uses it calls Reexec before anything else: the stages below are
// the same binary, started again.
//
//	supervisor   outside, the caller's identity: holds a duplicate of the TUN
//	    │        descriptor and the lifeline to the daemon, passes signals on,
//	    │        exits as the command does
//	    │ socketpair; its end, or the supervisor's, ends the init
//	    ▼
//	init         pid 1 of new user, network, mount, pid and IPC namespaces, root
//	    │        of that user namespace: makes eth0, mounts, masks, reaps
//	    ▼
//	exec         a user namespace inside that one, which maps the command's own
//	             uid and nothing else: drops every capability, sets
//	             no_new_privs, closes all descriptors but three, becomes the
//	             command
//
// Why two user namespaces: the init needs the rights of the first for the
// command's whole life, and a process in a *child* user namespace can neither
// trace it nor undo its mounts, though both have the same uid on the host.
//
// What the command has: the caller's uid (as root: 65534 or the one named, never
// the host's 0, which even without a capability owns /etc/shadow and
// core_pattern), environment, working directory, standard streams, and the
// file system as that uid sees it. What it has not: capabilities, other
// descriptors, other processes, the host's network, the daemon's directories.
// Unix sockets elsewhere in the file system (D-Bus, docker.sock) are outside
// the network and so outside its policy.
//
// Nothing on the host is written: no file, no mount, no route. When any of the
// three processes dies, all that is left goes with it.
package contain
