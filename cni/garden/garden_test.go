package garden_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"tulle/cni/internal/cnitest"
	"tulle/overlay/netcfg"
	"tulle/overlay/netcfg/nstest"
)

const guid = "11111111-aaaa-4bbb-8ccc-000000000001"

// upFor is guardian's input for a namespace that is descriptor 3 of the networker.
const upFor = `{"Pid": 0, "Properties": {"policy_group_id": "` + guid + `", "app_id": "` + guid + `", "space_id": "s", "org_id": "o", "ports": "8080", "container_workload": "app"}%s}`

// answered is a foreign plugin's result.
const answered = `{"cniVersion": "1.0.0", "interfaces": [{"name": "veth0"}, {"name": "eth0", "sandbox": "x"}], "ips": [{"address": "fd00::2/128", "interface": 1}, {"address": "10.255.77.2/32", "interface": 1}], "dns": {"nameservers": ["169.254.0.2"]}}`

func foreignList(record, answer, fail string) string {
	return fmt.Sprintf(`{"name": "cni-wrapper", "cniVersion": "1.0.0", "disableCheck": true, "plugins": [
		{"type": "foreign", "record": %q, "answer": %s}, {"type": "foreign", "record": %q, "answer": %s, "fail": %q}]}`, record, answer, record, answer, fail)
}

// upWith runs the networker as a process with the namespace as its descriptor 3.
func (c *cell) upWith(n *nstest.Namespace, handle, more string) (string, string, error) {
	cmd := exec.Command(filepath.Join(c.bin, networker), "--configFile", c.config, "--action", "up", "--handle", handle)
	cmd.Stdin = strings.NewReader(fmt.Sprintf(upFor, more))
	cmd.ExtraFiles = []*os.File{n.File()}
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	return strings.TrimSpace(out.String()), errs.String(), err
}

func (c *cell) mounted(handle string) bool {
	var st unix.Statfs_t
	err := unix.Statfs(filepath.Join(c.mount, handle), &st)
	return err == nil && st.Type == unix.NSFS_MAGIC
}

func (c *cell) stateText() string {
	b, err := os.ReadFile(c.state)
	if err != nil {
		return ""
	}
	return string(b)
}

// TestUpAndDown with the CNI plugin of ours and a cell daemon's API.
func TestUpAndDown(t *testing.T) {
	nstest.NeedRoot(t)
	nstest.NeedTUN(t)
	daemon, n := cnitest.New(t), nstest.New(t)
	c := newCell(t, fmt.Sprintf(`{"name": "tulle", "cniVersion": "1.0.0", "plugins": [{"type": "tulle-cni", "socket": %q}]}`, daemon.Socket))
	t.Cleanup(func() { _, _, _ = c.call("down", "h1", "null") })
	out, errs, err := c.upWith(n, "h1", "")
	if err != nil || errs != "" {
		t.Fatalf("up: %v: %s", err, errs)
	}
	want := `{"properties":{"garden.network.container-ip":"10.255.7.3","garden.network.host-ip":"255.255.255.255","garden.network.mapped-ports":"[]","garden.network.interface":"eth0"},"dns_servers":["169.254.0.2"],"search_domains":["apps.internal"]}`
	if out != want {
		t.Errorf("up answers %s\nwant %s", out, want)
	}
	if a := daemon.Seen().Attaches[0]; a.Container != "h1" || a.App.GUID != guid || a.Network != "tulle" {
		t.Errorf("attach %+v", a)
	}
	device := netcfg.Device{Name: "eth0", Address: netip.MustParsePrefix("10.255.7.3/32"), MTU: 1410}
	must(t, n.Do(func() error { return netcfg.Check(device) }))
	if !c.mounted("h1") {
		t.Error("the namespace is not kept")
	}
	for _, when := range []string{"there", "gone", "never there"} {
		out, errs, code := c.call("down", "h1", "null")
		if code != 0 || out != "" || errs != "" {
			t.Errorf("down of what is %s: exit status %d: %s%s", when, code, out, errs)
		}
	}
	if err := n.Do(func() error { return netcfg.Check(device) }); err == nil || len(daemon.Seen().Containers) != 0 || c.mounted("h1") {
		t.Error("down left something")
	}
}

