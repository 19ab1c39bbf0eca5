package cnitest_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"

	"tulle/cni/internal/cnitest"
	"tulle/overlay/control"
	"tulle/overlay/netcfg"
	"tulle/overlay/netcfg/nstest"
)

// runtime is libcni with the plugin as an executable of its own.
type runtime struct {
	t    *testing.T
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
}

func newRuntime(t *testing.T, version, socket string) *runtime {
	t.Helper()
	bin := t.TempDir()
	self, err := os.Executable()
	must(t, err)
	must(t, os.Symlink(self, filepath.Join(bin, plugin)))
	list, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{"cniVersion": %q, "name": "web-net", "plugins": [
		{"type": %q, "socket": %q, "app": {"name": "web"}, "dns": {"search": ["apps.internal"]}}]}`, version, plugin, socket))
	must(t, err)
	return &runtime{t, libcni.NewCNIConfigWithCacheDir([]string{bin}, t.TempDir(), nil), list}
}

// TestLifeOfAContainer is what a runtime does, in every version we speak.
func TestLifeOfAContainer(t *testing.T) {
	nstest.NeedTUN(t)
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			c := cnitest.New(t)
			n := nstest.New(t)
			r := newRuntime(t, version, c.Socket)
			rt := &libcni.RuntimeConf{ContainerID: "c1", NetNS: n.Path(), IfName: "eth0"}
			ctx := context.Background()
			if version == "1.1.0" {
				must(t, r.cni.GetStatusNetworkList(ctx, r.list))
			}

			raw, err := r.cni.AddNetworkList(ctx, r.list, rt)
			must(t, err)
			if raw.Version() != version {
				t.Errorf("the result is of version %s", raw.Version())
			}
			got, err := current.NewResultFromResult(raw)
			must(t, err)
			iface := current.Interface{Name: "eth0", Mac: "ee:ee:0a:ff:07:03", Sandbox: n.Path()}
			if version == "1.1.0" {
				iface.Mtu = 1410
			}
			if diff := cmp.Diff([]*current.Interface{&iface}, got.Interfaces); diff != "" {
				t.Errorf("interfaces (-want +got):\n%s", diff)
			}
			if len(got.IPs) != 1 || got.IPs[0].Address.String() != "10.255.7.3/32" || *got.IPs[0].Interface != 0 || got.IPs[0].Gateway != nil {
				t.Errorf("addresses: %v", got.IPs)
			}
			if len(got.Routes) != 1 || got.Routes[0].Dst.String() != "0.0.0.0/0" || got.Routes[0].GW != nil {
				t.Errorf("routes: %v", got.Routes)
			}
			if diff := cmp.Diff([]string{"169.254.0.2"}, got.DNS.Nameservers); diff != "" || !slices.Equal(got.DNS.Search, []string{"apps.internal"}) {
				t.Errorf("dns: %v", got.DNS)
			}
			device := netcfg.Device{Name: "eth0", Address: netip.MustParsePrefix("10.255.7.3/32"), MTU: 1410}
			must(t, n.Do(func() error { return netcfg.Check(device) }))
			want := []control.Attach{{Container: "c1", Network: "web-net", Device: "eth0", Lifeline: control.LifelineNone, TLS: &control.TLS{}}}
			want[0].App.Name, want[0].App.Space, want[0].App.Org = "web", "default", "default"
			if diff := cmp.Diff(want, c.Seen().Attaches, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("attaches (-want +got):\n%s", diff)
			}

			err = r.cni.CheckNetworkList(ctx, r.list, rt)
			if (version == "0.3.1") != (err != nil) {
				t.Errorf("CHECK: %v", err)
			}
			if version != "0.3.1" {
				c.Set(func() { c.Endpoints["c1"].Address = netip.MustParseAddr("10.255.7.4") })
				if err := r.cni.CheckNetworkList(ctx, r.list, rt); err == nil || !strings.Contains(err.Error(), "10.255.7.4") {
					t.Errorf("CHECK of another address: %v", err)
				}
				c.Set(func() { c.Endpoints["c1"].Address = device.Address.Addr() })
				must(t, n.Do(func() error {
					link, err := netlink.LinkByName("eth0")
					if err != nil {
						return err
					}
					return netlink.LinkSetDown(link)
				}))
				if err := r.cni.CheckNetworkList(ctx, r.list, rt); err == nil || !strings.Contains(err.Error(), "eth0 is down") {
					t.Errorf("CHECK of a device that is down: %v", err)
				}
			}

			must(t, r.cni.DelNetworkList(ctx, r.list, rt))
			if err := n.Do(func() error { return netcfg.Check(device) }); err == nil {
				t.Error("after DEL the device is still there")
			}
			must(t, r.cni.DelNetworkList(ctx, r.list, rt))
			must(t, r.cni.DelNetworkList(ctx, r.list, &libcni.RuntimeConf{ContainerID: "c1", IfName: "eth0"}))
			if diff := cmp.Diff([]string{"c1", "c1", "c1"}, c.Seen().Detached); diff != "" {
				t.Errorf("detached (-want +got):\n%s", diff)
			}
		})
	}
}
