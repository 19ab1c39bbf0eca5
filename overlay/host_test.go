package overlay

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"tulle/overlay/control"
	"tulle/overlay/netcfg"
	"tulle/overlay/netcfg/nstest"
)

const insideHost = "TULLE_TEST_HOST"

// A host has an eth0 as its containers do. A daemon with every right over it, in
// its namespace, attaches a container's eth0, carries its packets, is restarted
// and detaches it: the host's has its MTU, its addresses and its state as before,
// and no other device is there. The test runs itself in a namespace that plays
// the host.
func TestHostInterfaceOfThatName(t *testing.T) {
	nstest.NeedTUN(t)
	nstest.NeedNamespaces(t)
	if os.Getenv(insideHost) == "" {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestHostInterfaceOfThatName$", "-test.v")
		cmd.Env = append(os.Environ(), insideHost+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestHostInterfaceOfThatName") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if err := netcfg.LoopbackUp(); err != nil {
		t.Fatal(err)
	}
	const mtu = 1337 // nobody's
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: mtu}, PeerName: "far0"}
	addr, err := netlink.ParseAddr("192.0.2.5/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	for _, f := range []func() error{
		func() error { return netlink.AddrAdd(veth, addr) },
		func() error { return netlink.LinkSetUp(veth) },
	} {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	look := func() (s string) {
		t.Helper()
		links, err := netlink.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
			if err != nil {
				t.Fatal(err)
			}
			a := l.Attrs()
			s += fmt.Sprintln(a.Index, a.Name, l.Type(), a.MTU, a.Flags, a.TxQLen, addrs)
		}
		return s
	}
	before := look()
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", nil)
	p.allow(tcp("web", "db", 5432))
	web, db := one.attach("web-1", "web", control.LifelineNone), one.attach("db-1", "db", control.LifelineNone)
	db.listen(5432)
	web.reaches(db, 5432)
	if during := look(); during != before {
		t.Errorf("the host's devices were\n%sand are, with containers,\n%s", before, during)
	}
	one.shut()
	one.run()
	web.reaches(db, 5432)
	for _, c := range []string{"web-1", "db-1"} {
		if err := one.client().Detach(t.Context(), control.Detach{Container: c}); err != nil {
			t.Fatal(err)
		}
	}
	if after := look(); after != before {
		t.Errorf("the host's devices were\n%sand are\n%s", before, after)
	}
	if !strings.Contains(before, fmt.Sprint("eth0 veth ", mtu)) {
		t.Errorf("nothing was looked at:\n%s", before)
	}
}
