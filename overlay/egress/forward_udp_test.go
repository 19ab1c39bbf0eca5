package egress

import (
	"net/netip"
	"os"
	"testing"
	"time"
)

// A datagram that was read when its forward was removed leaves nothing behind: what the
// container sends to that client later is no answer to it.
func TestClientOfARemovedForward(t *testing.T) {
	e := &Egress{opt: Options{Now: time.Now, Overlay: netip.MustParsePrefix("10.255.0.0/16")}}
	e.forwards.init(e)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	f := &forward{Forward: Forward{Protocol: "udp", Host: netip.MustParseAddrPort("192.0.2.1:53"), Port: 53}, fs: &e.forwards, f: file, clients: map[netip.AddrPort]*peer{}}
	e.forwards.all[HostService{f.Host, f.Protocol}] = f
	c := &container{e: e, who: Identity{Container: "c1", Address: netip.MustParseAddr("10.255.7.1")}}
	client := netip.MustParseAddrPort("192.0.2.2:4711")
	if as, ok := f.client(c, 53, client, nil); !ok || as != client || len(e.forwards.replies) != 1 {
		t.Fatalf("the client is %v, %t, with %d answers noted", as, ok, len(e.forwards.replies))
	}
	e.forwards.mu.Lock()
	e.forwards.removeLocked(f)
	e.forwards.mu.Unlock()
	if _, ok := f.client(c, 53, client, nil); ok || len(e.forwards.replies) != 0 {
		t.Errorf("taken: %t, with %d answers noted", ok, len(e.forwards.replies))
	}
}
