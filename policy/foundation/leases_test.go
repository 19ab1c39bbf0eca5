package foundation_test

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tulle/policy/api"
	"tulle/policy/foundation"
	"tulle/policy/foundation/foundationtest"
)

func (r *rig) lease(held api.Lease) (api.Lease, error) {
	return r.client.Lease(r.ctx, api.LeaseRequest{Underlay: netip.MustParseAddr(self), Port: 4789, Mode: api.ModeVXLAN, Subnet: held.Subnet, Generation: held.Generation})
}

func (r *rig) leased(held api.Lease) api.Lease {
	r.Helper()
	got, err := r.lease(held)
	if err != nil {
		r.Fatal(err)
	}
	return got
}

// The life of a lease as silk-daemon's is: acquired, renewed, given back.
func TestLeaseLife(t *testing.T) {
	r := newRig(t, nil)
	got := r.leased(api.Lease{})
	if got.Network != network || got.Subnet.Bits() != 24 || !network.Contains(got.Subnet.Addr()) || got.Generation == 0 || got.Generation>>32 != 0 ||
		got.Seconds != 604800 || r.Leases.Of(self) != got.Subnet.String() {
		t.Fatalf("%+v, the controller has %s", got, r.Leases.Of(self))
	}
	if again := r.leased(got); again != got {
		t.Errorf("renewed: %+v, want %+v", again, got)
	}
	// Without its journal the cell has the same subnet and a greater generation.
	if again := r.leased(api.Lease{Subnet: got.Subnet}); again.Subnet != got.Subnet || again.Generation < got.Generation {
		t.Errorf("without journal: %+v after %+v", again, got)
	}
	if err := r.client.Release(r.ctx); err != nil || r.Leases.Of(self) != "" {
		t.Errorf("release: %v, the controller has %q", err, r.Leases.Of(self))
	}
}

// A controller that has lost its data takes the lease back from the cell.
func TestLeaseAfterLossOfData(t *testing.T) {
	r := newRig(t, nil)
	got := r.leased(api.Lease{})
	r.Leases.Lose()
	if again := r.leased(got); again != got || r.Leases.Of(self) != got.Subnet.String() {
		t.Errorf("%+v, the controller has %q", again, r.Leases.Of(self))
	}
}

// Where the lease is not this cell's any more, it gets the one that is.
func TestLeaseLost(t *testing.T) {
	subnet := netip.MustParsePrefix("10.255.40.0/24")
	t.Run("the controller has another for this address", func(t *testing.T) {
		r := newRig(t, nil)
		got := r.leased(api.Lease{})
		r.Leases.Put(foundationtest.Entry(self, subnet))
		if again := r.leased(got); again.Subnet != subnet || again.Generation <= got.Generation {
			t.Errorf("%+v after %+v", again, got)
		}
	})
	t.Run("expired and given away", func(t *testing.T) {
		r := newRig(t, nil)
		got := r.leased(api.Lease{})
		r.Leases.Drop(self)
		r.Leases.Put(foundationtest.Entry(other, got.Subnet))
		if again := r.leased(got); again.Subnet == got.Subnet || again.Generation <= got.Generation || r.Leases.Of(self) != again.Subnet.String() {
			t.Errorf("%+v after %+v", again, got)
		}
	})
	t.Run("expired and still there", func(t *testing.T) {
		r := newRig(t, nil)
		got := r.leased(api.Lease{})
		r.Leases.Advance(200 * time.Hour)
		if again := r.leased(got); again != got {
			t.Errorf("%+v, want it renewed: %+v", again, got)
		}
		r.hosts()
		r.watch()
		r.until("no peer", func(s *api.Snapshot) bool { return len(s.Peers) == 0 })
	})
	t.Run("the clock was set back", func(t *testing.T) {
		r := newRig(t, func(o *foundation.Options) { o.Now = func() time.Time { return time.Unix(1000, 0) } })
		r.Leases.Put(foundationtest.Entry(self, subnet))
		if got := r.leased(api.Lease{Subnet: netip.MustParsePrefix("10.255.41.0/24"), Generation: 5000}); got.Generation != 5001 {
			t.Errorf("generation %d after 5000", got.Generation)
		}
	})
}

