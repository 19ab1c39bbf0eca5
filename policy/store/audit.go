package store

import (
	"context"
	"time"

	"tulle/policy/api"
)

// Auditor is the part of a Store that remembers who changed what. Entries are
// written in the transaction of the change that they are about, so there is no
// change without its entry and no entry without its change. Only the newest are
// kept.
type Auditor interface {
	// Audit lists entries with an ID below before (0: the newest), newest first,
	// at most limit.
	Audit(ctx context.Context, before uint64, limit int) ([]api.AuditEntry, error)
}

// Actor is who asks for a change.
type Actor struct {
	Who  string // see api.AuditEntry
	From string
	// Cell is the cell whose credential the change was asked for with, "" for
	// others, and Issued when that was issued. A change of one that is revoked by
	// then is ErrRevoked.
	Cell   string
	Issued time.Time
}

// Self is the actor of what nobody asked for: a lease that expires.
var Self = Actor{Who: "server"}

type actorKey struct{}

// WithActor returns ctx carrying the actor of the changes made with it.
func WithActor(ctx context.Context, a Actor) context.Context {
	return context.WithValue(ctx, actorKey{}, a)
}

// ActorOf is the actor that WithActor put there, else Self.
func ActorOf(ctx context.Context) Actor {
	if a, ok := ctx.Value(actorKey{}).(Actor); ok {
		return a
	}
	return Self
}
