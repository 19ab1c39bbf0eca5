package demo

import (
	"context"
	"net/netip"
)

// AddPeer enters a silk-kind peer at the world's running server: a cell that is
// not ours, known by its lease alone. Flags are further ones of add-peer.
func (w *World) AddPeer(ctx context.Context, name string, underlay netip.Addr, subnet netip.Prefix, flags ...string) error {
	args := append([]string{"add-peer", name, "--config", w.Server.config,
		"--underlay", underlay.String(), "--subnet", subnet.String()}, flags...)
	return w.runTool(ctx, "add-peer", args...)
}
