package garden_test

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tulle/overlay/netcfg/nstest"
)

// TestProxyRedirect: what the container sends to the range ends at the proxy in it.
func TestProxyRedirect(t *testing.T) {
	nstest.NeedRoot(t)
	n := nstest.New(t)
	c := newCell(t, foreignList(filepath.Join(t.TempDir(), "record"), answered, ""))
	t.Cleanup(func() { _, _, _ = c.call("down", "h1", "null") })
	c.configure(map[string]any{"proxy_redirect_cidr": "127.9.0.0/16", "enable_ingress_proxy_redirect": true})
	if _, errs, err := c.upWith(n, "h1", ""); err != nil {
		t.Fatalf("up: %v: %s", err, errs)
	}
	must(t, n.Do(func() error {
		l, err := net.Listen("tcp4", "127.0.0.1:15001")
		if err != nil {
			return err
		}
		defer l.Close()
		conn, err := net.DialTimeout("tcp4", "127.9.9.9:80", 10*time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	}))
	for key, v := range map[string]any{"proxy_redirect_cidr": "fd00::/8", "proxy_port": 70000} {
		c.configure(map[string]any{"enable_ingress_proxy_redirect": true, key: v})
		if out, errs, err := c.upWith(nstest.New(t), "h2", ""); err == nil || out != "" || !strings.HasPrefix(errs, "cfnetworking: proxy redirect apply: "+key) || c.mounted("h2") {
			t.Errorf("%s: %v, stderr %q", key, err, errs)
		}
	}
}
