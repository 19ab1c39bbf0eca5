package cnitest_test

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"tulle/cni/internal/cnitest"
	"tulle/overlay/netcfg/nstest"
)

// TestGC: libcni's, over the attachments that the runtime still knows.
func TestGC(t *testing.T) {
	nstest.NeedTUN(t)
	c := cnitest.New(t)
	r := newRuntime(t, "1.1.0", c.Socket)
	ctx := context.Background()
	spaces := map[string]*nstest.Namespace{}
	for _, a := range []types.GCAttachment{{ContainerID: "c1", IfName: "eth0"}, {ContainerID: "c1", IfName: "eth1"}, {ContainerID: "c2", IfName: "eth0"}} {
		n := nstest.New(t)
		spaces[a.ContainerID+a.IfName] = n
		if _, err := r.cni.AddNetworkList(ctx, r.list, &libcni.RuntimeConf{ContainerID: a.ContainerID, NetNS: n.Path(), IfName: a.IfName}); err != nil {
			t.Fatal(err)
		}
		c.Set(func() { c.Address = netip.PrefixFrom(c.Address.Addr().Next(), 32) })
	}
	must(t, r.cni.GCNetworkList(ctx, r.list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "c1", IfName: "eth1"}}}))
	if diff := cmp.Diff([]string{"c1.eth1"}, c.Seen().Containers); diff != "" {
		t.Errorf("after GC (-want +got):\n%s", diff)
	}
	for name, want := range map[string]int{"c1eth0": 1, "c1eth1": 2, "c2eth0": 1} {
		if got := devices(t, spaces[name]); got != want {
			t.Errorf("%s has %d devices, want %d", name, got, want)
		}
	}
}

// TestKilledMidway: a plugin that dies at any point of ADD, and a runtime that
// dies with it, leave nothing that GC does not take away.
func TestKilledMidway(t *testing.T) {
	nstest.NeedTUN(t)
	c := cnitest.New(t)
	self, err := os.Executable()
	must(t, err)
	path := filepath.Join(t.TempDir(), plugin)
	must(t, os.Symlink(self, path))
	begun, finish := make(chan struct{}), make(chan struct{})
	stop := func() { begun <- struct{}{}; <-finish }
	conf := func(extra string) string {
		return `{"cniVersion": "1.1.0", "name": "web-net", "type": "` + plugin + `", "socket": "` + c.Socket + `", "app": {"name": "web"}` + extra + `}`
	}
	ask := func(command, id, netns, stdin string) *exec.Cmd {
		cmd := exec.Command(path)
		cmd.Stdin = strings.NewReader(stdin)
		cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_CONTAINERID="+id, "CNI_NETNS="+netns, "CNI_IFNAME=eth0", "CNI_PATH=/")
		return cmd
	}
	for _, when := range []string{"before it is attached", "before it is answered", "after the answer"} {
		t.Run(when, func(t *testing.T) {
			c.Set(func() {
				c.Before, c.After = nil, nil
				switch when {
				case "before it is attached":
					c.Before = stop
				case "before it is answered":
					c.After = stop
				}
			})
			n := nstest.New(t)
			cmd := ask("ADD", "c1", n.Path(), conf(""))
			must(t, cmd.Start())
			if when != "after the answer" {
				<-begun // the device is made and the daemon has the request
				must(t, cmd.Process.Signal(syscall.SIGKILL))
			}
			if err := cmd.Wait(); (err == nil) != (when == "after the answer") {
				t.Errorf("the plugin ended: %v", err)
			}
			if when != "after the answer" {
				finish <- struct{}{}
			}
			c.Settle()
			gc := ask("GC", "", "", conf(`, "cni.dev/valid-attachments": []`))
			if out, err := gc.CombinedOutput(); err != nil {
				t.Fatalf("GC: %v: %s", err, out)
			}
			if left := c.Seen().Containers; len(left) != 0 {
				t.Errorf("endpoints left: %v", left)
			}
			if n := devices(t, n); n != 1 {
				t.Errorf("%d devices, want lo alone", n)
			}
		})
	}
}

func devices(t *testing.T, n *nstest.Namespace) (count int) {
	t.Helper()
	must(t, n.Do(func() error {
		links, err := netlink.LinkList()
		count = len(links)
		return err
	}))
	return count
}

// TestCapabilities: what the network declares and the runtime gives reaches the
// daemon and the result.
func TestCapabilities(t *testing.T) {
	nstest.NeedTUN(t)
	c, n := cnitest.New(t), nstest.New(t)
	r := newRuntime(t, "1.1.0", c.Socket)
	list, err := libcni.ConfListFromBytes([]byte(strings.Replace(string(r.list.Bytes), `"socket"`,
		`"capabilities": {"ips": true, "mac": true, "dns": true, "app": true}, "socket"`, 1)))
	must(t, err)
	raw, err := r.cni.AddNetworkList(context.Background(), list, &libcni.RuntimeConf{ContainerID: "c1", NetNS: n.Path(), IfName: "eth0",
		CapabilityArgs: map[string]any{
			"ips": []string{"10.255.7.9/32"}, "mac": "02:42:0a:ff:07:09",
			"dns": map[string]any{"searches": []string{"example.internal"}},
			"app": map[string]any{"name": "db", "space": "dev", "instance": "4"},
		}})
	must(t, err)
	got, err := current.NewResultFromResult(raw)
	must(t, err)
	if got.IPs[0].Address.String() != "10.255.7.9/32" || got.Interfaces[0].Mac != "02:42:0a:ff:07:09" || !slices.Equal(got.DNS.Search, []string{"example.internal"}) {
		t.Errorf("result %v", got)
	}
	if a := c.Seen().Attaches[0]; a.App.Name != "db" || a.App.Space != "dev" || a.Instance != "4" || a.Address.String() != "10.255.7.9" {
		t.Errorf("attach %+v", a)
	}
}
