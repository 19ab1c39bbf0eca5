// Package policy is the domain: applications, tags, protocols, port ranges and
// the policies between them, with their validation and the obvious evaluator.
//
// It answers one question, "may this application reach that one, on this
// protocol and port?", slowly and plainly. Package policy/table answers the
// same question in nanoseconds; tests hold the two against each other.
//
// The package is pure: no sockets, files, clock or logger. Values are immutable
// once made and may be shared between goroutines.
package policy
