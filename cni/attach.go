package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/overlay/netcfg"
)

// provisionalMTU is the device's until the daemon has said which one it is.
const provisionalMTU = 1500

func (c *call) add(ctx context.Context) (_ types.Result, err error) {
	app, instance, err := c.conf.Identify(c.args, c.env)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
	}
	ns, err := netcfg.Open(c.netns)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetNS, err.Error(), "")
	}
	defer ns.Close()
	client, err := dial(c.conf.Socket)
	if err != nil {
		return nil, err
	}
	defer client.Close()

	var tun *os.File
	if err := netcfg.Do(ns, func() (err error) {
		// An app that connects to its own address goes through lo.
		if err := netcfg.LoopbackUp(); err != nil {
			return err
		}
		tun, err = netcfg.CreateTUN(c.device, provisionalMTU)
		return err
	}); err != nil {
		return nil, err
	}
	// From here on the daemon's duplicates keep the device.
	defer tun.Close()

	request := control.Attach{Container: c.container(), App: app, Instance: instance,
		Device: c.device, Lifeline: control.LifelineNone}
	pidfd := openProcess(c.netns, ns)
	if pidfd != nil {
		defer pidfd.Close()
		request.Lifeline = control.LifelinePidfd
	}
	got, err := client.Attach(ctx, request, tun, pidfd)
	if err != nil {
		return nil, refusal("attach to the cell", err)
	}
	defer func() {
		if err != nil {
			// Also when ctx is what ended it.
			dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
			defer cancel()
			err = errors.Join(err, client.Detach(dctx, control.Detach{Container: c.container()}))
		}
	}()
	if err := netcfg.Do(ns, func() error {
		return netcfg.Configure(netcfg.Device{Name: c.device, Address: got.Address, MTU: got.MTU})
	}); err != nil {
		return nil, err
	}
	return c.result(got)
}

// del succeeds when there is nothing left, whatever became of the namespace. It
// does not without the daemon: the endpoint is in its journal, and the runtime
// has to ask again.
func (c *call) del(ctx context.Context) (types.Result, error) {
	client, err := dial(c.conf.Socket)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	if err := client.Detach(ctx, control.Detach{Container: c.container()}); err != nil {
		return nil, refusal("detach from the cell", err)
	}
	return nil, nil
}

// check compares what ADD answered with the daemon and the namespace.
func (c *call) check(ctx context.Context) (types.Result, error) {
	address, err := c.addressGiven()
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
	}
	ns, err := netcfg.Open(c.netns)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetNS, err.Error(), "")
	}
	defer ns.Close()
	client, err := dial(c.conf.Socket)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	endpoints, err := client.List(ctx)
	if err != nil {
		return nil, refusal("list the cell's endpoints", err)
	}
	found := false
	for _, e := range endpoints {
		if e.Container != c.container() {
			continue
		}
		found = true
		if e.Address != address.Addr() {
			return nil, types.NewError(CodeDiffers, fmt.Sprintf("container %s has %s at the cell, not %s", e.Container, e.Address, address.Addr()), "")
		}
	}
	if !found {
		return nil, types.NewError(types.ErrUnknownContainer, fmt.Sprintf("the cell has no container %s", c.container()), "")
	}
	if err := netcfg.Do(ns, func() error {
		return netcfg.Check(netcfg.Device{Name: c.device, Address: address})
	}); err != nil {
		return nil, types.NewError(CodeDiffers, err.Error(), "")
	}
	return nil, nil
}

// status says whether an ADD could be served.
func (c *call) status(ctx context.Context) (types.Result, error) {
	client, err := dial(c.conf.Socket)
	if err != nil {
		return nil, types.NewError(types.ErrPluginNotAvailable, asError(err).Msg, asError(err).Details)
	}
	defer client.Close()
	if _, err := client.Status(ctx); err != nil {
		return nil, types.NewError(types.ErrPluginNotAvailable, "ask the cell daemon", err.Error())
	}
	return nil, nil
}

func dial(socket string) (*control.Client, error) {
	client, err := control.Dial(socket)
	if err != nil {
		return nil, types.NewError(types.ErrTryAgainLater, "no cell daemon on "+socket+": start tulle-celld, or name its socket in the network configuration", err.Error())
	}
	return client, nil
}

// refusal gives the daemon's refusals the specification's codes.
func refusal(doing string, err error) error {
	code := types.ErrInternal
	var e *control.Error
	if errors.As(err, &e) {
		switch e.Code {
		case control.CodePoolEmpty, control.CodeUnreachable, control.CodeUnavailable:
			code = types.ErrTryAgainLater
		case control.CodeBadRequest:
			code = types.ErrInvalidNetworkConfig
		case control.CodeNotAllowed:
			code = CodeNotAllowed
		case control.CodeExists:
			code = CodeExists
		case control.CodeRefused:
			code = CodeRefused
		}
	}
	return types.NewError(code, doing+": "+err.Error(), "")
}

// openProcess is the container's process where the namespace is named by it
// (/proc/PID/ns/net): its end is then the detach, should the runtime forget. nil
// where it is not, or where the process has gone or changed in the meantime.
func openProcess(netns string, ns *os.File) *os.File {
	id, ok := strings.CutPrefix(netns, "/proc/")
	if !ok {
		return nil
	}
	id, ok = strings.CutSuffix(id, "/ns/net")
	pid, err := strconv.Atoi(id)
	if !ok || err != nil {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	// The number may have been given to another process since ns was opened.
	if same, err := netcfg.Same(ns, netns); err != nil || !same {
		_ = f.Close()
		return nil
	}
	return f
}
