package cni

import (
	"context"
	"errors"

	"github.com/containernetworking/cni/pkg/types"

	"tulle/cni/attach"
	"tulle/overlay/control"
)

func (c *call) add(ctx context.Context) (types.Result, error) {
	wish, err := c.conf.Wish(c.args, c.containerID, c.env)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
	}
	got, err := attach.Add(ctx, c.container(), wish)
	if err != nil {
		return nil, coded(err)
	}
	r, err := c.result(got)
	if err != nil {
		return nil, errors.Join(err, attach.Undo(ctx, c.container()))
	}
	return r, nil
}

func (c *call) del(ctx context.Context) (types.Result, error) {
	return nil, coded(attach.Del(ctx, c.container()))
}

// check compares what ADD answered with the daemon and the namespace.
func (c *call) check(ctx context.Context) (types.Result, error) {
	address, err := c.addressGiven()
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
	}
	return nil, coded(attach.Check(ctx, c.container(), address))
}

// gc ends what the runtime forgot. Without a list of valid attachments, none is:
// so libcni takes it for its own half of the work, and says nothing to ours.
func (c *call) gc(ctx context.Context) (types.Result, error) {
	var keep []string
	for _, a := range c.conf.ValidAttachments {
		keep = append(keep, attach.EndpointName(a.ContainerID, a.IfName))
	}
	return nil, coded(attach.Collect(ctx, c.conf.Socket, c.conf.Name, keep))
}

// status says whether an ADD could be served.
func (c *call) status(ctx context.Context) (types.Result, error) {
	if err := attach.Available(ctx, c.conf.Socket); err != nil {
		return nil, types.NewError(types.ErrPluginNotAvailable, err.Error(), "")
	}
	return nil, nil
}

// coded gives errors the specification's codes.
func coded(err error) error {
	if err == nil {
		return nil
	}
	return types.NewError(codeOf(err), err.Error(), "")
}

func codeOf(err error) uint {
	switch {
	case errors.Is(err, attach.ErrNamespace):
		return types.ErrInvalidNetNS
	case errors.Is(err, attach.ErrNoDaemon):
		return types.ErrTryAgainLater
	case errors.Is(err, attach.ErrDiffers):
		return CodeDiffers
	case errors.Is(err, attach.ErrUnknown):
		return types.ErrUnknownContainer
	}
	var e *control.Error
	if !errors.As(err, &e) {
		return types.ErrInternal
	}
	switch e.Code {
	case control.CodePoolEmpty, control.CodeUnreachable, control.CodeUnavailable:
		return types.ErrTryAgainLater
	case control.CodeBadRequest:
		return types.ErrInvalidNetworkConfig
	case control.CodeNotAllowed:
		return CodeNotAllowed
	case control.CodeExists:
		return CodeExists
	case control.CodeNoAddress:
		return CodeNoAddress
	case control.CodePortTaken:
		return CodePortTaken
	case control.CodeRefused:
		return CodeRefused
	}
	return types.ErrInternal
}
