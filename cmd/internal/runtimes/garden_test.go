package runtimes

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"tulle/overlay/control"
)

// guardian calls the networker with the container's namespace as descriptor 3.
func guardian(t *testing.T, h *host, action, handle, stdin string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := h.command(ctx, nil, "sh", "-c", `exec tulle-garden --configFile=/etc/tulle/garden.json --action "$0" --handle "$1" 3</run/netns/"$1"`, action, handle)
	cmd.Stdin = strings.NewReader(stdin)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tulle-garden %s: %v: %s", action, err, errs.String())
	}
	return string(out)
}

// gardenContainer is a namespace that guardian would put a container's process in.
func gardenContainer(t *testing.T, h *host, handle, guid, netin string) control.Endpoint {
	t.Helper()
	h.run(nil, "ip", "netns", "add", handle)
	var got struct {
		Properties map[string]string
		Servers    []string `json:"dns_servers"`
	}
	out := guardian(t, h, "up", handle, `{"Pid": 0, "Properties": {"policy_group_id": "`+guid+`", "app_id": "`+guid+`"}, "netin": [`+netin+`], "netout_rules": []}`)
	must(t, json.Unmarshal([]byte(out), &got))
	e := h.endpoint(t, func(e control.Endpoint) bool { return e.Container == handle })
	if string(e.App) != guid || got.Properties["garden.network.container-ip"] != e.Address.String() || len(got.Servers) != 1 || got.Servers[0] != "169.254.0.2" {
		t.Errorf("answered %s, the endpoint is %+v", out, e)
	}
	return e
}

func testGarden(t *testing.T, w *world) {
	server, client := w.hosts[0], w.hosts[1]
	for _, h := range w.hosts {
		h.configure("garden.md", 0)
	}
	const conflist = "/etc/cni/net.d/10-tulle.conflist"
	server.write(conflist, withTLS(t, files(t, "garden.md")[conflist]), 0)
	at := freePort(t)
	_, port, _ := strings.Cut(at, ":")
	to := gardenContainer(t, server, "garden-server", "11111111-aaaa-4bbb-8ccc-000000000001", `{"host_port": `+port+`, "container_port": 8080}`)
	from := gardenContainer(t, client, "garden-client", "22222222-aaaa-4bbb-8ccc-000000000002", "")
	server.run(nil, "sh", "-c", `ip netns exec garden-server busybox httpd -p 8080 -h "$0"`, w.image+"/www")
	w.meet(t, from, to, func(args ...string) (string, error) {
		return client.try(nil, append([]string{"ip", "netns", "exec", "garden-client"}, inBusybox(args)...)...)
	})
	w.verifies(t, from, to, gardenTrust(t, client, "garden-client"))
	if got := fetch(t, at); got != "hello" {
		t.Errorf("the port of Garden's router answers %q", got)
	}
	guardian(t, server, "down", "garden-server", "null")
	guardian(t, client, "down", "garden-client", "null")
	for _, h := range w.hosts {
		h.gone(t)
	}
}

// inBusybox is get where the host's file system has no links to busybox.
func inBusybox(args []string) []string {
	return []string{args[0], args[1], strings.ReplaceAll(args[2], "| nc ", "| busybox nc ")}
}

// withTLS is a network's configuration with what the page says has port 61443
// terminated.
func withTLS(t *testing.T, conflist string) string {
	t.Helper()
	const socket = `"socket": "/run/tulle/celld.sock"`
	if !strings.Contains(conflist, socket) {
		t.Fatalf("the page's network is %s", conflist)
	}
	return strings.Replace(conflist, socket, socket+`, "tls": {"enabled": true}`, 1)
}

// gardenTrust runs commands in a container with the mounts and the environment that
// the page's specification has, as guardian's runtime would make them.
func gardenTrust(t *testing.T, h *host, name string) func(...string) (string, error) {
	t.Helper()
	var spec struct {
		Mounts []struct {
			From string `json:"src_path"`
			To   string `json:"dst_path"`
			Mode int    `json:"mode"`
		} `json:"bind_mounts"`
		Env []string `json:"env"`
	}
	trustJSON(t, "garden.md", &spec)
	if len(spec.Mounts) != 1 || spec.Mounts[0].Mode != 0 {
		t.Fatalf("the page's specification is %+v", spec)
	}
	h.write("/etc/netns/"+name+"/resolv.conf", "nameserver 169.254.0.2\n", 0) // guardian writes it
	return func(args ...string) (string, error) {
		return h.try(spec.Env, append([]string{"unshare", "--mount", "sh", "-c", `mkdir -p "$1" && mount --bind "$0" "$1" && mount -o remount,bind,ro "$1" && shift && exec ip netns exec "$@"`,
			spec.Mounts[0].From, spec.Mounts[0].To, name}, args...)...)
	}
}
