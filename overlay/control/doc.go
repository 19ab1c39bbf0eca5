// Package control is the cell's local API: how whoever has rights over a
// container's network namespace hands its TUN descriptor to the daemon, and how
// the daemon's state is asked for.
//
// The transport is a path-based unix stream socket, mode 0660, never abstract.
// A message is a 4-byte big-endian length and a JSON object; descriptors travel
// beside its first byte (SCM_RIGHTS). A request is {"op": "...", "body": …}, its
// answer {"ok": …} or {"error": {"code", "message"}}. One connection carries one
// request at a time. The connection that carried an attach with
// LifelineConnection stays open; its end is the detach.
//
// Serve runs one goroutine that reads and one that handles per connection. It
// owns every descriptor that arrives and closes all of them, whatever happens:
// a Handler duplicates what it keeps. Who asks is the kernel's word
// (SO_PEERCRED), and an Authorizer says what that uid may attach.
//
// A Client is for one goroutine at a time.
package control
