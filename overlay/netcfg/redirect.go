package netcfg

import (
	"fmt"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// redirectTable is the table of Redirect's chains. It ends with its namespace.
const redirectTable = "tulle-redirect"

// Redirect leads TCP connections of a namespace to a proxy's port there: those that
// go out to a range (invalid: none), and with ingress all that come in. Again it
// replaces what it made before.
func Redirect(ns *os.File, out netip.Prefix, ingress bool, port uint16) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		return fmt.Errorf("netfilter of the namespace: %w", err)
	}
	table := &nftables.Table{Name: redirectTable, Family: nftables.TableFamilyIPv4}
	c.AddTable(table) // so that there is one to delete
	c.DelTable(table)
	c.AddTable(table)
	chain := func(name string, hook *nftables.ChainHook, match []expr.Any) {
		ch := c.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: nftables.ChainPriorityNATDest})
		tcp := []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		}
		to := []expr.Any{
			&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
			&expr.Redir{RegisterProtoMin: 1},
		}
		c.AddRule(&nftables.Rule{Table: table, Chain: ch, Exprs: append(append(tcp, match...), to...)})
	}
	if out.IsValid() {
		mask := ipNet(out.Masked()).Mask
		chain("output", nftables.ChainHookOutput, []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}, // the destination
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: out.Masked().Addr().AsSlice()},
		})
	}
	if ingress {
		chain("prerouting", nftables.ChainHookPrerouting, nil)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("redirect to port %d: %w", port, err)
	}
	return nil
}
