package contain

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestPromises looks around from inside, as a command of root's and of an
// ordinary user's.
func TestPromises(t *testing.T) {
	eachUser(t, func(t *testing.T, uid int) {
		c := newCell(t)
		hostResolv, _ := os.ReadFile("/etc/resolv.conf")
		// A descriptor without close-on-exec, as a careless shell leaves it.
		secret, err := os.Open(c.key)
		must(t, err)
		defer secret.Close()
		_, err = unix.FcntlInt(secret.Fd(), unix.F_SETFD, 0)
		must(t, err)

		p := c.run(uid, func(o *supervised, cmd *exec.Cmd) {
			o.Command = append([]string{c.binary, "probe-look"}, c.socket, c.key, strconv.Itoa(os.Getpid()))
			cmd.ExtraFiles = []*os.File{secret}
		})
		var s seen
		decodeErr := json.NewDecoder(p.out).Decode(&s)
		if status := p.status(); status != 0 || decodeErr != nil {
			t.Fatalf("status %d, %v, errors: %s", status, decodeErr, p.errors)
		}

		command := Nobody
		if uid != 0 {
			command = uid
		}
		if s.UID != command || s.GID != command {
			t.Errorf("runs as %d:%d, want %d", s.UID, s.GID, command)
		}
		const none = "0000000000000000"
		for k, want := range map[string]string{"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none,
			"CapAmb": none, "NoNewPrivs": "1"} {
			if s.Status[k] != want {
				t.Errorf("%s is %s, want %s", k, s.Status[k], want)
			}
		}
		if groups := s.Status["Groups"]; uid == 0 && groups != "" {
			t.Errorf("root's groups are still there: %s", groups)
		}
		for what, err := range s.Refused {
			if err == "" {
				t.Errorf("the command may %s", what)
			}
		}
		if len(s.Descriptors) != 0 {
			t.Errorf("descriptors beside the standard three: %v", s.Descriptors)
		}
		if len(s.PIDs) != 2 || s.PIDs[0] != 1 {
			t.Errorf("processes visible: %v, want the init and the command", s.PIDs)
		}
		if s.Dir != c.dir || s.Env != "kept" {
			t.Errorf("working directory %q, environment %q", s.Dir, s.Env)
		}
		if diff := cmp.Diff([]string{"lo 65536 [127.0.0.1/8 ::1/128] true",
			fmt.Sprintf("eth0 %d [%s %s] true", mtu, address, address6)}, s.Interfaces); diff != "" {
			t.Errorf("devices (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"eth0", "lo"}, s.SysNet); diff != "" {
			t.Errorf("/sys/class/net (-want +got):\n%s", diff)
		}
		if !strings.Contains(s.Routes, "eth0\t00000000\t00000000\t0001\t") {
			t.Errorf("no default route through eth0 (and without a gateway):\n%s", s.Routes)
		}
		if !strings.HasPrefix(s.Resolv, "nameserver 169.254.0.2\n") || strings.Count(s.Resolv, "nameserver") != 1 {
			t.Errorf("resolv.conf: %q", s.Resolv)
		}
		if !strings.Contains(s.Nsswitch, "\nhosts:") && !strings.HasPrefix(s.Nsswitch, "hosts:") {
			t.Errorf("nsswitch.conf: %q", s.Nsswitch)
		}
		if now, _ := os.ReadFile("/etc/resolv.conf"); string(now) != string(hostResolv) {
			t.Error("the host's resolv.conf has changed")
		}
		r := await(t, c.attaches, "the attach")
		if r.App.Name != "web" || r.Device != "eth0" || r.Peer.UID != uint32(uid) {
			t.Errorf("attach %+v", r)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if diff := cmp.Diff([]string{container}, c.detached); diff != "" {
			t.Errorf("detached when tulle run had ended (-want +got):\n%s", diff)
		}
	})
}
