package datapath

import (
	"net/netip"

	"tulle/overlay/flow"
)

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

type flowFlow = flow.Flow

func addrOf(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }
