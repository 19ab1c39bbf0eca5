package egress

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A port that only root may bind is refused with what opens it to the daemon.
func TestForwardOfAPrivilegedPortNamesTheMend(t *testing.T) {
	for _, c := range []struct {
		host string
		err  error
		mend string
	}{
		{"0.0.0.0:80", unix.EACCES, "sysctl -w net.ipv4.ip_unprivileged_port_start=80"},
		{"[::]:443", unix.EACCES, "sysctl -w net.ipv4.ip_unprivileged_port_start=443"},
		{"0.0.0.0:8080", unix.EACCES, ""},
		{"0.0.0.0:80", unix.EADDRNOTAVAIL, ""},
	} {
		err := Forward{Protocol: "tcp", Host: netip.MustParseAddrPort(c.host), Port: 80}.explain(c.err)
		if !errors.Is(err, ErrForward) || !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.mend) || strings.Contains(err.Error(), "sysctl") != (c.mend != "") {
			t.Errorf("%s: %v", c.host, err)
		}
	}
}
