// Package ca answers two questions of the control plane's mutual TLS: how the
// certificates of its parties come to be, and who the other end of a connection
// is.
//
// There are three roots, each with one purpose and a key of its own, so that no
// certificate of one kind passes for another however its names read:
//
//	cells      client certificates of cell daemons, for the internal API
//	instances  certificates of containers, for connections between containers
//	server     the policy server's own certificates
//
// The internal API verifies clients against the cells root alone: a container's
// certificate ends in a TLS alert. The role and the name are URI SANs:
//
//	tulle://cells/cell-1                 the cell's name
//	tulle://instances/APP/INSTANCE       one container of an application
//	tulle://spaces/*                     the cell may host any application
//	tulle://spaces/ORG/SPACE             … the applications of this space, by name
//	tulle://spaces/GUID                  … or by the space's GUID
//
// Names are path-escaped within the URI. A cell certificate without any space
// hosts nothing.
//
// A fourth root, legacy, is optional and off by default. It stands for programs
// that know nothing of these names (the vxlan-policy-agent, the silk-daemon), so
// that there the root alone tells the role.
//
// Roots are made once (Create) by `tulle-policy-server init`, opened by the
// server, and safe for concurrent use. Private keys never leave their files but
// for signing; every key file is 0600 and no existing file is ever overwritten.
package ca
