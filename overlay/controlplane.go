package overlay

import (
	"context"

	"tulle/overlay/identity"
	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/client"
	"tulle/policy/foundation"
)

// controlPlane is what a Daemon asks of its control plane. There are two: a Tulle policy
// server (policy/client) and a foundation's policy server and silk-controller
// (policy/foundation). The methods are those of client.Client, whose comments hold
// for both.
type controlPlane interface {
	identity.Issuer
	Cell() string
	Lease(ctx context.Context, r api.LeaseRequest) (api.Lease, error)
	Release(ctx context.Context) error
	SetEndpoints(ctx context.Context, r api.EndpointsRequest) (api.EndpointsResponse, error)
	AppName(ctx context.Context, app policy.AppID) (api.AppName, error)
	Watch(ctx context.Context, handle client.Handler) error
	Status() client.Status
	Connected() bool
	Connection() (connected bool, changed <-chan struct{})
	Close()
}

var (
	_ controlPlane = (*client.Client)(nil)
	_ controlPlane = (*foundation.Client)(nil)
)