// TestDownSucceedsInTheEnd: while no daemon answers it fails and may be asked again;
// damaged files and a configuration that has gone fail nobody.
func TestDownSucceedsInTheEnd(t *testing.T) {
	nstest.NeedRoot(t)
	nstest.NeedTUN(t)
	daemon := cnitest.New(t)
	conflist := func(socket string) string {
		return fmt.Sprintf(`{"name": "tulle", "cniVersion": "1.0.0", "plugins": [{"type": "tulle-cni", "socket": %q}]}`, socket)
	}
	for _, row := range []struct {
		name   string
		damage func(t *testing.T, c *cell)
		fails  string // what the first down says
		mend   func(c *cell)
	}{
		{"no daemon", func(_ *testing.T, c *cell) { c.network("10.conflist", conflist("/nowhere.sock")) }, "cfnetworking: cni down: del network failed: ",
			func(c *cell) { c.network("10.conflist", conflist(daemon.Socket)) }},
		{"configuration gone", func(t *testing.T, c *cell) { must(t, os.Remove(filepath.Join(c.dir, "cni", "10.conflist"))) }, "", nil},
		{"answer cut off", func(t *testing.T, c *cell) {
			must(t, os.Truncate(filepath.Join(c.state+".cni", "results", "tulle-h1-eth0"), 40))
		}, "", nil},
		{"answer empty", func(t *testing.T, c *cell) {
			must(t, os.Truncate(filepath.Join(c.state+".cni", "results", "tulle-h1-eth0"), 0))
		}, "", nil},
		{"answer gone", func(t *testing.T, c *cell) { must(t, os.RemoveAll(c.state+".cni")) }, "", nil},
		{"mount gone", func(t *testing.T, c *cell) {
			must(t, unix.Unmount(filepath.Join(c.mount, "h1"), unix.MNT_DETACH))
			must(t, os.Remove(filepath.Join(c.mount, "h1")))
		}, "", nil},
		{"state not JSON", func(t *testing.T, c *cell) { must(t, os.WriteFile(c.state, []byte("{"), 0o600)) }, "", nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			n := nstest.New(t)
			c := newCell(t, conflist(daemon.Socket))
			if _, errs, err := c.upWith(n, "h1", ""); err != nil {
				t.Fatalf("up: %v: %s", err, errs)
			}
			row.damage(t, c)
			_, errs, code := c.call("down", "h1", "null")
			if row.fails != "" {
				if code != 1 || !strings.HasPrefix(errs, row.fails) || !c.mounted("h1") {
					t.Errorf("exit status %d: %s", code, errs)
				}
				row.mend(c)
				_, errs, code = c.call("down", "h1", "null")
			}
			if code != 0 || len(daemon.Seen().Containers) != 0 || c.mounted("h1") {
				t.Errorf("exit status %d: %s; the cell has %v", code, errs, daemon.Seen().Containers)
			}
		})
	}
}

