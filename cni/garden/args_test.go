package garden_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestErrorTexts: one line, the original's, exit status 1, nothing on stdout; what
// is wrong first is said first.
func TestErrorTexts(t *testing.T) {
	c := newCell(t, "")
	good := c.config
	without := func(key string) string {
		c.configure(map[string]any{key: nil})
		b, err := os.ReadFile(c.config)
		must(t, err)
		path := filepath.Join(t.TempDir(), "adapter.json")
		must(t, os.WriteFile(path, b, 0o600))
		c.configure(nil)
		return path
	}
	bad := filepath.Join(t.TempDir(), "bad.json")
	must(t, os.WriteFile(bad, []byte("{"), 0o600))
	prefixed := without("proxy_uid")
	other := filepath.Join(t.TempDir(), "other.json")
	b, err := os.ReadFile(prefixed)
	must(t, err)
	must(t, os.WriteFile(other, []byte(strings.Replace(string(b), "cfnetworking", "mine", 1)), 0o600))
	nowhere := without("cni_config_dir")
	b, err = os.ReadFile(nowhere)
	must(t, err)
	must(t, os.WriteFile(nowhere, []byte(strings.Replace(string(b), "{", `{"cni_config_dir": "/nowhere",`, 1)), 0o600))
	all := func(config string, more ...string) []string {
		return append([]string{"--configFile", config, "--handle", "h1", "--action", "down"}, more...)
	}
	for _, row := range []struct {
		name string
		args []string
		says string
	}{
		{"nothing", nil, "cfnetworking: this is Garden's external networker"},
		{"-h", []string{"-h"}, "cfnetworking: this is Garden's external networker"},
		{"--help", []string{"--help"}, "cfnetworking: this is Garden's external networker"},
		{"unknown flag", []string{"--colour"}, "cfnetworking: parse args: flag provided but not defined: -colour"},
		{"no configuration", []string{"--handle", "h1", "--action", "up"}, "cfnetworking: parse args: missing required flag 'configFile'"},
		{"configuration not there", all("/nowhere/adapter.json"), "cfnetworking: parse args: file does not exist: "},
		{"configuration not to be read", all(filepath.Dir(good)), "cfnetworking: parse args: reading config file: "},
		{"configuration not JSON", all(bad), "cfnetworking: parse args: parsing config (" + bad + "): "},
		{"extra arguments before the handle", []string{"--configFile", good, "a", "b"}, "cfnetworking: parse args: unexpected extra args: [a b]"},
		{"configuration before extra arguments", []string{"--configFile", bad, "a"}, "cfnetworking: parse args: parsing config"},
		{"no handle", []string{"-configFile", good, "-action", "up"}, "cfnetworking: parse args: missing required flag 'handle'"},
		{"no handle, no action", []string{"--configFile", good}, "cfnetworking: parse args: missing required flag 'handle'"},
		{"no action", []string{"--configFile", good, "--handle", "h1"}, "cfnetworking: parse args: missing required flag 'action'"},
		{"cni_plugin_dir", all(without("cni_plugin_dir")), "cfnetworking: parse args: missing required config 'cni_plugin_dir'"},
		{"cni_config_dir", all(without("cni_config_dir")), "cfnetworking: parse args: missing required config 'cni_config_dir'"},
		{"bind_mount_dir", all(without("bind_mount_dir")), "cfnetworking: parse args: missing required config 'bind_mount_dir'"},
		{"state_file", all(without("state_file")), "cfnetworking: parse args: missing required config 'state_file'"},
		{"start_port", all(without("start_port")), "cfnetworking: parse args: missing required config 'start_port'"},
		{"total_ports", all(without("total_ports")), "cfnetworking: parse args: missing required config 'total_ports'"},
		{"log_prefix", all(without("log_prefix")), "cfnetworking: parse args: missing required config 'log_prefix'"},
		{"iptables_lock_file", all(without("iptables_lock_file")), "cfnetworking: parse args: missing required config 'iptables_lock_file'"},
		{"proxy_port", all(without("proxy_port")), "cfnetworking: parse args: missing required config 'proxy_port'"},
		{"proxy_uid", all(prefixed), "cfnetworking: parse args: missing required config 'proxy_uid'"},
		{"the configuration's prefix", all(other), "mine: parse args: missing required config 'proxy_uid'"},
		{"no networks' directory", all(nowhere), "cfnetworking: load cni config: "},
		{"handle that is a path", []string{"--configFile", good, "--handle", "../h1", "--action", "up"}, `cfnetworking: handle "../h1"`},
		{"unknown action", []string{"--configFile", good, "--handle", "h1", "--action", "fly"}, "cfnetworking: unrecognized action: fly"},
		{"net-out not JSON", []string{"--configFile", good, "--handle", "h1", "--action", "net-out"}, "cfnetworking: decoding stdin: "},
		{"bulk-net-out not JSON", []string{"--configFile", good, "--handle", "h1", "--action", "bulk-net-out"}, "cfnetworking: decoding stdin: "},
		{"net-in not JSON", []string{"--configFile", good, "--handle", "h1", "--action", "net-in"}, "cfnetworking: decoding stdin: "},
		{"input not JSON", []string{"--configFile", good, "--handle", "h1", "--action", "up"}, "cfnetworking: decoding stdin: "},
	} {
		t.Run(row.name, func(t *testing.T) {
			out, errs, code := run("nonsense", row.args...)
			if code != 1 || out != "" || !strings.HasPrefix(errs, row.says) || strings.Count(errs, "\n") != 1 {
				t.Errorf("exit status %d, stdout %q, stderr %q, want %q", code, out, errs, row.says)
			}
		})
	}
	for _, handle := range []string{"../h1", "my app", "-", "ärger"} {
		t.Run("down of what up refuses: "+handle, func(t *testing.T) {
			if out, errs, code := c.call("down", handle, "null"); code != 0 || out != "" || !strings.Contains(errs, "no container was ever up") {
				t.Errorf("exit status %d, stdout %q, stderr %q", code, out, errs)
			}
		})
	}
	for _, action := range []string{"net-in", "net-out", "bulk-net-out"} {
		t.Run(action+" without our plugin", func(t *testing.T) {
			if _, errs, code := c.call(action, "h1", `{"ContainerPort": 8080}`); code != 1 || !strings.HasPrefix(errs, "cfnetworking: unrecognized action: "+action+": ") {
				t.Errorf("exit status %d, stderr %q", code, errs)
			}
		})
	}
	t.Run("namespace not there", func(t *testing.T) {
		c.configure(nil)
		_, errs, code := c.call("up", "h1", `{"Pid": 2147483647}`)
		if want := "cfnetworking: failed mounting /proc/2147483647/ns/net to " + filepath.Join(c.mount, "h1") + ": "; code != 1 || !strings.HasPrefix(errs, want) {
			t.Errorf("exit status %d, stderr %q, want %q", code, errs, want)
		}
	})
}

// TestWhichNetwork: the first list, else the first single one, by name.
func TestWhichNetwork(t *testing.T) {
	c := newCell(t, "")
	list := func(name string) string {
		return `{"name": "` + name + `", "cniVersion": "1.0.0", "plugins": [{"type": "no-such-plugin-` + name + `"}]}`
	}
	c.network("00.conf", `{"name": "single", "cniVersion": "1.0.0", "type": "no-such-plugin-single"}`)
	uses := func(name string, warns bool) {
		t.Helper()
		_, errs, code := c.call("down", "h1", "null")
		if code != 1 || !strings.Contains(errs, "no-such-plugin-"+name) || strings.Contains(errs, "network configurations") != warns {
			t.Errorf("exit status %d: %s; want network %s", code, errs, name)
		}
	}
	uses("single", false)
	must(t, os.MkdirAll(filepath.Join(c.dir, "cni", "deeper"), 0o755))
	c.network("deeper/10.conflist", list("deeper"))
	uses("deeper", true)
	c.network("20.conflist", list("late"))
	c.network("10.conflist", list("first"))
	uses("first", true)
}
