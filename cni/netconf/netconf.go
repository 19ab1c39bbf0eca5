// Package netconf is the plugin's configuration as a runtime hands it over on
// standard input, and what it says about a container: whose it is, which address
// and which names it wants. It decodes and decides; it opens nothing.
package netconf

import (
	"cmp"
	"encoding/json"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"tulle/overlay/control"
	"tulle/policy"
	"tulle/policy/api"
)

// Conf is a network's configuration. Keys that are not ours belong to the
// runtime or to other plugins and are left alone.
type Conf struct {
	types.PluginConf

	// Socket of the cell daemon; control.DefaultSocket when empty.
	Socket string `json:"socket,omitempty"`
	// App is the application of every container of the network that does not say
	// its own.
	App api.AppRef `json:"app"`
	// NamePattern finds the application in a container's name: a regular
	// expression over the whole name with the groups app, space, org and instance.
	NamePattern string `json:"name_pattern,omitempty"`
	// TLS says how port 61443 is terminated; absent: to the app's port 8080, but for
	// Garden's containers, where the platform's own proxy may have the port.
	TLS *TLS `json:"tls,omitempty"`
	// Ports are published for every container of the network, beside those that the
	// runtime asks for: for runtimes that keep published ports to themselves.
	Ports []PortMapping `json:"ports,omitempty"`
	// KeepPorts leaves them bound for a while when a container has gone.
	KeepPorts bool `json:"keep_ports,omitempty"`
	// Metadata is what Garden's runtime says about the container.
	Metadata Metadata `json:"metadata"`
	// Runtime is what the runtime says about this container, as far as the network
	// declares the capability.
	Runtime Runtime `json:"runtimeConfig"`
}

// TLS is the termination of TLS for the containers of the network.
type TLS struct {
	Enabled *bool `json:"enabled,omitempty"`
	control.TLS
}

// Metadata are the properties of a container that name its application.
// policy_group_id is the one that policies are written in; both are the app's
// GUID in every Cloud Foundry. Space and org are GUIDs as well: security groups
// are bound to spaces, and logs name both.
type Metadata struct {
	AppID         policy.AppID `json:"app_id"`
	PolicyGroupID policy.AppID `json:"policy_group_id"`
	SpaceID       string       `json:"space_id"`
	OrgID         string       `json:"org_id"`
	// Workload says which security groups hold: app, task or staging.
	Workload policy.Workload `json:"container_workload"`
}

// Runtime are the capability arguments that mean something here.
type Runtime struct {
	App          *App               `json:"app,omitempty"`
	DNS          *DNS               `json:"dns,omitempty"`
	IPs          []string           `json:"ips,omitempty"`
	MAC          string             `json:"mac,omitempty"`
	PortMappings []PortMapping      `json:"portMappings,omitempty"`
	NetOutRules  []NetOutRule       `json:"netOutRules,omitempty"`
	Bandwidth    *control.Bandwidth `json:"bandwidth,omitempty"`
}

// App is an application and an instance of it; capability "app".
type App struct {
	api.AppRef
	Instance string `json:"instance,omitempty"`
}

// DNS is capability "dns".
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// Parse decodes a configuration and the result of the plugin before, if any.
func Parse(b []byte) (*Conf, error) {
	c := &Conf{}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("network configuration: %w", err)
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return nil, err
	}
	if c.Socket == "" {
		c.Socket = control.DefaultSocket()
	}
	return c, nil
}

// ParseHead is Parse of the keys that a network has whatever its containers are to be:
// which version of the protocol, which network, whose daemon. A container that was
// refused for what the others say is taken away all the same.
func ParseHead(b []byte) (*Conf, error) {
	var head struct {
		CNIVersion       string               `json:"cniVersion"`
		Name             string               `json:"name"`
		Socket           string               `json:"socket"`
		ValidAttachments []types.GCAttachment `json:"cni.dev/valid-attachments"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, fmt.Errorf("network configuration: %w", err)
	}
	return &Conf{
		PluginConf: types.PluginConf{CNIVersion: head.CNIVersion, Name: head.Name, ValidAttachments: head.ValidAttachments},
		Socket:     cmp.Or(head.Socket, control.DefaultSocket()),
	}, nil
}