// TestForeignPlugins get what the original hands them, and nothing on the way down.
func TestForeignPlugins(t *testing.T) {
	nstest.NeedRoot(t)
	n := nstest.New(t)
	record := filepath.Join(t.TempDir(), "record")
	c := newCell(t, foreignList(record, answered, ""))
	t.Cleanup(func() { _, _, _ = c.call("down", "h1", "null") })
	out, errs, err := c.upWith(n, "h1", `, "netin": [{"host_port": 0, "container_port": 8080}, {"host_port": 443, "container_port": 8443}, {"container_port": 2222}],
		"netout_rules": [{"protocol": 3, "networks": [{"start": "0.0.0.0", "end": "255.255.255.255"}], "icmps": {"type": 8, "code": 0}}]`)
	if err != nil || errs != "" {
		t.Fatalf("up: %v: %s", err, errs)
	}
	if want := `{"properties":{"garden.network.container-ip":"10.255.77.2","garden.network.host-ip":"255.255.255.255","garden.network.mapped-ports":"[{\"HostPort\":61000,\"ContainerPort\":8080},{\"HostPort\":443,\"ContainerPort\":8443},{\"HostPort\":61001,\"ContainerPort\":2222}]","garden.network.interface":"eth0"},"dns_servers":["169.254.0.2"],"search_domains":["apps.internal"]}`; out != want {
		t.Errorf("up answers %s\nwant %s", out, want)
	}
	if got, want := c.stateText(), `{"acquired_ports":{"h1":[61000,61001]}}`; got != want {
		t.Errorf("state %s, want %s", got, want)
	}
	if _, errs, code := c.call("down", "h1", "null"); code != 0 {
		t.Fatal(errs)
	}
	if got, want := c.stateText(), `{"acquired_ports":{}}`; got != want {
		t.Errorf("state %s, want %s", got, want)
	}
	b, err := os.ReadFile(record)
	must(t, err)
	calls := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(calls) != 4 {
		t.Fatalf("calls:\n%s", b)
	}
	type asked struct {
		Metadata      map[string]string `json:"metadata"`
		RuntimeConfig any               `json:"runtimeConfig"`
	}
	for i, call := range calls {
		verb := []string{"ADD", "ADD", "DEL", "DEL"}[i]
		head := fmt.Sprintf("%s h1 %s eth0 %q ", verb, filepath.Join(c.mount, "h1"), "")
		conf, ok := strings.CutPrefix(call, head)
		if !ok {
			t.Errorf("call %d: %s\nwant %s…", i, call, head)
			continue
		}
		var got asked
		must(t, json.Unmarshal([]byte(conf), &got))
		var want asked
		if verb == "ADD" {
			want.Metadata = map[string]string{"policy_group_id": guid, "app_id": guid, "space_id": "s", "org_id": "o", "ports": "8080", "container_workload": "app"}
			must(t, json.Unmarshal([]byte(`{"netOutRules":[{"protocol":3,"networks":[{"start":"0.0.0.0","end":"255.255.255.255"}],"icmps":{"type":8,"code":0}}],"portMappings":[{"host_port":61000,"container_port":8080},{"host_port":443,"container_port":8443},{"host_port":61001,"container_port":2222}]}`), &want.RuntimeConfig))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", verb, diff)
		}
	}
}

// TestFailedUpLeavesNothing: not even what a plugin of the chain did before.
func TestFailedUpLeavesNothing(t *testing.T) {
	nstest.NeedRoot(t)
	for _, row := range []struct{ name, networks, more, says string }{
		{"plugin fails", foreignList("RECORD", answered, "ADD"), "", "cfnetworking: cni up failed: add network list failed: "},
		{"no address", foreignList("RECORD", `{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0"}]}`, ""), "", "cfnetworking: expected an IPv4 address in the CNI result"},
		{"no interface", foreignList("RECORD", `{"cniVersion": "1.0.0", "ips": [{"address": "10.255.77.2/32", "interface": 3}]}`, ""), "", "cfnetworking: no corresponding interface found, interface index: 3, number of interfaces: 0"},
		{"no network", "", "", "cfnetworking: cni up failed: no ip allocated"},
		{"too many ports", foreignList("RECORD", answered, ""), strings.Repeat(`{"container_port": 1},`, 2), "cfnetworking: allocating port: acquire port: port pool exhausted"},
	} {
		t.Run(row.name, func(t *testing.T) {
			n := nstest.New(t)
			record := filepath.Join(t.TempDir(), "record")
			c := newCell(t, strings.ReplaceAll(row.networks, "RECORD", record))
			c.configure(map[string]any{"total_ports": 2})
			out, errs, err := c.upWith(n, "h1", `, "netin": [`+row.more+`{"host_port": 0, "container_port": 8080}]`)
			if err == nil || out != "" || !strings.HasPrefix(errs, row.says) || strings.Count(errs, "\n") != 1 {
				t.Errorf("up: %v, stdout %q, stderr %q", err, out, errs)
			}
			if strings.Contains(c.stateText(), "h1") || c.mounted("h1") {
				t.Errorf("left: state %s, mounted %t", c.stateText(), c.mounted("h1"))
			}
			if b, err := os.ReadFile(record); err == nil && strings.Count(string(b), "ADD h1") != strings.Count(string(b), "DEL h1") {
				t.Errorf("the plugins were not called to take it back:\n%s", b)
			}
		})
	}
}

