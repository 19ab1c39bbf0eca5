package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"tulle/cni/attach"
	"tulle/overlay/control"
)

// result is what ADD answers: the device in the sandbox, its address, the
// default route without a gateway, the resolver. A result of a plugin before
// ours is kept, and ours stands behind it.
func (c *call) result(got control.Attached) (types.Result, error) {
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	if c.conf.PrevResult != nil {
		before, err := current.NewResultFromResult(c.conf.PrevResult)
		if err != nil {
			return nil, types.NewError(types.ErrDecodingFailure, "prevResult", err.Error())
		}
		*r = *before
		r.CNIVersion = current.ImplementedSpecVersion
	}
	mac, err := c.conf.MAC(c.args)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
	}
	if mac == "" {
		mac = attach.MadeUpMAC(got.Address.Addr())
	}
	device := &current.Interface{Name: c.device, Mac: mac, Sandbox: c.netns}
	if c.conf.CNIVersion == "1.1.0" { // which introduced the field
		device.Mtu = got.MTU
	}
	r.Interfaces = append(r.Interfaces, device)
	r.IPs = append(r.IPs, &current.IPConfig{
		Interface: current.Int(len(r.Interfaces) - 1),
		Address:   net.IPNet{IP: got.Address.Addr().AsSlice(), Mask: net.CIDRMask(got.Address.Bits(), 32)},
	})
	if a := got.Address6; a.IsValid() {
		r.IPs = append(r.IPs, &current.IPConfig{
			Interface: current.Int(len(r.Interfaces) - 1),
			Address:   net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), 128)},
		})
	}
	r.Routes = append(r.Routes, &types.Route{Dst: net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}})
	if got.Address6.IsValid() {
		r.Routes = append(r.Routes, &types.Route{Dst: net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}})
	}
	r.DNS = c.conf.Names(got.Resolver)
	return r, nil
}

// addressGiven is the address that ADD answered for our device.
func (c *call) addressGiven() (netip.Prefix, error) {
	if c.conf.PrevResult == nil {
		return netip.Prefix{}, errors.New("CHECK needs the prevResult of ADD")
	}
	r, err := current.NewResultFromResult(c.conf.PrevResult)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("prevResult: %w", err)
	}
	for _, ip := range r.IPs {
		if ip.Interface == nil || *ip.Interface < 0 || *ip.Interface >= len(r.Interfaces) || r.Interfaces[*ip.Interface].Name != c.device {
			continue
		}
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		bits, _ := ip.Address.Mask.Size()
		if ok && a.Unmap().Is4() { // the endpoint's name; an IPv6 address stands beside it
			return netip.PrefixFrom(a.Unmap(), bits), nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("prevResult has no address of %s", c.device)
}
