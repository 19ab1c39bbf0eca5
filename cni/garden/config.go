package garden

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
)

// config is the configuration file. Keys that are not here are left alone, as the
// original leaves them.
type config struct {
	PluginDir       string   `json:"cni_plugin_dir"`
	ConfigDir       string   `json:"cni_config_dir"`
	MountDir        string   `json:"bind_mount_dir"`
	StateFile       string   `json:"state_file"`
	StartPort       uint32   `json:"start_port"`
	TotalPorts      uint32   `json:"total_ports"`
	LogPrefix       string   `json:"log_prefix"`
	IPTablesLock    string   `json:"iptables_lock_file"` // required as ever; nothing here takes it
	ProxyPort       int      `json:"proxy_port"`
	ProxyUID        *int     `json:"proxy_uid"`
	SearchDomains   []string `json:"search_domains"`
	RedirectCIDR    string   `json:"proxy_redirect_cidr"`
	RedirectIngress bool     `json:"enable_ingress_proxy_redirect"`
}

func loadConfig(path string) (config, error) {
	var c config
	if _, err := os.Stat(path); err != nil {
		return c, fmt.Errorf("file does not exist: %w", err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("reading config file: %w", err)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("parsing config (%s): %w", path, err)
	}
	return c, c.check()
}

// check names the first key that is missing, in the original's order.
func (c config) check() error {
	for _, k := range []struct {
		there bool
		name  string
	}{
		{c.PluginDir != "", "cni_plugin_dir"},
		{c.ConfigDir != "", "cni_config_dir"},
		{c.MountDir != "", "bind_mount_dir"},
		{c.StateFile != "", "state_file"},
		{c.StartPort != 0, "start_port"},
		{c.TotalPorts != 0, "total_ports"},
		{c.LogPrefix != "", "log_prefix"},
		{c.IPTablesLock != "", "iptables_lock_file"},
		{c.ProxyPort != 0, "proxy_port"},
		{c.ProxyUID != nil, "proxy_uid"},
	} {
		if !k.there {
			return fmt.Errorf("missing required config '%s'", k.name)
		}
	}
	return nil
}

// arguments are a call's.
type arguments struct {
	action, handle string
	config         config
}

// parseArgs checks in the original's order. The configuration is there as far as
// it could be read, also beside an error.
func parseArgs(args []string) (arguments, error) {
	var a arguments
	var path string
	flags := flag.NewFlagSet("tulle-garden", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&a.action, "action", "", "")
	flags.StringVar(&a.handle, "handle", "", "")
	flags.StringVar(&path, "configFile", "", "")
	if err := flags.Parse(args); err != nil {
		return a, err
	}
	if path == "" {
		return a, errors.New("missing required flag 'configFile'")
	}
	var err error
	if a.config, err = loadConfig(path); err != nil {
		return a, err
	}
	switch {
	case flags.NArg() > 0:
		return a, fmt.Errorf("unexpected extra args: %v", flags.Args())
	case a.handle == "":
		return a, errors.New("missing required flag 'handle'")
	case a.action == "":
		return a, errors.New("missing required flag 'action'")
	}
	return a, nil
}