// TestManyAtOnce: processes side by side share the pool, and none gets another's port.
func TestManyAtOnce(t *testing.T) {
	nstest.NeedRoot(t)
	record := filepath.Join(t.TempDir(), "record")
	c := newCell(t, foreignList(record, answered, ""))
	const containers, ports = 12, 3
	var wg sync.WaitGroup
	for i := range containers {
		n := nstest.New(t)
		wg.Go(func() {
			if _, errs, err := c.upWith(n, fmt.Sprintf("h%d", i), `, "netin": [{"container_port": 1}, {"container_port": 2}, {"container_port": 3}]`); err != nil {
				t.Errorf("up %d: %v: %s", i, err, errs)
			}
		})
	}
	wg.Wait()
	var state struct {
		Acquired map[string][]int `json:"acquired_ports"`
	}
	must(t, json.Unmarshal([]byte(c.stateText()), &state))
	var all []int
	for _, p := range state.Acquired {
		all = append(all, p...)
	}
	slices.Sort(all)
	if len(state.Acquired) != containers || len(all) != containers*ports || all[0] != 61000 || all[len(all)-1] != 61000+containers*ports-1 || len(slices.Compact(all)) != containers*ports {
		t.Errorf("acquired %v", state.Acquired)
	}
	for i := range containers {
		wg.Go(func() {
			if _, errs, code := c.call("down", fmt.Sprintf("h%d", i), "null"); code != 0 {
				t.Errorf("down %d: %s", i, errs)
			}
		})
	}
	wg.Wait()
	if got := c.stateText(); got != `{"acquired_ports":{}}` {
		t.Errorf("state %s", got)
	}
}

// TestNetIn: plain Garden clients add ports to a container that runs.
func TestNetIn(t *testing.T) {
	daemon := cnitest.New(t)
	c := newCell(t, fmt.Sprintf(`{"name": "tulle", "cniVersion": "1.0.0", "plugins": [{"type": "tulle-cni", "socket": %q}]}`, daemon.Socket))
	for _, row := range []struct {
		in, out, errs string
	}{
		{`{"HostIP": "10.0.0.1", "HostPort": 0, "ContainerIP": "10.255.7.3", "ContainerPort": 8080}`, `{"host_port":61000,"container_port":8080}`, ""},
		{`{"HostPort": 0, "ContainerPort": 0}`, `{"host_port":61001,"container_port":61001}`, ""},
		{`{"HostPort": 7000, "ContainerPort": 22}`, `{"host_port":7000,"container_port":22}`, ""},
		{`{"HostPort": 7000, "ContainerPort": 23}`, "", "cfnetworking: net-in: forward port 7000: port 7000 is forwarded to container h1 already\n"},
		{`{"HostPort": 70000, "ContainerPort": 23}`, "", "cfnetworking: net-in: host port 70000, container port 23: ports end at 65535\n"},
		{`{"HostIP": "<nil>", "HostPort": 7001, "ContainerPort": 22}`, `{"host_port":7001,"container_port":22}`, ""},
		{`{"HostIP": "10.0.0.300", "HostPort": 7002, "ContainerPort": 22}`, "", "cfnetworking: net-in: host ip \"10.0.0.300\" is no address\n"},
		{`{"ContainerPort": 70000}`, "", "cfnetworking: net-in: host port 0, container port 70000: ports end at 65535\n"},
	} {
		out, errs, code := c.call("net-in", "h1", row.in)
		if out != row.out || errs != row.errs || (code == 0) != (errs == "") {
			t.Errorf("%s: exit status %d, stdout %s, stderr %s", row.in, code, out, errs)
		}
	}
	if got, want := c.stateText(), `{"acquired_ports":{"h1":[61000,61001]}}`; got != want {
		t.Errorf("state %s, want %s", got, want)
	}
	// A pool whose next port somebody else has forwarded: nothing is kept of it.
	c.configure(map[string]any{"start_port": 7000})
	if _, errs, code := c.call("net-in", "h2", `{"ContainerPort": 80}`); code != 1 || !strings.Contains(errs, "port 7000 is forwarded") || strings.Contains(c.stateText(), "h2") {
		t.Errorf("exit status %d, stderr %s, state %s", code, errs, c.stateText())
	}
	ports, err := daemon.Ports(t.Context())
	must(t, err)
	if len(ports) != 4 || ports[0].HostIP.String() != "10.0.0.1" || ports[0].Container != "h1" || ports[2].Port.Port != 22 {
		t.Errorf("ports %+v", ports)
	}
}

