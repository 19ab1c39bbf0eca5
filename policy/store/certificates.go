package store

import (
	"context"
	"net/netip"

	"tulle/policy"
)

// SubjectStore knows what a container's certificate says of it, and who an app is.
type SubjectStore interface {
	// App is one entry of the registry, without its number of instances. ErrNotFound.
	App(ctx context.Context, guid policy.AppID) (App, error)
	// Subject is the endpoint of that cell and container. ErrNotFound.
	Subject(ctx context.Context, cell, container string) (Subject, error)
}

// Subject is an endpoint with where its app belongs.
type Subject struct {
	Container          string
	Address            netip.Addr
	App                policy.AppID
	SpaceGUID, OrgGUID string // "": the app is known by its GUID alone
}