// What passes is no reason to give up a lease, and is told as it was said.
func TestLeaseRefusals(t *testing.T) {
	cases := []struct {
		name  string
		begin func(r *rig)
		held  bool
		want  string
	}{
		{"database away", func(r *rig) { r.Leases.Fail(500, `{"error": "renew-subnet-lease: begin: "no""}`) }, true, `begin: "no"`},
		{"controller away", func(r *rig) { r.Leases.Stop() }, true, "connection refused"},
		{"pool is empty", func(r *rig) { r.Leases.Fail(409, `{"error": "no lease available"}`) }, false, "no lease available (status 409)"},
		{"a single address", func(r *rig) { r.Leases.Put(foundationtest.Entry(self, netip.MustParsePrefix("10.255.0.7/32"))) }, false, "release it first"},
		{"nonsense", func(r *rig) { r.Leases.Fail(200, `{"underlay_ip":"192.0.2.1","overlay_subnet":"banana"}`) }, false, "banana"},
		{"another network", func(r *rig) {
			r.Leases.Fail(200, `{"underlay_ip":"192.0.2.1","overlay_subnet":"10.1.1.0/24","overlay_hardware_addr":"ee:ee:0a:01:01:00"}`)
		}, false, "must be those of the foundation"},
		{"another's", func(r *rig) {
			r.Leases.Fail(200, `{"underlay_ip":"192.0.2.7","overlay_subnet":"10.255.1.0/24","overlay_hardware_addr":"ee:ee:0a:ff:01:00"}`)
		}, false, "makes no sense"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, nil)
			var held api.Lease
			if c.held {
				held = r.leased(api.Lease{})
			}
			c.begin(r)
			if got, err := r.lease(held); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v, %v; want an error with %q", got, err, c.want)
			}
		})
	}
	r := newRig(t, nil)
	for _, q := range []api.LeaseRequest{
		{Underlay: netip.MustParseAddr(other), Port: 4789, Mode: api.ModeVXLAN}, {Underlay: netip.MustParseAddr(self), Port: 4790, Mode: api.ModeVXLAN},
		{Underlay: netip.MustParseAddr(self), Port: 4789, Mode: api.ModeWireGuard},
	} {
		if _, err := r.client.Lease(t.Context(), q); err == nil {
			t.Errorf("%+v is leased", q)
		}
	}
}

// A connection needs the foundation's certificates, both ways.
func TestCertificates(t *testing.T) {
	r := newRig(t, nil)
	stranger := foundationtest.New(t, network)
	for name, change := range map[string]func(o *foundation.Options){
		"the server is another's": func(o *foundation.Options) { o.Leases.CA, _, _ = stranger.Files() },
		"the client is another's": func(o *foundation.Options) { _, o.Leases.Cert, o.Leases.Key = stranger.Files() },
		"the server's name":       func(o *foundation.Options) { o.Leases.ServerName = "elsewhere.example.com" },
	} {
		o := r.Options()
		o.Underlay = netip.MustParseAddr(self)
		change(&o)
		c, err := foundation.New(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Lease(t.Context(), api.LeaseRequest{Underlay: o.Underlay, Port: 4789, Mode: api.ModeVXLAN}); err == nil {
			t.Errorf("%s: a lease is given", name)
		}
		c.Close()
	}
}

func TestOptionsThatCannotBe(t *testing.T) {
	f := foundationtest.New(t, network)
	for name, c := range map[string]struct {
		change func(o *foundation.Options)
		want   string
	}{
		"http":        {func(o *foundation.Options) { o.Policies.URL = "http://x:1" }, "expected https://host:port"},
		"a path":      {func(o *foundation.Options) { o.Leases.URL += "/leases" }, "expected https://host:port"},
		"no key":      {func(o *foundation.Options) { o.Leases.Key = "" }, "its key are needed"},
		"no file":     {func(o *foundation.Options) { o.Policies.CA = filepath.Join(t.TempDir(), "none") }, "policy server: CA: open"},
		"no PEM":      {func(o *foundation.Options) { o.Policies.CA = o.Policies.Key }, "holds no certificate"},
		"wrong key":   {func(o *foundation.Options) { o.Leases.Cert = o.Leases.CA }, "silk-controller: client certificate"},
		"IPv6":        {func(o *foundation.Options) { o.Underlay = netip.MustParseAddr("2001:db8::1") }, "underlay must be an IPv4"},
		"no name":     {func(o *foundation.Options) { o.Cell = "" }, "has no name"},
		"subnet bits": {func(o *foundation.Options) { o.SubnetBits = 16 }, "lease prefix length 16"},
		"a lifetime":  {func(o *foundation.Options) { o.LeaseLifetime = -time.Hour }, "times must not be negative"},
	} {
		o := f.Options()
		o.Underlay = netip.MustParseAddr(self)
		c.change(&o)
		if _, err := foundation.New(o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