// TestNetOut: plain Garden clients open more to a container that runs, by one rule or
// by several, and all of them or none.
func TestNetOut(t *testing.T) {
	nstest.NeedRoot(t)
	nstest.NeedTUN(t)
	daemon, n := cnitest.New(t), nstest.New(t)
	c := newCell(t, fmt.Sprintf(`{"name": "tulle", "cniVersion": "1.0.0", "plugins": [{"type": "tulle-cni", "socket": %q}]}`, daemon.Socket))
	if _, errs, err := c.upWith(n, "h1", ""); err != nil {
		t.Fatalf("up: %v: %s", err, errs)
	}
	const kept = "the cell goes by the security groups of the control plane, the rules are kept and not in force\n"
	for _, row := range []struct {
		name, action, handle, in string
		inForce                  bool
		errs                     string
		code                     int
		rules                    string
	}{
		{"one", "net-out", "h1", `{"container_ip": "10.255.7.3", "netout_rule": {"protocol": 1, "networks": [{"start": "192.0.2.1", "end": "192.0.2.9"}], "ports": [{"start": 443, "end": 443}], "log": true}}`,
			true, "", 0, "[{tcp 192.0.2.1-192.0.2.9 443 0 0  true}]"},
		{"several", "bulk-net-out", "h1", `{"container_ip": "10.255.7.3", "netout_rules": [{"networks": [{"start": "192.0.2.1"}]}, {"protocol": 3, "networks": [{"start": "192.0.2.2"}], "icmps": {"type": 8}}]}`,
			true, "", 0, "[{all 192.0.2.1  0 0  false} {icmp 192.0.2.2  8 -1  false}]"},
		{"none", "bulk-net-out", "h1", `{"container_ip": "10.255.7.3", "netout_rules": []}`, true, "", 0, "[]"},
		{"everywhere, which opens nothing in Cloud Foundry", "net-out", "h1", `{"netout_rule": {"protocol": 1}}`, true, "net-out of h1: rule 1 has no networks and opens nothing\n", 0, "[]"},
		{"groups decide", "net-out", "h1", `{"netout_rule": {"networks": [{"start": "192.0.2.1"}]}}`, false, "net-out of h1: " + kept, 0, "[{all 192.0.2.1  0 0  false}]"},
		{"one bad of two", "bulk-net-out", "h1", `{"netout_rules": [{"networks": [{"start": "192.0.2.1"}]}, {"protocol": 9, "networks": [{"start": "192.0.2.1"}]}]}`,
			true, "cfnetworking: bulk-net-out: rule 2: protocol 9 is none of 0 (all), 1 (tcp), 2 (udp) and 3 (icmp)\n", 1, "[]"},
		{"no address", "net-out", "h1", `{"netout_rule": {"networks": [{"start": "here"}]}}`, true, "cfnetworking: net-out: rule 1: destination \"here\": ", 1, "[]"},
		{"nobody's", "net-out", "h2", `{"netout_rule": {"networks": [{"start": "192.0.2.1"}]}}`, true, "cfnetworking: net-out: add rules: container h2 is not attached to this cell\n", 1, "[]"},
	} {
		t.Run(row.name, func(t *testing.T) {
			daemon.Set(func() { daemon.InForce = row.inForce })
			before := len(daemon.Seen().Rules)
			out, errs, code := c.call(row.action, row.handle, row.in)
			if out != "" || code != row.code || !strings.HasPrefix(errs, row.errs) || (errs == "") != (row.errs == "") {
				t.Errorf("exit status %d, stdout %q, stderr %q, want %d and %q", code, out, errs, row.code, row.errs)
			}
			if got := fmt.Sprint(daemon.Seen().Rules[before:]); got != row.rules {
				t.Errorf("the cell has got %s, want %s", got, row.rules)
			}
		})
	}
	if _, errs, code := c.call("down", "h1", "null"); code != 0 {
		t.Error(errs)
	}
}

