package runtimes

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"tulle/overlay/control"
)

// netavarkCall is one of netavark's to the plugin.
func netavarkCall(t *testing.T, h *host, command, container, request string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := h.command(ctx, nil, "tulle-netavark", command, "/run/netns/"+container)
	cmd.Stdin = strings.NewReader(request)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tulle-netavark %s: %v: %s", command, err, out)
	}
	return string(out)
}

// netavarkContainer is a namespace set up by the plugin, with a process in it: what
// podman would leave to netavark.
func netavarkContainer(t *testing.T, h *host, name string) (e control.Endpoint, request string) {
	t.Helper()
	b, err := json.Marshal(map[string]any{
		"container_id": "id-of-" + name, "container_name": name, "port_mappings": nil,
		"network":         json.RawMessage(files(t, "netavark.md")["/etc/containers/networks/tulle.json"]),
		"network_options": map[string]any{"aliases": []string{name}, "interface_name": "eth0", "static_ips": nil, "static_mac": nil},
	})
	must(t, err)
	h.run(nil, "ip", "netns", "add", name)
	var got struct {
		Interfaces map[string]struct {
			Subnets []struct{ Ipnet string }
		}
	}
	must(t, json.Unmarshal([]byte(netavarkCall(t, h, "setup", name, string(b))), &got))
	app, _, _ := strings.Cut(name, "-")
	e = h.endpoint(t, ofApp(app))
	if s := got.Interfaces["eth0"].Subnets; len(s) != 2 || s[0].Ipnet != e.Address.String()+"/32" || s[1].Ipnet != e.Address6.String()+"/128" || e.Instance != "0" {
		t.Errorf("answered %+v, the endpoint is %+v", got, e)
	}
	return e, string(b)
}

func testNetavark(t *testing.T, w *world) {
	server, client := w.hosts[0], w.hosts[1]
	for _, h := range w.hosts {
		h.configure("netavark.md", 0)
	}
	to, serverRequest := netavarkContainer(t, server, "navserver-0")
	from, clientRequest := netavarkContainer(t, client, "navclient-0")
	server.run(nil, "sh", "-c", `ip netns exec navserver-0 busybox httpd -p 8080 -h "$0"`, w.image+"/www")
	w.meet(t, from, to, func(args ...string) (string, error) {
		return client.try(nil, append([]string{"ip", "netns", "exec", "navclient-0"}, inBusybox(args)...)...)
	})
	netavarkCall(t, server, "teardown", "navserver-0", serverRequest)
	netavarkCall(t, client, "teardown", "navclient-0", clientRequest)
	for _, h := range w.hosts {
		h.gone(t)
	}
}
