package demo

import (
	"net/netip"
	"testing"

	"tulle/overlay/netcfg"
)

func TestFirstFreeNetwork(t *testing.T) {
	named := func(prefixes ...string) (things []netcfg.Named) {
		for _, p := range prefixes {
			things = append(things, netcfg.Named{What: p, Prefix: netip.MustParsePrefix(p)})
		}
		return things
	}
	for _, row := range []struct {
		things []netcfg.Named
		want   string
	}{
		{nil, "10.255.0.0/16"},
		{named("192.0.2.1/32", "0.0.0.0/0", "10.0.0.0/8"), "10.255.0.0/16"},
		{named("10.255.255.53/32"), "10.254.0.0/16"},
		{named("10.254.3.0/24", "10.255.255.53/32"), "10.253.0.0/16"},
	} {
		if got, err := firstFree(row.things); err != nil || got.String() != row.want {
			t.Errorf("with %v: %v, %v; want %s", row.things, got, err, row.want)
		}
	}
	var all []netcfg.Named
	for i := range 256 {
		all = append(all, netcfg.Named{What: "route", Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 1}), 24)})
	}
	if got, err := firstFree(all); err == nil {
		t.Errorf("all taken: %v", got)
	}
}
