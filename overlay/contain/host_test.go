package contain

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/overlay/netcfg/nstest"
	"tulle/policy/api"
)

// onHost runs the supervisor on a host as the script makes it: in a mount
// namespace of its own, by root, before the supervisor becomes uid.
func (c *cell) onHost(uid int, script string, mutate func(*supervised), command ...string) (out string, p *process) {
	c.t.Helper()
	var b bytes.Buffer
	p = c.run(uid, func(o *supervised, cmd *exec.Cmd) {
		if mutate != nil {
			mutate(o)
		}
		o.Command = command
		become := ""
		if uid != 0 {
			become = fmt.Sprintf("setpriv --reuid=%d --regid=%d --clear-groups ", uid, uid)
		}
		cmd.Path = "/bin/sh"
		cmd.Args = []string{"sh", "-e", "-c", "mount --make-rprivate /\n" + script + "\nset +e\n" + become + c.binary + " supervise\nstatus=$?\nafter\nexit $status"}
		if !strings.Contains(script, "after()") {
			cmd.Args[3] = "after() { true; }\n" + cmd.Args[3]
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
		cmd.Stdout = &b
	})
	p.status()
	return b.String(), p
}

// TestNameServiceFiles on hosts that have them elsewhere, or not at all: the
// command reads ours, the host's directory stays as it was.
func TestNameServiceFiles(t *testing.T) {
	nstest.NeedRoot(t)
	const etc = `
mkdir /tmp/T/etc && cp -a /etc/passwd /etc/group /etc/ssl /tmp/T/etc/ && ln -s /usr/share/zoneinfo/UTC /tmp/T/etc/localtime
%s
mount --bind /tmp/T/etc /etc
ls -lanR /etc > /tmp/T/before
after() { ls -lanR /etc > /tmp/T/after; cmp /tmp/T/before /tmp/T/after || echo THE HOST HAS CHANGED; }`
	for _, row := range []struct{ name, files string }{
		{"neither is there", ""},
		{"a link that leads nowhere", "ln -s /run/nowhere/resolv.conf /tmp/T/etc/resolv.conf; echo 'hosts: resolve files' > /tmp/T/etc/nsswitch.conf"},
		{"a link into another directory", `mkdir /tmp/T/elsewhere && echo nameserver 192.0.2.1 > /tmp/T/elsewhere/stub.conf
ln -s /tmp/T/elsewhere/stub.conf /tmp/T/etc/resolv.conf`},
		{"a file mounted over", `echo nameserver 192.0.2.1 > /tmp/T/other; touch /tmp/T/etc/resolv.conf
mount --bind /tmp/T/other /tmp/T/etc/resolv.conf; echo 'hosts: files resolve [NOTFOUND=return] dns' > /tmp/T/etc/nsswitch.conf`},
	} {
		t.Run(row.name, func(t *testing.T) {
			eachUser(t, func(t *testing.T, uid int) {
				c := newCell(t)
				script := strings.ReplaceAll(fmt.Sprintf(etc, row.files), "/tmp/T/", c.dir+"/")
				script = strings.Replace(script, "mount --bind "+c.dir+"/etc", "mount --rbind "+c.dir+"/etc", 1)
				look := strings.ReplaceAll(`cat /etc/resolv.conf; grep hosts /etc/nsswitch.conf; grep -c root: /etc/passwd; readlink /etc/localtime
test -d /etc/ssl && ! touch /etc/resolv.conf 2>/dev/null && test ! -e /tmp/T/elsewhere/stub.conf -o "$(cat /tmp/T/elsewhere/stub.conf 2>&1)" = "nameserver 169.254.0.2" && echo fine`, "/tmp/T/", c.dir+"/")
				out, p := c.onHost(uid, script, nil, "/bin/sh", "-c", look)
				hosts := "files dns"
				if strings.Contains(row.files, "'hosts: resolve files'") {
					hosts = "files"
				}
				want := "nameserver 169.254.0.2\nhosts: " + hosts + "\n1\n/usr/share/zoneinfo/UTC\nfine\n"
				if out != want || p.ProcessState.ExitCode() != 0 {
					t.Errorf("got %q, want %q; errors: %s", out, want, p.errors)
				}
			})
		})
	}
}

// TestHostLacksSomething: the error says what, and the command that mends it.
func TestHostLacksSomething(t *testing.T) {
	nstest.NeedRoot(t)
	const devices = "mount -t tmpfs tmpfs /dev/net\n"
	for _, row := range []struct {
		name, script string
		uid          int
		says         string
	}{
		{"no TUN device", devices, 0, "modprobe tun"},
		{"no TUN device, ordinary user", devices, Nobody, "modprobe tun"},
		{"TUN device closed", devices + "mknod -m 0600 /dev/net/tun c 10 200", Nobody, "chmod 0666 /dev/net/tun"},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newCell(t)
			out, p := c.onHost(row.uid, row.script, nil, "/bin/echo", "ran")
			if out != "" || p.ProcessState.ExitCode() != StatusOwn || !strings.Contains(p.errors.String(), row.says) {
				t.Errorf("status %d, said %q; errors: %q, want %q", p.ProcessState.ExitCode(), out, p.errors, row.says)
			}
			if len(c.attaches) != 0 {
				t.Error("something was attached")
			}
		})
	}
	t.Run("a closed TUN device does for root", func(t *testing.T) {
		c := newCell(t)
		out, p := c.onHost(0, devices+"mknod -m 0600 /dev/net/tun c 10 200", nil, "/bin/echo", "ran")
		if out != "ran\n" {
			t.Errorf("said %q; errors: %s", out, p.errors)
		}
	})
	t.Run("no user namespaces", func(t *testing.T) {
		c := newCell(t)
		p := c.run(0, func(o *supervised, cmd *exec.Cmd) {
			cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", "echo 0 > /proc/sys/user/max_user_namespaces; exec " + c.binary + " supervise"}
			all := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 70000}}
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: all, GidMappings: all}
		}, "probe-exit", "0")
		if got := p.status(); got != StatusOwn || !strings.Contains(p.errors.String(), "as root: sysctl -w user.max_user_namespaces=15000") {
			t.Errorf("status %d, errors: %s", got, p.errors)
		}
	})
	t.Run("root of a namespace without the command's uid", func(t *testing.T) {
		c := newCell(t)
		p := c.run(0, func(o *supervised, cmd *exec.Cmd) {
			one := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: one, GidMappings: one}
		}, "probe-exit", "0")
		if got := p.status(); got != StatusOwn || !strings.Contains(p.errors.String(), "no uid 65534") {
			t.Errorf("status %d, errors: %s", got, p.errors)
		}
	})
}

