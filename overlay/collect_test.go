package overlay

import (
	"os"
	"slices"
	"testing"

	"tulle/overlay/control"
)

// TestGC: what a runtime forgot goes, and nothing else: not what it keeps, not
// another network's or another user's of the same name, not what no runtime made.
func TestGC(t *testing.T) {
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", nil)
	conn := one.client()
	for id, network := range map[string]string{"kept": "net", "lost": "net", "other": "net-2", "none": ""} {
		_, dev := newTUN(t)
		r := one.request(id, "web", control.LifelineNone)
		r.Network = network
		if _, err := conn.Attach(t.Context(), r, dev, nil); err != nil {
			t.Fatal(err)
		}
	}
	there := func() (names []string) {
		for _, e := range one.status().Endpoints {
			names = append(names, e.Container)
		}
		return names
	}
	somebody := control.Peer{UID: uint32(os.Geteuid()) + 1}
	got, err := one.daemon.life.Load().GC(t.Context(), somebody, control.GC{Network: "net"})
	if err != nil || len(got.Containers) != 0 || len(there()) != 4 {
		t.Errorf("another user's GC: %v, %v; there is %v", got, err, there())
	}
	got, err = conn.GC(t.Context(), control.GC{Network: "net", Keep: []string{"kept", "other", "unheard-of"}})
	if err != nil || !slices.Equal(got.Containers, []string{"lost"}) {
		t.Errorf("GC: %v, %v", got, err)
	}
	if want := []string{"kept", "none", "other"}; !slices.Equal(there(), want) {
		t.Errorf("after GC there is %v, want %v", there(), want)
	}
	one.shut()
	one.run() // the network's name is journalled
	got, err = one.client().GC(t.Context(), control.GC{Network: "net"})
	if err != nil || !slices.Equal(got.Containers, []string{"kept"}) {
		t.Errorf("GC after a restart: %v, %v", got, err)
	}
}

func TestAddressAskedFor(t *testing.T) {
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", nil)
	first := one.attach("a", "web", control.LifelineNone).addr()
	want := first.Next().Next()
	ask := func(id string) (control.Attached, error) {
		_, dev := newTUN(t)
		r := one.request(id, "web", control.LifelineNone)
		r.Address = want
		return one.client().Attach(t.Context(), r, dev, nil)
	}
	got, err := ask("b")
	if err != nil || got.Address.Addr() != want {
		t.Fatalf("got %v, %v, want %v", got.Address, err, want)
	}
	if _, err := ask("c"); codeOf(err) != control.CodeNoAddress {
		t.Errorf("of an address in use: %v", err)
	}
	if err := one.client().Detach(t.Context(), control.Detach{Container: "b"}); err != nil {
		t.Fatal(err)
	}
	if _, err := ask("d"); codeOf(err) != control.CodePoolEmpty {
		t.Errorf("of an address that rests: %v", err)
	}
	if n := len(one.status().Endpoints); n != 1 {
		t.Errorf("%d endpoints, want the first alone", n)
	}
}
