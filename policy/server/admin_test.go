package server_test

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tulle/policy/api"
	"tulle/policy/server"
)

func TestAdminSocket(t *testing.T) {
	w := start(t)
	path := w.server.Addresses().Admin
	info, err := os.Stat(path)
	w.must(err)
	if info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("the admin socket has mode %s, want one that is the owner's alone", info.Mode())
	}
	c := server.NewAdminClient(path)
	peer := api.Peer{Name: "rack 7/silk", Underlay: netip.MustParseAddr("192.0.2.7"), Subnet: netip.MustParsePrefix("10.255.9.0/24")}
	w.must(c.AddPeer(t.Context(), peer))
	w.must(c.AddPeer(t.Context(), peer))
	state, err := w.store.State(t.Context())
	w.must(err)
	if len(state.Peers) != 1 || state.Peers[0].Kind != api.KindSilk || state.Peers[0].Port != 4789 {
		t.Errorf("peers %+v", state.Peers)
	}
	peer.Subnet = netip.MustParsePrefix("10.255.10.0/24")
	if err := c.AddPeer(t.Context(), peer); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("the same name with another subnet: %v", err)
	}
	w.must(c.RemovePeer(t.Context(), peer.Name))
	if err := c.RemovePeer(t.Context(), peer.Name); err == nil || !strings.Contains(err.Error(), "no peer") {
		t.Errorf("removing it twice: %v", err)
	}
}

func TestAdminSocketOfNobody(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.db.sock")
	if err := server.NewAdminClient(path).RemovePeer(t.Context(), "x"); !errors.Is(err, server.ErrNoServer) {
		t.Errorf("no socket: %v, want %v", err, server.ErrNoServer)
	}
	// What a killed server leaves: the file, and nobody behind it.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := server.NewAdminClient(path).RemovePeer(t.Context(), "x"); !errors.Is(err, server.ErrNoServer) {
		t.Errorf("a dead socket: %v, want %v", err, server.ErrNoServer)
	}
	w := start(t, func(o *server.Options) { o.AdminSocket = path })
	w.must(server.NewAdminClient(path).AddPeer(t.Context(), api.Peer{Name: "x",
		Underlay: netip.MustParseAddr("192.0.2.7"), Subnet: netip.MustParsePrefix("10.255.9.0/24")}))
}

// A socket's address holds 107 bytes, a path 4095.
func TestAdminSocketWithALongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "policy.db.sock")
	w := start(t, func(o *server.Options) { o.AdminSocket = path })
	err := server.NewAdminClient(path).RemovePeer(t.Context(), "x")
	if err == nil || !strings.Contains(err.Error(), "no peer") {
		t.Errorf("through a long path: %v", err)
	}
	if got := w.server.Addresses().Admin; got != path {
		t.Errorf("address %q", got)
	}
}
