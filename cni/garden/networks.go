package garden

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// device is the container's, in every Cloud Foundry.
const device = "eth0"

// networks is the network configuration with the plugins that serve it.
type networks struct {
	cni   *libcni.CNIConfig
	list  *libcni.NetworkConfigList // nil: there is no configuration
	cache string
}

// loadNetworks walks the configuration directory: the first *.conflist, else the
// first *.conf, in lexical order.
func loadNetworks(c config, log io.Writer) (*networks, error) {
	// Beside the state file, and so gone with it when the cell starts anew.
	cache := c.StateFile + ".cni"
	n := &networks{cni: libcni.NewCNIConfigWithCacheDir([]string{c.PluginDir}, cache, nil), cache: cache}
	var lists, singles []string
	err := filepath.WalkDir(c.ConfigDir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
		case strings.HasSuffix(path, ".conflist"):
			lists = append(lists, path)
		case strings.HasSuffix(path, ".conf"):
			singles = append(singles, path)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if all := append(append([]string{}, lists...), singles...); len(all) > 1 {
		fmt.Fprintf(log, "%s has %d network configurations, %s is used\n", c.ConfigDir, len(all), all[0])
	}
	switch {
	case len(lists) > 0:
		n.list, err = libcni.ConfListFromFile(lists[0])
	case len(singles) > 0:
		n.list, err = listOfOne(singles[0])
	}
	return n, err
}

// listOfOne makes a list of a file of one plugin, a form that libcni no longer has.
func listOfOne(path string) (*libcni.NetworkConfigList, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var of struct {
		Name       string `json:"name"`
		CNIVersion string `json:"cniVersion,omitempty"`
	}
	if err := json.Unmarshal(b, &of); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	list, err := json.Marshal(map[string]any{"name": of.Name, "cniVersion": of.CNIVersion, "plugins": []json.RawMessage{b}})
	if err != nil {
		return nil, err
	}
	return libcni.ConfListFromBytes(list)
}

// add calls the plugins. Each gets two further keys: what the container is, and
// which ports and rules it wants. A nil result: there is no configuration.
func (n *networks) add(ctx context.Context, handle, netns string, metadata map[string]any, wants map[string]any) (types.Result, error) {
	if n.list == nil {
		return nil, nil
	}
	extra := map[string]any{}
	if len(metadata) > 0 {
		extra["metadata"] = metadata
	}
	if len(wants) > 0 {
		extra["runtimeConfig"] = wants
	}
	list := *n.list
	list.Plugins = nil
	for _, p := range n.list.Plugins {
		if len(extra) > 0 {
			var err error
			if p, err = libcni.InjectConf(p, extra); err != nil {
				return nil, fmt.Errorf("adding extra data to CNI config: %w", err)
			}
		}
		list.Plugins = append(list.Plugins, p)
	}
	r, err := n.cni.AddNetworkList(ctx, &list, runtimeConf(handle, netns))
	if err != nil {
		return nil, fmt.Errorf("add network list failed: %w", err)
	}
	return r, nil
}

func runtimeConf(handle, netns string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: handle, NetNS: netns, IfName: device}
}

// del calls the plugins with what ADD answered. Where the cached answer is damaged
// (a crash while it was written) they are called without: a plugin finds its
// container by the handle, and nobody could ever mend the answer.
func (n *networks) del(ctx context.Context, handle, netns string) error {
	list, err := n.listOf(handle, netns)
	if list == nil || err != nil {
		return err
	}
	err = n.cni.DelNetworkList(ctx, list, runtimeConf(handle, netns))
	if err != nil && n.damaged(list.Name, handle) {
		if rerr := os.Remove(n.answer(list.Name, handle)); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			return errors.Join(err, rerr)
		}
		err = n.cni.DelNetworkList(ctx, list, runtimeConf(handle, netns))
	}
	if err != nil {
		return fmt.Errorf("del network failed: %w", err)
	}
	return nil
}

// listOf is the present configuration or, where there is none any more, the one
// that the container was added with.
func (n *networks) listOf(handle, netns string) (*libcni.NetworkConfigList, error) {
	if n.list != nil {
		return n.list, nil
	}
	attachments, err := n.cni.GetCachedAttachments(handle)
	if err != nil || len(attachments) == 0 {
		return nil, nil // never added, or nothing that could be read
	}
	return libcni.ConfListFromBytes(attachments[0].Config)
}

// answer is libcni's file for one attachment.
func (n *networks) answer(network, handle string) string {
	return filepath.Join(n.cache, "results", network+"-"+handle+"-"+device)
}

func (n *networks) damaged(network, handle string) bool {
	b, err := os.ReadFile(n.answer(network, handle))
	if err != nil {
		return false
	}
	var cached struct {
		Result json.RawMessage `json:"result"`
	}
	if json.Unmarshal(b, &cached) != nil {
		return true
	}
	_, err = current.NewResult(cached.Result)
	return err != nil
}
