package cni_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tulle/cni"
	"tulle/cni/internal/cnitest"
	"tulle/overlay/control"
	"tulle/overlay/netcfg/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// env is the environment of a call.
func env(command, id, netns, ifname string) map[string]string {
	return map[string]string{"CNI_COMMAND": command, "CNI_CONTAINERID": id, "CNI_NETNS": netns, "CNI_IFNAME": ifname, "CNI_PATH": "/opt/cni/bin"}
}

func conf(version, socket string) string {
	return fmt.Sprintf(`{"cniVersion": %q, "name": "web-net", "type": "tulle-cni", "socket": %q, "app": {"name": "web"}}`, version, socket)
}

func call(env map[string]string, stdin string) (stdout string, code int) {
	var out, errs bytes.Buffer
	code = cni.Run(func(k string) string { return env[k] }, strings.NewReader(stdin), &out, &errs)
	return out.String(), code
}

func TestVersion(t *testing.T) {
	out, code := call(map[string]string{"CNI_COMMAND": "VERSION"}, "")
	var got struct{ SupportedVersions []string }
	must(t, json.Unmarshal([]byte(out), &got))
	if diff := cmp.Diff([]string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}, got.SupportedVersions); code != 0 || diff != "" {
		t.Errorf("code %d, versions (-want +got):\n%s", code, diff)
	}
}