// TestHostsDeviceOfThatName: root's host has an eth0 too, and keeps it.
func TestHostsDeviceOfThatName(t *testing.T) {
	nstest.NeedRoot(t)
	host, peer := nstest.New(t), nstest.New(t)
	name, _ := nstest.Veth(t, host, peer, netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("192.0.2.2/24"))
	eth0 := func() (s string) {
		must(t, host.Do(func() error {
			link, err := netlink.LinkByName(Device)
			if err != nil {
				return err
			}
			addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
			s = fmt.Sprint(link.Type(), link.Attrs().MTU, link.Attrs().Flags&net.FlagUp, addrs)
			return err
		}))
		return s
	}
	must(t, host.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetDown(link); err != nil {
			return err
		}
		if err := netlink.LinkSetName(link, Device); err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	}))
	before := eth0()
	c := newCell(t)
	must(t, host.Do(func() error {
		p := c.run(0, func(o *supervised, _ *exec.Cmd) { o.Command = []string{"/bin/cat", "/sys/class/net/eth0/mtu"} })
		p.expect(fmt.Sprint(mtu))
		p.status()
		return nil
	}))
	if after := eth0(); after != before {
		t.Errorf("the host's eth0 was %s and is %s", before, after)
	}
}

func TestMasks(t *testing.T) {
	eachUser(t, func(t *testing.T, uid int) {
		c := newCell(t)
		more := filepath.Join(c.dir, "more", "deeper")
		must(t, os.MkdirAll(more, 0o777))
		must(t, os.WriteFile(filepath.Join(more, "file"), nil, 0o666))
		t.Run("named by the caller", func(t *testing.T) {
			p := c.run(uid, func(o *supervised, _ *exec.Cmd) {
				o.MaskDirs = []string{filepath.Dir(more), more, filepath.Join(c.dir, "absent")}
				o.Command = []string{"/bin/sh", "-c", "ls -A " + filepath.Dir(more) + " " + filepath.Dir(c.key) + " " + filepath.Dir(c.socket)}
			})
			if got := p.status(); got != 0 {
				t.Errorf("status %d, errors: %s", got, p.errors)
			}
		})
		t.Run("the working directory under one", func(t *testing.T) {
			p := c.run(uid, func(o *supervised, _ *exec.Cmd) { o.Dir = more; o.MaskDirs = []string{filepath.Dir(more)} }, "probe-exit", "0")
			if got := p.status(); got != StatusOwn || !strings.Contains(p.errors.String(), "working directory") {
				t.Errorf("status %d, errors: %s", got, p.errors)
			}
		})
		t.Run("all of the file system", func(t *testing.T) {
			p := c.run(uid, func(o *supervised, _ *exec.Cmd) { o.MaskDirs = []string{"/"} }, "probe-exit", "0")
			if got := p.status(); got != StatusOwn || !strings.Contains(p.errors.String(), "hide /") {
				t.Errorf("status %d, errors: %s", got, p.errors)
			}
		})
		t.Run("a socket among others", func(t *testing.T) {
			p := c.run(uid, func(o *supervised, _ *exec.Cmd) { o.Socket = "/tmp/celld.sock" }, "probe-exit", "0")
			if got := p.status(); got != StatusOwn || !strings.Contains(p.errors.String(), "directory of its own") {
				t.Errorf("status %d, errors: %s", got, p.errors)
			}
		})
	})
}

