package netavark_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tulle/cni/internal/cnitest"
	"tulle/cni/netavark"
	"tulle/overlay/control"
	"tulle/overlay/netcfg"
	"tulle/overlay/netcfg/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func call(stdin string, env map[string]string, args ...string) (out string, code int) {
	var stdout, stderr bytes.Buffer
	code = netavark.Run(args, func(k string) string { return env[k] }, strings.NewReader(stdin), &stdout, &stderr)
	return strings.TrimSpace(stdout.String()), code
}

// request is what netavark sends; extra stands before the network.
func request(socket, options, extra string) string {
	return fmt.Sprintf(`{"container_id": "c1", "container_name": "web-3", %s "network": {"dns_enabled": false, "driver": "tulle-netavark",
		"id": "2f", "internal": false, "ipv6_enabled": false, "name": "net", "network_interface": null, "subnets": null,
		"options": {"socket": %q%s}, "ipam_options": {"driver": "none"}}, "network_options": {"aliases": ["c1"], "interface_name": "eth0"}}`, extra, socket, options)
}

// TestLifeOfAContainer drives the protocol as netavark does.
func TestLifeOfAContainer(t *testing.T) {
	nstest.NeedTUN(t)
	n, c := nstest.New(t), cnitest.New(t)
	c.Set(func() { c.Address6 = netip.MustParsePrefix("fd74:756c:6c65::aff:703/128") })
	in := request(c.Socket, `, "name_pattern": "(?P<app>[a-z]+)-(?P<instance>[0-9]+)", "search": "apps.internal,example.internal"`, "")
	out, code := call(in, nil, "setup", n.Path())
	want := `{"dns_search_domains":["apps.internal","example.internal"],"dns_server_ips":["169.254.0.2"],"interfaces":{"eth0":{"mac_address":"ee:ee:0a:ff:07:03","subnets":[{"ipnet":"10.255.7.3/32"},{"ipnet":"fd74:756c:6c65::aff:703/128"}]}}}`
	if code != 0 || out != want {
		t.Fatalf("exit status %d: %s", code, out)
	}
	device := netcfg.Device{Name: "eth0", Address: netip.MustParsePrefix("10.255.7.3/32"), MTU: 1410}
	if err := n.Do(func() error { return netcfg.Check(device) }); err != nil {
		t.Error(err)
	}
	if a := c.Seen().Attaches[0]; a.Container != "c1" || a.App.Name != "web" || a.Instance != "3" || a.Network != "net" {
		t.Errorf("attach %+v", a)
	}
	for range 2 {
		if out, code := call(in, nil, "teardown", n.Path()); code != 0 || out != "" {
			t.Errorf("teardown: exit status %d: %s", code, out)
		}
	}
	if err := n.Do(func() error { return netcfg.Check(device) }); err == nil {
		t.Error("after teardown the device is still there")
	}
	if left := c.Seen().Containers; len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestIdentity: the container's own options, the environment, its name, the network.
func TestIdentity(t *testing.T) {
	nstest.NeedTUN(t)
	c := cnitest.New(t)
	const pattern = `, "name_pattern": "(?P<app>[a-z]+)-[0-9]+"`
	for _, row := range []struct{ name, in, env, want string }{
		{"options of the container", strings.Replace(request(c.Socket, pattern+`, "app": "net"`, ""), `"aliases"`, `"options": {"app": "own", "instance": "2"}, "aliases"`, 1), "env", "own"},
		{"environment", request(c.Socket, pattern+`, "app": "net"`, ""), "env", "env"},
		{"name", request(c.Socket, pattern+`, "app": "net"`, ""), "", "web"},
		{"network", request(c.Socket, `, "app": "net", "space": "dev"`, ""), "", "net"},
	} {
		t.Run(row.name, func(t *testing.T) {
			n := nstest.New(t)
			if out, code := call(row.in, map[string]string{"TULLE_APP": row.env}, "setup", n.Path()); code != 0 {
				t.Fatal(out)
			}
			seen := c.Seen().Attaches
			if got := seen[len(seen)-1].App.Name; got != row.want {
				t.Errorf("app %s, want %s", got, row.want)
			}
			if out, code := call(row.in, nil, "teardown", n.Path()); code != 0 {
				t.Fatal(out)
			}
		})
	}
}

// TestErrors are in the protocol's form, and leave nothing.
func TestErrors(t *testing.T) {
	nstest.NeedTUN(t)
	n, c := nstest.New(t), cnitest.New(t)
	good := request(c.Socket, `, "app": "web"`, "")
	with := func(keys string) string {
		return strings.Replace(good, `"aliases"`, keys+`, "aliases"`, 1)
	}
	for _, row := range []struct {
		name   string
		in     string
		args   []string
		refuse error
		says   string
	}{
		{"no command", good, nil, nil, "unknown command"},
		{"unknown command", good, []string{"fly"}, nil, `unknown command "fly"`},
		{"no namespace", good, []string{"setup"}, nil, "takes 1 arguments"},
		{"not JSON", "{", []string{"setup", n.Path()}, nil, "container and network"},
		{"no container", "{}", []string{"teardown", n.Path()}, nil, "container_id"},
		{"namespace not there", good, []string{"setup", "/nowhere"}, nil, "no such file"},
		{"nobody says the app", request(c.Socket, "", ""), []string{"setup", n.Path()}, nil, "nobody says which app container web-3 is"},
		{"unknown option", request(c.Socket, `, "colour": "red"`, ""), []string{"setup", n.Path()}, nil, `unknown option "colour"`},
		{"unknown option of the container", with(`"options": {"colour": "red"}`), []string{"setup", n.Path()}, nil, `unknown option "colour"`},
		{"ports", request(c.Socket, `, "app": "web"`, `"port_mappings": [{"container_port": 80, "host_ip": "here", "host_port": 8080, "protocol": "tcp", "range": 1}],`), []string{"setup", n.Path()}, nil, "hostIP"},
		{"ports beyond the last", request(c.Socket, `, "app": "web"`, `"port_mappings": [{"container_port": 80, "host_ip": "", "host_port": 65000, "protocol": "tcp", "range": 600}],`), []string{"setup", n.Path()}, nil, "there are 65535"},
		{"publish", request(c.Socket, `, "app": "web", "publish": "maybe"`, ""), []string{"setup", n.Path()}, nil, "publish is yes or no"},
		{"two addresses", with(`"static_ips": ["10.255.7.9", "10.255.7.10"]`), []string{"setup", n.Path()}, nil, "one address"},
		{"bad mac", with(`"static_mac": "ff:ff:ff:ff:ff:ff"`), []string{"setup", n.Path()}, nil, "mac"},
		{"daemon not there", request("/nowhere.sock", `, "app": "web"`, ""), []string{"setup", n.Path()}, nil, "start tulle-celld"},
		{"teardown without the daemon", request("/nowhere.sock", ``, ""), []string{"teardown", n.Path()}, nil, "start tulle-celld"},
		{"refused", good, []string{"setup", n.Path()}, control.Errorf(control.CodeNotAllowed, "uid 7 may not"), "uid 7 may not"},
		{"create with a subnet", `{"name": "net", "subnets": [{"subnet": "10.0.0.0/16"}]}`, []string{"create"}, nil, "give no subnet"},
		{"create with IPv6", `{"name": "net", "ipv6_enabled": true}`, []string{"create"}, nil, "ipv6"},
		{"create with an unknown option", `{"name": "net", "options": {"colour": "red"}}`, []string{"create"}, nil, `unknown option "colour"`},
		{"create with a bad pattern", `{"name": "net", "options": {"name_pattern": "("}}`, []string{"create"}, nil, "name_pattern"},
		{"create without a name", `{}`, []string{"create"}, nil, "name is missing"},
		{"create of no network", `[]`, []string{"create"}, nil, "network"},
	} {
		t.Run(row.name, func(t *testing.T) {
			c.Set(func() { c.Refuse = row.refuse })
			out, code := call(row.in, nil, row.args...)
			var got struct{ Error string }
			if err := json.Unmarshal([]byte(out), &got); err != nil || code != 1 || !strings.Contains(got.Error, row.says) {
				t.Errorf("exit status %d: %s; want %q", code, out, row.says)
			}
			if left := c.Seen().Containers; len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// TestCreate: podman's network comes back as it was, keys unknown to us too.
func TestCreate(t *testing.T) {
	out, code := call(`{"name": "net", "id": "2f", "driver": "tulle-netavark", "dns_enabled": true, "internal": false, "options": {"app": "web"}, "labels": {"a": "b"}}`, nil, "create")
	var got, want any
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 {
		t.Fatal(out)
	}
	if err := json.Unmarshal([]byte(`{"name": "net", "id": "2f", "driver": "tulle-netavark", "dns_enabled": false, "internal": false, "options": {"app": "web"}, "labels": {"a": "b"}}`), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("network (-want +got):\n%s", diff)
	}
}

func TestInfo(t *testing.T) {
	out, code := call("", nil, "info")
	var got struct{ Version, API_version string }
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 || got.API_version != "1.0.0" || got.Version == "" {
		t.Errorf("exit status %d: %s", code, out)
	}
}

// FuzzRequest: what netavark sends, of whoever may start containers, is refused in
// the protocol's form or leads to an attach; without a daemon never the latter.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(request("/nowhere.sock", `, "app": "web"`, "")), "setup")
	f.Add([]byte(`{"name": "net", "options": {"name_pattern": "(?P<app>.*)"}}`), "create")
	f.Fuzz(func(t *testing.T, in []byte, command string) {
		if command == "teardown" || command == "info" {
			return
		}
		var stdout, stderr bytes.Buffer
		args := []string{command}
		if command == "setup" {
			args = append(args, "/dev/null")
		}
		code := netavark.Run(args, func(string) string { return "" }, bytes.NewReader(in), &stdout, &stderr)
		var got struct{ Error string }
		if err := json.Unmarshal(stdout.Bytes(), &got); command == "create" && code == 0 {
			return
		} else if err != nil || code != 1 || got.Error == "" {
			t.Errorf("exit status %d: %v: %s", code, err, stdout.String())
		}
	})
}
