package tlsproxy

import (
	"context"
	"encoding/hex"
	"io"
	"net/netip"
	"strings"
	"testing"
)

// Vectors of the PROXY protocol v2: signature, version and command, family,
// length, addresses, TLVs.
func TestProxyHeader(t *testing.T) {
	const sig = "0d0a0d0a000d0a515549540a"
	for _, c := range []struct {
		name, client, server, app, version, common, want string
	}{
		{"a caller by the cell's word", "10.255.1.2:4711", "10.255.7.3:61443", "web", "TLS 1.3", "",
			"21 11 0024  0aff0102 0aff0703 1267 f003  20 000f 01 00000001 21 0007 544c5320312e33  e0 0003 776562"},
		{"with a certificate", "10.255.1.2:4711", "10.255.7.3:61443", "", "TLS 1.2", "i-1",
			"21 11 0024  0aff0102 0aff0703 1267 f003  20 0015 03 00000000 22 0003 692d31 21 0007 544c5320312e32"},
		{"IPv6", "[fd00::2]:1", "[fd00::3]:61443", "", "T", "",
			"21 21 0030  fd000000000000000000000000000002 fd000000000000000000000000000003 0001 f003  20 0009 01 00000001 21 0001 54"},
	} {
		got := hex.EncodeToString(proxyHeader(netip.MustParseAddrPort(c.client), netip.MustParseAddrPort(c.server), c.app, c.version, c.common))
		if want := sig + strings.ReplaceAll(c.want, " ", ""); got != want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, want)
		}
	}
}

func TestAppIsToldWhoCalls(t *testing.T) {
	app := listenTCP(t)
	s := site(certificate(t), app.Addr().String())
	s.Identity = IdentityProxy
	s.Caller = func(context.Context, netip.AddrPort) (Caller, error) { return Caller{App: "web"}, nil }
	f := serveSite(t, Options{}, s)
	client := f.dial(t)
	backend := accept(t, app)
	client.Write([]byte("hello"))
	client.CloseWrite()
	got, err := io.ReadAll(backend)
	if err != nil {
		t.Fatal(err)
	}
	from := client.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort()
	to := netip.MustParseAddrPort(f.addr)
	if want := string(proxyHeader(from, to, "web", "TLS 1.3", "")) + "hello"; string(got) != want {
		t.Errorf("the app read %q, want %q", got, want)
	}
}