// TestContextEndsTheCommand calls Run in this process: terminate first, kill
// after the grace; streams that are no files.
func TestContextEndsTheCommand(t *testing.T) {
	needTUN(t, os.Geteuid())
	for _, row := range []struct {
		name, trap string
		grace      time.Duration
		want       int
	}{
		{"terminates", "exit 9", time.Minute, 9},
		{"has to be killed", "", time.Millisecond, 128 + 9},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newCell(t)
			ctx, cancel := context.WithCancel(t.Context())
			ready, signals := make(chan struct{}), make(chan os.Signal)
			go func() {
				<-ready
				signals <- syscall.SIGWINCH // taken by a supervisor that watches its command
				cancel()
			}()
			var attached []control.Attached
			status, err := Run(ctx, Options{App: api.AppRef{Name: "web"}, Socket: c.socket, Dir: "/", Grace: row.grace,
				Command: []string{"/bin/sh", "-c", "trap '" + row.trap + "' TERM; echo ready; while :; do sleep 1000 & wait $!; done"},
				Stdin:   strings.NewReader(""), Stdout: whenWritten(sync.OnceFunc(func() { close(ready) })), Signals: signals,
				Attached: func(a control.Attached) { attached = append(attached, a) }})
			if status != row.want || err != nil {
				t.Errorf("status %d, %v; want %d", status, err, row.want)
			}
			if len(attached) != 1 || attached[0].Address.String() != address {
				t.Errorf("attached %v", attached)
			}
			if r := await(t, c.attaches, "the attach"); !strings.HasPrefix(r.Container, "run-") {
				t.Errorf("container %q", r.Container)
			}
		})
	}
}

type whenWritten func()

func (f whenWritten) Write(b []byte) (int, error) { f(); return len(b), nil }
