package netlab

import (
	"fmt"
	"os/exec"
	"strings"
)

// The client's tag, and the first port that the server's policies allow.
const (
	clientTag = 1
	// FirstPort and LastPort are what the policy that matches allows.
	FirstPort, LastPort = 7000, 7099
)

// Policies replaces the cells' rules by silk's, in silk's order: packets of the
// client are marked with its tag; on the server's cell one ACCEPT a policy, then
// RELATED,ESTABLISHED, then REJECT; on the client's the latter two. Of the n
// policies on the server's cell the one that matches is at position at (0: the
// first).
func (k *Kernel) Policies(n, at int) error {
	program, err := exec.LookPath("iptables-legacy-restore")
	if err != nil {
		return k.policiesByNFTables(n, at)
	}
	k.Filter = "iptables"
	server := 1
	if !k.Addrs[1].Is4() || lease(0).Contains(k.Addrs[1]) {
		server = 0
	}
	for cell := range k.Hosts {
		if cell != 0 && server == 0 {
			break // both are on the first
		}
		var b strings.Builder
		fmt.Fprintf(&b, "*filter\n:FORWARD ACCEPT [0:0]\n:vpa - [0:0]\n:overlay - [0:0]\n-A FORWARD -j vpa\n-A FORWARD -j overlay\n")
		if cell == 0 {
			fmt.Fprintf(&b, "-A vpa -s %s -j MARK --set-xmark %#x/0xffffffff\n", k.Addrs[0], clientTag)
		}
		if cell == server {
			for i := range n {
				tag := clientTag
				if i != at {
					tag = 100 + i
				}
				for _, protocol := range []string{"tcp", "udp"} {
					if i != at && protocol == "udp" {
						continue // one rule a policy; the one that matches has both
					}
					fmt.Fprintf(&b, "-A vpa -d %s -p %s --dport %d:%d -m mark --mark %#x -j ACCEPT\n", k.Addrs[1], protocol, FirstPort, LastPort, tag)
				}
			}
		}
		for i, addr := range k.Addrs {
			if i != cell && server != 0 {
				continue
			}
			fmt.Fprintf(&b, "-A overlay -d %s -m state --state RELATED,ESTABLISHED -j ACCEPT\n-A overlay -d %s -j REJECT --reject-with icmp-port-unreachable\n", addr, addr)
		}
		b.WriteString("COMMIT\n")
		cmd := exec.Command(program)
		cmd.Stdin = strings.NewReader(b.String())
		if err := k.Hosts[cell].Run(cmd); err != nil {
			return err
		}
	}
	return nil
}
