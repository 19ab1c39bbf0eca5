package contain

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestResolvConf(t *testing.T) {
	for _, c := range []struct{ name, host, want string }{
		{"none", "", "nameserver R\n"},
		{"nameservers are replaced", "nameserver 192.0.2.1\nnameserver fd00::1\n", "nameserver R\n"},
		{"search stays", "search a.example b.example\nnameserver 192.0.2.1", "nameserver R\nsearch a.example b.example\n"},
		{"domain stays", "domain a.example", "nameserver R\ndomain a.example\n"},
		{"options stay", "options ndots:5 timeout:1", "nameserver R\noptions ndots:5 timeout:1\n"},
		{"but those that the resolver cannot keep", "options use-vc edns0 trust-ad", "nameserver R\noptions use-vc edns0\n"},
		{"no empty options", "options trust-ad", "nameserver R\n"},
		{"comments and the rest go", "# made by\n; hand\nsortlist 10.0.0.0/8\nsearch", "nameserver R\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, resolvFor("R", c.host)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestNsswitchWithoutResolve(t *testing.T) {
	for _, c := range []struct{ name, host, want string }{
		{"none", "", "hosts: files dns\n"},
		{"no hosts line", "passwd: files\n", "passwd: files\nhosts: files dns\n"},
		{"plain", "hosts: files dns\n", "hosts: files dns\n"},
		{"as systemd has it", "passwd: files systemd\nhosts:      mymachines resolve [!UNAVAIL=return] files myhostname dns\n",
			"passwd: files systemd\nhosts: mymachines files myhostname dns\n"},
		{"several actions, no spaces", "hosts: files resolve[!UNAVAIL=return SUCCESS=return][NOTFOUND=continue]dns # why", "hosts: files dns # why\n"},
		{"other actions stay", "hosts: mdns4_minimal [NOTFOUND=return] resolve dns", "hosts: mdns4_minimal [NOTFOUND=return] dns\n"},
		{"nothing else", "hosts: resolve\n", "hosts: files dns\n"},
		{"in a comment", "# hosts: resolve\nhosts: dns", "# hosts: resolve\nhosts: dns\n"},
		{"another database's", "networks: resolve\nhosts: dns\n", "networks: resolve\nhosts: dns\n"},
		{"bracket left open", "hosts: dns [NOTFOUND", "hosts: dns [NOTFOUND\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, withoutResolve(c.host)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// FuzzNameServiceFiles: whatever the host's administrator wrote, the command's
// files name our resolver and no other, hosts are looked up without "resolve",
// and doing it again changes nothing.
func FuzzNameServiceFiles(f *testing.F) {
	f.Add("hosts: mymachines resolve [!UNAVAIL=return] files dns # x\n")
	f.Add("nameserver 192.0.2.1\nsearch a b\noptions use-vc ndots:2\n")
	f.Add("hosts:[[]resolve]\n\nhosts: resolve\n")
	f.Fuzz(func(t *testing.T, host string) {
		nsswitch := withoutResolve(host)
		if again := withoutResolve(nsswitch); again != nsswitch {
			t.Errorf("%q becomes %q, then %q", host, nsswitch, again)
		}
		found := false
		for line := range strings.Lines(nsswitch) {
			text, _, _ := strings.Cut(line, "#")
			database, services, ok := strings.Cut(text, ":")
			if !ok || strings.TrimSpace(database) != "hosts" {
				continue
			}
			found = true
			for _, s := range servicesWithout(services, "") {
				if s == "resolve" {
					t.Errorf("%q still asks resolve: %q", host, nsswitch)
				}
			}
		}
		if !found {
			t.Errorf("%q has no hosts line", nsswitch)
		}
		resolv := resolvFor("169.254.0.2", host)
		for line := range strings.Lines(resolv) {
			if fields := strings.Fields(line); fields[0] == "nameserver" && fields[1] != "169.254.0.2" {
				t.Errorf("%q asks %s", host, fields[1])
			}
		}
	})
}