// TestErrors: each fault has the specification's code, and leaves neither
// device nor endpoint.
func TestErrors(t *testing.T) {
	nstest.NeedTUN(t)
	n := nstest.New(t)
	c := cnitest.New(t)
	good := conf("1.0.0", c.Socket)
	prev := func(address string) string {
		return strings.Replace(good, `"app"`, `"prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "x"}],
			"ips": [{"interface": 0, "address": "`+address+`"}]}, "app"`, 1)
	}
	for _, row := range []struct {
		name   string
		env    map[string]string
		stdin  string
		refuse error
		code   uint
		says   string
	}{
		{"no command", env("", "c1", n.Path(), "eth0"), good, nil, types.ErrInvalidEnvironmentVariables, `CNI_COMMAND ""`},
		{"unknown command", env("FLY", "c1", n.Path(), "eth0"), good, nil, types.ErrInvalidEnvironmentVariables, `"FLY"`},
		{"not JSON", env("ADD", "c1", n.Path(), "eth0"), "{", nil, types.ErrDecodingFailure, "network configuration"},
		{"old version", env("ADD", "c1", n.Path(), "eth0"), conf("0.2.0", c.Socket), nil, types.ErrIncompatibleCNIVersion, "incompatible"},
		{"version to come", env("ADD", "c1", n.Path(), "eth0"), conf("9.0.0", c.Socket), nil, types.ErrIncompatibleCNIVersion, "incompatible"},
		{"version to come, with a result", env("ADD", "c1", n.Path(), "eth0"), strings.Replace(conf("9.0.0", c.Socket), `"app"`, `"prevResult": {"cniVersion": "9.0.0"}, "app"`, 1), nil, types.ErrIncompatibleCNIVersion, "incompatible"},
		{"result of another version", env("ADD", "c1", n.Path(), "eth0"), strings.Replace(good, `"app"`, `"prevResult": {"cniVersion": "0.4.0"}, "app"`, 1), nil, types.ErrDecodingFailure, "prevResult"},
		{"STATUS before it was", env("STATUS", "", "", ""), good, nil, types.ErrIncompatibleCNIVersion, "has no STATUS"},
		{"GC before it was", env("GC", "", "", ""), good, nil, types.ErrIncompatibleCNIVersion, "has no GC"},
		{"GC without the daemon", env("GC", "", "", ""), conf("1.1.0", "/nowhere.sock"), nil, types.ErrTryAgainLater, "start tulle-celld"},
		{"ports", env("ADD", "c1", n.Path(), "eth0"), strings.Replace(good, `"app"`, `"runtimeConfig": {"portMappings": [{"hostPort": 80, "hostIP": "here"}]}, "app"`, 1), nil, types.ErrInvalidNetworkConfig, "hostIP"},
		{"port taken", env("ADD", "c1", n.Path(), "eth0"), good, control.Errorf(control.CodePortTaken, "port 80 is c9's"), cni.CodePortTaken, "c9's"},
		{"no network name", env("ADD", "c1", n.Path(), "eth0"), `{"cniVersion": "1.0.0"}`, nil, types.ErrInvalidNetworkConfig, "name"},
		{"nothing said", env("ADD", "", "", ""), good, nil, types.ErrInvalidEnvironmentVariables, "missing CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS"},
		{"bad id", env("ADD", "../c1", n.Path(), "eth0"), good, nil, types.ErrInvalidEnvironmentVariables, "containerID"},
		{"bad device", env("ADD", "c1", n.Path(), "a/b"), good, nil, types.ErrInvalidEnvironmentVariables, "interface name"},
		{"no app", env("ADD", "c1", n.Path(), "eth0"), strings.Replace(good, `"web"`, `""`, 1), nil, types.ErrInvalidNetworkConfig, "TULLE_APP"},
		{"namespace not there", env("ADD", "c1", "/proc/self/fd/9999", "eth0"), good, nil, types.ErrInvalidNetNS, "no such file"},
		{"not a namespace", env("ADD", "c1", "/dev/null", "eth0"), good, nil, types.ErrInvalidNetNS, "not a namespace"},
		{"our own namespace", env("ADD", "c1", "/proc/self/ns/net", "eth0"), good, nil, types.ErrInvalidNetNS, "own network namespace"},
		{"daemon not there", env("ADD", "c1", n.Path(), "eth0"), conf("1.0.0", "/nowhere.sock"), nil, types.ErrTryAgainLater, "start tulle-celld"},
		{"DEL without the daemon", env("DEL", "c1", "", "eth0"), conf("1.0.0", "/nowhere.sock"), nil, types.ErrTryAgainLater, "start tulle-celld"},
		{"STATUS without the daemon", env("STATUS", "", "", ""), conf("1.1.0", "/nowhere.sock"), nil, types.ErrPluginNotAvailable, "start tulle-celld"},
		{"device there already", env("ADD", "c1", n.Path(), "lo"), good, nil, types.ErrInternal, "is there already"},
		{"pool empty", env("ADD", "c1", n.Path(), "eth0"), good, control.Errorf(control.CodePoolEmpty, "no address is free"), types.ErrTryAgainLater, "no address is free"},
		{"address taken", env("ADD", "c1", n.Path(), "eth0"), good, control.Errorf(control.CodeNoAddress, "10.255.7.9 is in use"), cni.CodeNoAddress, "in use"},
		{"not allowed", env("ADD", "c1", n.Path(), "eth0"), good, control.Errorf(control.CodeNotAllowed, "uid 7 may not"), cni.CodeNotAllowed, "uid 7 may not"},
		{"refused by the server", env("ADD", "c1", n.Path(), "eth0"), good, control.Errorf(control.CodeRefused, "space x"), cni.CodeRefused, "space x"},
		{"CHECK of nothing", env("CHECK", "c1", n.Path(), "eth0"), prev("10.255.7.3/32"), nil, types.ErrUnknownContainer, "no container c1"},
		{"CHECK without a result", env("CHECK", "c1", n.Path(), "eth0"), good, nil, types.ErrInvalidNetworkConfig, "prevResult"},
	} {
		t.Run(row.name, func(t *testing.T) {
			c.Set(func() { c.Refuse = row.refuse })
			out, code := call(row.env, row.stdin)
			var got struct {
				CNIVersion string
				Code       uint
				Msg        string
			}
			if err := json.Unmarshal([]byte(out), &got); err != nil || code != 1 {
				t.Fatalf("exit status %d, %v: %s", code, err, out)
			}
			if got.Code != row.code || !strings.Contains(got.Msg, row.says) || got.CNIVersion == "" {
				t.Errorf("got %s, want code %d and %q", out, row.code, row.says)
			}
			nothingLeft(t, n, c)
		})
	}
}

// TestSocketOfAnotherUser: trying again would not help, so it is not said.
func TestSocketOfAnotherUser(t *testing.T) {
	c := cnitest.New(t)
	must(t, os.Chmod(c.Socket, 0))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if os.Getuid() == 0 { // the thread opens files as an ordinary user, and ends with its goroutine
			runtime.LockOSThread()
			if _, err := unix.SetfsuidRetUid(65534); err != nil {
				t.Error(err)
			}
		}
		out, code := call(env("GC", "", "", ""), conf("1.1.0", c.Socket))
		if want := fmt.Sprintf(`"code":%d`, cni.CodeNotAllowed); code != 1 || !strings.Contains(out, want) || !strings.Contains(out, "run as the daemon's user") {
			t.Errorf("exit status %d: %s; want %s", code, out, want)
		}
	}()
	<-done
}

