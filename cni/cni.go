// Package cni is the CNI plugin: the protocol around package attach.
//
// Run is one call of the plugin, over injected environment and streams; the
// specification's version is the one that the configuration asks for, 0.3.1 to
// 1.1.0. The daemon knows the endpoint under the container's id, and something
// beside the daemon keeps the device; so DEL needs no namespace.
//
// The rights are the runtime's: over the container's network namespace and
// /dev/net/tun. The daemon has none of them.
package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"tulle/cni/attach"
	"tulle/cni/netconf"
)

var supported = version.VersionsStartingFrom("0.3.1")

// Error codes of our own; the specification leaves those from 100 to plugins.
const (
	CodeNotAllowed uint = 100 // the daemon's configuration does not let this user attach that app
	CodeExists     uint = 101 // the container is attached already
	CodeRefused    uint = 102 // the policy server refuses the endpoint
	CodeDiffers    uint = 103 // CHECK found something else than ADD made
	CodeNoAddress  uint = 104 // the address asked for is in use, or not the cell's to give
	CodePortTaken  uint = 105 // a published port is another's; the message says whose
)

// timeout bounds a call: the daemon waits at most 5 s for its server.
const timeout = 30 * time.Second

// call is one call of the plugin.
type call struct {
	conf        *netconf.Conf
	containerID string
	netns       string
	device      string
	args        string
	env         func(string) string
}

func (c *call) container() attach.Container {
	return attach.Container{ID: c.containerID, Device: c.device, Netns: c.netns, Network: c.conf.Name, Socket: c.conf.Socket}
}

// Run does what CNI_COMMAND says and returns the exit status. The answer, or
// the error as the specification writes it, goes to stdout.
func Run(env func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	asked, err := dispatch(ctx, env, stdin, stdout)
	if err == nil {
		return 0
	}
	if env("CNI_COMMAND") == "" {
		fmt.Fprintf(stderr, "tulle-cni is a CNI plugin: a container runtime calls it (protocol versions %s)\n",
			strings.Join(supported.SupportedVersions(), ", "))
	}
	e := asError(err)
	if err := json.NewEncoder(stdout).Encode(failure{Version: asked, Error: e}); err != nil {
		fmt.Fprintln(stderr, e.Msg)
	}
	return 1
}

// failure is an error with the version in use, as section 2 "Error" of the
// specification wants it.
type failure struct {
	Version string `json:"cniVersion"`
	*types.Error
}

func asError(err error) *types.Error {
	var e *types.Error
	if errors.As(err, &e) {
		return e
	}
	return types.NewError(types.ErrInternal, err.Error(), "")
}

// dispatch returns the version that an error is to be written in.
func dispatch(ctx context.Context, env func(string) string, stdin io.Reader, stdout io.Writer) (asked string, err error) {
	asked = version.Current()
	command := env("CNI_COMMAND")
	if command == "VERSION" {
		return asked, supported.Encode(stdout)
	}
	verb, known := verbs[command]
	if !known {
		return asked, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_COMMAND %q is not known", command), "")
	}
	b, err := io.ReadAll(stdin)
	if err != nil {
		return asked, types.NewError(types.ErrIOFailure, "read the network configuration", err.Error())
	}
	conf, err := netconf.ParseHead(b)
	if err != nil {
		return asked, types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	if bad := (&version.Reconciler{}).Check(conf.CNIVersion, supported); bad != nil {
		return asked, types.NewError(types.ErrIncompatibleCNIVersion, "incompatible CNI versions", bad.Details())
	}
	asked = conf.CNIVersion
	if enough, err := version.GreaterThanOrEqualTo(asked, verb.since); err != nil || !enough {
		return asked, types.NewError(types.ErrIncompatibleCNIVersion, fmt.Sprintf("CNI %s has no %s", asked, command), "")
	}
	if verb.whole {
		if conf, err = netconf.Parse(b); err != nil {
			return asked, types.NewError(types.ErrDecodingFailure, err.Error(), "")
		}
	}
	if err := utils.ValidateNetworkName(conf.Name); err != nil {
		return asked, err
	}
	c := &call{conf: conf, containerID: env("CNI_CONTAINERID"), netns: env("CNI_NETNS"),
		device: env("CNI_IFNAME"), args: env("CNI_ARGS"), env: env}
	if err := c.validate(verb); err != nil {
		return asked, err
	}
	result, err := verb.do(c, ctx)
	if err != nil || result == nil {
		return asked, err
	}
	answer, err := result.GetAsVersion(asked)
	if err != nil {
		return asked, err
	}
	if err := answer.PrintTo(stdout); err != nil {
		return asked, types.NewError(types.ErrIOFailure, "write the result", err.Error())
	}
	return asked, nil
}

// verb is a command: the version that introduced it, and what it needs; whole is what
// the configuration says of containers.
type verb struct {
	since                   string
	container, netns, whole bool
	do                      func(*call, context.Context) (types.Result, error)
}

var verbs = map[string]verb{
	"ADD":    {since: "0.3.1", container: true, netns: true, whole: true, do: (*call).add},
	"DEL":    {since: "0.3.1", container: true, do: (*call).del},
	"CHECK":  {since: "0.4.0", container: true, netns: true, whole: true, do: (*call).check},
	"GC":     {since: "1.1.0", do: (*call).gc},
	"STATUS": {since: "1.1.0", whole: true, do: (*call).status},
}

func (c *call) validate(v verb) error {
	var missing []string
	if v.container && c.containerID == "" {
		missing = append(missing, "CNI_CONTAINERID")
	}
	if v.container && c.device == "" {
		missing = append(missing, "CNI_IFNAME")
	}
	if v.netns && c.netns == "" {
		missing = append(missing, "CNI_NETNS")
	}
	if len(missing) > 0 {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "missing "+strings.Join(missing, ", "), "")
	}
	if !v.container {
		return nil
	}
	if err := utils.ValidateContainerID(c.containerID); err != nil {
		return err
	}
	if err := utils.ValidateInterfaceName(c.device); err != nil {
		return err
	}
	return nil
}