// TestUpKilledMidway: guardian's host goes down, or somebody kills the networker, at
// any point of up; the next down finds all that was done and takes it away.
func TestUpKilledMidway(t *testing.T) {
	nstest.NeedRoot(t)
	nstest.NeedTUN(t)
	daemon := cnitest.New(t)
	begun, finish := make(chan struct{}), make(chan struct{})
	stop := func() { begun <- struct{}{}; <-finish }
	for _, when := range []string{"before it is attached", "before it is answered"} {
		t.Run(when, func(t *testing.T) {
			daemon.Set(func() {
				daemon.Before, daemon.After = nil, nil
				if when == "before it is attached" {
					daemon.Before = stop
				} else {
					daemon.After = stop
				}
			})
			n := nstest.New(t)
			c := newCell(t, fmt.Sprintf(`{"name": "tulle", "cniVersion": "1.0.0", "plugins": [{"type": "tulle-cni", "socket": %q}]}`, daemon.Socket))
			up := exec.Command(filepath.Join(c.bin, networker), "--configFile", c.config, "--action", "up", "--handle", "h1")
			up.Stdin = strings.NewReader(fmt.Sprintf(upFor, `, "netin": [{"host_port": 0, "container_port": 8080}]`))
			up.ExtraFiles = []*os.File{n.File()}
			must(t, up.Start())
			<-begun // port and mount are there, and the daemon has the request
			must(t, up.Process.Kill())
			if err := up.Wait(); err == nil {
				t.Error("the networker was killed and succeeds")
			}
			finish <- struct{}{} // its plugin goes on, and nobody hears its answer
			daemon.Settle()
			if !c.mounted("h1") || !strings.Contains(c.stateText(), "h1") {
				t.Errorf("killed %s: mounted %t, state %s", when, c.mounted("h1"), c.stateText())
			}
			if _, errs, code := c.call("down", "h1", "null"); code != 0 {
				t.Errorf("down: %s", errs)
			}
			if left := daemon.Seen().Containers; len(left) != 0 || c.mounted("h1") || strings.Contains(c.stateText(), "h1") {
				t.Errorf("left: endpoints %v, mounted %t, state %s", left, c.mounted("h1"), c.stateText())
			}
		})
	}
}

// TestProcessNamesTheNamespace where guardian says one.
func TestProcessNamesTheNamespace(t *testing.T) {
	nstest.NeedRoot(t)
	n := nstest.New(t)
	c := newCell(t, foreignList(filepath.Join(t.TempDir(), "record"), answered, ""))
	inside := exec.Command("cat")
	in, err := inside.StdinPipe()
	must(t, err)
	must(t, n.Do(inside.Start))
	defer func() { must(t, errors.Join(in.Close(), inside.Wait())) }()
	out, errs, code := c.call("up", "h1", fmt.Sprintf(`{"Pid": %d, "properties": {"app_id": "a", "log_config": "{\"index\":0}"}}`, inside.Process.Pid))
	if code != 0 || !strings.Contains(out, "10.255.77.2") {
		t.Fatalf("up: %s%s", out, errs)
	}
	mounted, err := os.Open(filepath.Join(c.mount, "h1"))
	must(t, err)
	defer mounted.Close()
	if same, err := netcfg.Same(mounted, n.Path()); err != nil || !same {
		t.Errorf("the namespace kept is the process's: %t, %v", same, err)
	}
	must(t, mounted.Close())
	if _, errs, code := c.call("down", "h1", "null"); code != 0 {
		t.Error(errs)
	}
}