// TestFailureAfterTheAttachLeavesNothing: an address that the device cannot
// have, as a faulty daemon would give it.
func TestFailureAfterTheAttachLeavesNothing(t *testing.T) {
	nstest.NeedTUN(t)
	n, c := nstest.New(t), cnitest.New(t)
	c.Set(func() { c.MTU = 1 << 30 })
	out, code := call(env("ADD", "c1", n.Path(), "eth0"), conf("1.0.0", c.Socket))
	if code != 1 || !strings.Contains(out, "MTU") {
		t.Errorf("exit status %d: %s", code, out)
	}
	if diff := cmp.Diff([]string{"c1"}, c.Seen().Detached); diff != "" {
		t.Errorf("detached (-want +got):\n%s", diff)
	}
	nothingLeft(t, n, c)
}

func TestSameContainerTwice(t *testing.T) {
	nstest.NeedTUN(t)
	a, b, c := nstest.New(t), nstest.New(t), cnitest.New(t)
	if out, code := call(env("ADD", "c1", a.Path(), "eth0"), conf("1.0.0", c.Socket)); code != 0 {
		t.Fatal(out)
	}
	out, code := call(env("ADD", "c1", b.Path(), "eth0"), conf("1.0.0", c.Socket))
	if code != 1 || !strings.Contains(out, strconv.Itoa(int(cni.CodeExists))) {
		t.Errorf("exit status %d: %s", code, out)
	}
	if len(c.Seen().Detached) != 0 {
		t.Error("the failed ADD detached the container that is there")
	}
	t.Run("a second device is another endpoint", func(t *testing.T) {
		c.Set(func() { c.Address = netip.MustParsePrefix("10.255.7.4/32") })
		if out, code := call(env("ADD", "c1", b.Path(), "eth1"), conf("1.0.0", c.Socket)); code != 0 {
			t.Fatal(out)
		}
		if diff := cmp.Diff([]string{"c1", "c1.eth1"}, c.Seen().Containers); diff != "" {
			t.Errorf("endpoints (-want +got):\n%s", diff)
		}
	})
}

// TestDelOfWhatWasRefused: whatever ADD found wrong with what the container was to be,
// the runtime takes it away with the same configuration.
func TestDelOfWhatWasRefused(t *testing.T) {
	nstest.NeedTUN(t)
	n, c := nstest.New(t), cnitest.New(t)
	for _, bad := range []string{
		`"runtimeConfig": {"portMappings": [{"hostPort": 70000, "containerPort": 80}]}`, `"runtimeConfig": {"bandwidth": {"ingressRate": -1}}`,
		`"prevResult": {"cniVersion": "0.4.0"}`, `"prevResult": {"ips": 7}`, `"dns": "here"`, `"metadata": {"space_id": 7}`,
	} {
		stdin := strings.Replace(conf("1.1.0", c.Socket), `"app"`, bad+`, "app"`, 1)
		if out, code := call(env("ADD", "c1", n.Path(), "eth0"), stdin); code != 1 || !strings.Contains(out, `"code":6`) || !strings.Contains(out, `"cniVersion":"1.1.0"`) {
			t.Errorf("%s: ADD: exit status %d: %s", bad, code, out)
		}
		for _, command := range []string{"DEL", "GC"} {
			if out, code := call(env(command, "c1", n.Path(), "eth0"), stdin); code != 0 {
				t.Errorf("%s: %s: exit status %d: %s", bad, command, code, out)
			}
		}
	}
	nothingLeft(t, n, c)
}

