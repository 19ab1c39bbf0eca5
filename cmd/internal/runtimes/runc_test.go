package runtimes

import (
	"encoding/json"
	"strings"
	"testing"

	"tulle/overlay/control"
)

// cni is what the page has in its environment.
var cni = []string{"CNI_PATH=/opt/cni/bin", "NETCONFPATH=/etc/cni/net.d"}

// runcContainer starts a container as the page says.
func runcContainer(t *testing.T, h *host, image, app string, command []string) control.Endpoint {
	t.Helper()
	name := app + "-0"
	bundle := "/var/lib/bundles/" + name
	h.run(nil, "mkdir", "-p", bundle)
	h.run(nil, "cp", "-a", image, bundle+"/rootfs")
	h.run(nil, "runc", "spec", "--bundle", bundle)
	h.run(nil, "ip", "netns", "add", name)
	h.run(append([]string{"CNI_ARGS=IgnoreUnknown=1;TULLE_APP=" + app + ";TULLE_INSTANCE=0"}, cni...), "cnitool", "add", "tulle", "/run/netns/"+name)

	var spec map[string]any
	must(t, json.Unmarshal([]byte(h.run(nil, "cat", bundle+"/config.json")), &spec))
	process := spec["process"].(map[string]any)
	process["args"], process["terminal"] = command, false
	delete(process, "rlimits") // root may not raise its own everywhere
	for _, n := range spec["linux"].(map[string]any)["namespaces"].([]any) {
		if n := n.(map[string]any); n["type"] == "network" {
			n["path"] = "/run/netns/" + name
		}
	}
	trusted(t, spec)
	b, err := json.Marshal(spec)
	must(t, err)
	h.write(bundle+"/config.json", string(b), 0)
	h.run(nil, "sh", "-c", `runc run -d --bundle "$0" "$1" </dev/null >/dev/null 2>"$0/log" || { cat "$0/log"; exit 1; }`, bundle, name)
	return h.endpoint(t, ofApp(app))
}

// trusted adds to a bundle's configuration what the page says of trust.
func trusted(t *testing.T, spec map[string]any) {
	t.Helper()
	var add struct {
		Mounts  []any
		Process struct{ Env []any }
	}
	trustJSON(t, "runc.md", &add)
	process := spec["process"].(map[string]any)
	process["env"] = append(process["env"].([]any), add.Process.Env...)
	spec["mounts"] = append(spec["mounts"].([]any), add.Mounts...)
}

func testRunc(t *testing.T, w *world) {
	server, client := w.hosts[0], w.hosts[1]
	for _, h := range w.hosts {
		h.configure("runc.md", 0)
		h.run(cni, "cnitool", "status", "tulle", "/run/netns/any")
	}
	to := runcContainer(t, server, w.image, "runc-server", serve)
	from := runcContainer(t, client, w.image, "runc-client", idle)
	inside := func(args ...string) (string, error) {
		return client.try(nil, append([]string{"runc", "exec", "runc-client-0"}, args...)...)
	}
	w.meet(t, from, to, inside)
	w.verifies(t, from, to, inside)
	server.run(cni, "cnitool", "check", "tulle", "/run/netns/runc-server-0")
	if to.Instance != "0" || !strings.HasPrefix(to.Container, "cnitool-") {
		t.Errorf("endpoint %+v", to)
	}

	server.run(nil, "runc", "delete", "-f", "runc-server-0")
	server.run(cni, "cnitool", "del", "tulle", "/run/netns/runc-server-0")
	server.run(nil, "ip", "netns", "del", "runc-server-0")
	server.gone(t)

	// The other one is forgotten: its namespace goes, and nobody says so.
	client.run(nil, "runc", "delete", "-f", "runc-client-0")
	client.run(nil, "ip", "netns", "del", "runc-client-0")
	client.run(cni, "cnitool", "gc", "tulle", "/run/netns/any")
	client.gone(t)
}
