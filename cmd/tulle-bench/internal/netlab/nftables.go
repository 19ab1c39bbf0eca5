package netlab

import (
	"encoding/binary"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// policiesByNFTables is Policies where iptables is not installed: the same rules,
// in the same order, in the kernel's newer packet filter.
func (k *Kernel) policiesByNFTables(n, at int) error {
	k.Filter = "nftables"
	together := lease(0).Contains(k.Addrs[1])
	for cell, host := range k.Hosts {
		if cell == 1 && together {
			break
		}
		c := &nftables.Conn{NetNS: int(host.file.Fd())}
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "silk"})
		c.FlushTable(table)
		chain := c.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
		add := func(exprs ...expr.Any) {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
		}
		address := func(offset uint32, i int) []expr.Any {
			return []expr.Any{
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: k.Addrs[i].AsSlice()},
			}
		}
		const source, destination = 12, 16
		if cell == 0 {
			add(append(address(source, 0),
				&expr.Immediate{Register: 1, Data: native(clientTag)},
				&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1})...)
		}
		if cell == 1 || together {
			for i := range n {
				tag, protocols := uint32(100+i), []byte{unix.IPPROTO_TCP}
				if i == at {
					tag, protocols = clientTag, []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP}
				}
				for _, protocol := range protocols {
					add(append(address(destination, 1), allow(protocol, tag)...)...)
				}
				if i%500 == 499 { // a message has its limits
					if err := c.Flush(); err != nil {
						return err
					}
				}
			}
		}
		for i := range k.Addrs {
			if i != cell && !together {
				continue
			}
			add(append(address(destination, i),
				&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
				&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Xor: native(0),
					Mask: native(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: native(0)},
				&expr.Verdict{Kind: expr.VerdictAccept})...)
			add(append(address(destination, i), &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3})...)
		}
		if err := c.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func allow(protocol byte, tag uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: binary.BigEndian.AppendUint16(nil, FirstPort),
			ToData: binary.BigEndian.AppendUint16(nil, LastPort)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: native(tag)},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