// TestNameThatNoContainerCanHave: ADD is refused, the DEL that follows has nothing to
// take away, and GC keeps the others.
func TestNameThatNoContainerCanHave(t *testing.T) {
	nstest.NeedTUN(t)
	n, c := nstest.New(t), cnitest.New(t)
	for _, id := range []string{strings.Repeat("c", 200), strings.Repeat("c", 128)} {
		device := "eth1" // 128 letters are too many with that behind them
		out, code := call(env("ADD", id, n.Path(), device), conf("1.1.0", c.Socket))
		if code != 1 || !strings.Contains(out, "at most 128") && !strings.Contains(out, "1 to 128") {
			t.Errorf("ADD: exit status %d: %s", code, out)
		}
		nothingLeft(t, n, c)
		if out, code := call(env("DEL", id, n.Path(), device), conf("1.1.0", c.Socket)); code != 0 {
			t.Errorf("DEL: exit status %d: %s", code, out)
		}
		if out, code := call(env("ADD", "c1", n.Path(), "eth0"), conf("1.1.0", c.Socket)); code != 0 {
			t.Fatal(out)
		}
		valid := fmt.Sprintf(`"cni.dev/valid-attachments": [{"containerID": %q, "ifname": %q}], "app"`, id, device)
		if out, code := call(env("GC", "", "", ""), strings.Replace(conf("1.1.0", c.Socket), `"app"`, valid, 1)); code != 0 {
			t.Errorf("GC: exit status %d: %s", code, out)
		}
		nothingLeft(t, n, c)
	}
}

// TestLifelineIsTheProcess where the runtime names the namespace by one.
func TestLifelineIsTheProcess(t *testing.T) {
	nstest.NeedTUN(t)
	c := cnitest.New(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	container := exec.Command("/bin/cat")
	container.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	in, err := container.StdinPipe()
	must(t, err)
	must(t, container.Start())
	defer func() {
		must(t, in.Close())
		must(t, container.Wait())
	}()
	out, code := call(env("ADD", "c1", fmt.Sprintf("/proc/%d/ns/net", container.Process.Pid), "eth0"), conf("1.0.0", c.Socket))
	if code != 0 {
		t.Fatal(out)
	}
	if got := c.Seen().Attaches[0].Lifeline; got != control.LifelinePidfd {
		t.Errorf("lifeline %s", got)
	}
}

// TestSomebodyElseHas61443: the platform's own proxy, of either family, keeps the
// port; the container is attached without TLS, and the daemon is told why.
func TestSomebodyElseHas61443(t *testing.T) {
	nstest.NeedTUN(t)
	for _, at := range []string{"127.0.0.1:61443", "0.0.0.0:61443", "[::1]:61443"} {
		c := cnitest.New(t)
		n := nstest.New(t)
		var taken net.Listener
		must(t, n.Do(func() (err error) {
			taken, err = net.Listen("tcp", at)
			return err
		}))
		out, code := call(env("ADD", "c1", n.Path(), "eth0"), conf("1.0.0", c.Socket))
		if code != 0 {
			t.Fatalf("beside %s: %s", at, out)
		}
		if got := c.Seen().Attaches[0].TLS; got == nil || !strings.Contains(got.Off, "port 61443: the port is in use") {
			t.Errorf("beside %s the daemon was told %+v", at, got)
		}
		must(t, taken.Close())
	}
}

// TestPreviousResultIsKept: a plugin in a chain hands on what came before.
func TestPreviousResultIsKept(t *testing.T) {
	nstest.NeedTUN(t)
	n, c := nstest.New(t), cnitest.New(t)
	chained := strings.Replace(conf("1.0.0", c.Socket), `"app"`, `"prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth9"}],
		"ips": [{"interface": 0, "address": "192.0.2.1/24"}]}, "app"`, 1)
	out, code := call(env("ADD", "c1", n.Path(), "eth0"), chained)
	var got struct {
		Interfaces []struct{ Name string }
		IPs        []struct {
			Interface int
			Address   string
		}
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 {
		t.Fatal(err, out)
	}
	if s := fmt.Sprint(got); s != "{[{eth9} {eth0}] [{0 192.0.2.1/24} {1 10.255.7.3/32}]}" {
		t.Errorf("got %s", s)
	}
}

func nothingLeft(t *testing.T, n *nstest.Namespace, c *cnitest.Cell) {
	t.Helper()
	must(t, n.Do(func() error {
		links, err := netlink.LinkList()
		if err == nil && len(links) != 1 {
			t.Errorf("devices left: %v", links)
		}
		return err
	}))
	if left := c.Seen().Containers; len(left) != 0 {
		t.Errorf("endpoints left: %v", left)
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		for _, f := range fds {
			if to, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil && to == "/dev/net/tun" {
				t.Error("a TUN descriptor is left")
			}
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
