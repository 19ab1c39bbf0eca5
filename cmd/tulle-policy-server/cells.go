package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/server"
	"tulle/policy/store"
)

func issueCellCommand(p *place) *cobra.Command {
	var spaces []string
	var out string
	var lifetime time.Duration
	cmd := &cobra.Command{
		Use:   "issue-cell NAME --spaces '*' --out DIR",
		Short: "Issue a cell's credential",
		Long: "Writes cell.pem, cell-key.pem and server-ca.pem into DIR. The credential names the cell and the\n" +
			"spaces whose apps it may host: '*', ORG/SPACE or a space's GUID.",
		Args: oneArgument("cell name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			if err := ca.CheckCellName(name); err != nil {
				return &usageError{err}
			}
			may, err := parseSpaces(spaces)
			if err != nil {
				return err
			}
			if len(may) == 0 || out == "" {
				return &usageError{errors.New("--spaces and --out are needed")}
			}
			if err := checkLifetime(lifetime); err != nil {
				return err
			}
			c, err := p.load()
			if err != nil {
				return err
			}
			roots, err := ca.Open(c.PKI)
			if err != nil {
				return err
			}
			credential, err := roots.Cells.IssueCell(name, may, lifetime)
			if err != nil {
				return fmt.Errorf("issue credential of %s: %w", name, err)
			}
			if err := ca.WriteCell(out, credential, roots.Server); err != nil {
				return fmt.Errorf("write credential of %s: %w", name, err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "cell %s, spaces %s: %s\n", name, strings.Join(spaces, " "), out)
			return err
		},
	}
	cmd.Flags().StringSliceVar(&spaces, "spaces", nil, "the spaces whose apps the cell may host: '*', ORG/SPACE or GUID")
	cmd.Flags().StringVar(&out, "out", "", "the directory to write to")
	cmd.Flags().DurationVar(&lifetime, "lifetime", ca.CellLifetime, "how long the credential is valid")
	return cmd
}

func parseSpaces(texts []string) (spaces []ca.Space, err error) {
	for _, s := range texts {
		space, err := ca.ParseSpace(s)
		if err != nil {
			return nil, &usageError{fmt.Errorf("--spaces: %w", err)}
		}
		spaces = append(spaces, space)
	}
	return spaces, nil
}

func addPeerCommand(p *place) *cobra.Command {
	var underlay, subnet, mode, key, tunnel string
	var port, wireguardPort uint16
	cmd := &cobra.Command{
		Use:   "add-peer NAME --underlay IP --subnet CIDR",
		Short: "Enter a silk cell: a peer that publishes no endpoints",
		Long: "Enters a host that is no cell of ours but speaks VXLAN-GBP as silk's cells do, plain or, with\n" +
			"--mode wireguard --key KEY, inside a WireGuard tunnel. Its tunnel address is that of its subnet,\n" +
			"unless --tunnel names one in 100.64.0.0/10 that no lease has.",
		Args: oneArgument("peer name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			peer := api.Peer{Name: args[0], Kind: api.KindSilk, Mode: api.TunnelMode(mode), Port: port, WireGuardPort: wireguardPort}
			if underlay == "" || subnet == "" {
				return &usageError{errors.New("--underlay and --subnet are needed")}
			}
			var err error
			if err = peer.Key.UnmarshalText([]byte(key)); err != nil {
				return &usageError{fmt.Errorf("--key: %w", err)}
			}
			if tunnel != "" {
				if peer.Tunnel, err = netip.ParseAddr(tunnel); err != nil {
					return &usageError{fmt.Errorf("--tunnel: %w", err)}
				}
			}
			if peer.Underlay, err = netip.ParseAddr(underlay); err != nil {
				return &usageError{fmt.Errorf("--underlay: %w", err)}
			}
			if peer.Subnet, err = netip.ParsePrefix(subnet); err != nil {
				return &usageError{fmt.Errorf("--subnet: %w", err)}
			}
			return administer(cmd.Context(), p,
				func(ctx context.Context, c *server.AdminClient) error { return c.AddPeer(ctx, peer) },
				func(ctx context.Context, s store.Store) error { return s.AddPeer(ctx, peer) })
		},
	}
	cmd.Flags().StringVar(&underlay, "underlay", "", "the peer's address in the hosts' network")
	cmd.Flags().StringVar(&subnet, "subnet", "", "the peer's part of the overlay network")
	cmd.Flags().Uint16Var(&port, "port", 4789, "the peer's VXLAN port (UDP)")
	cmd.Flags().StringVar(&mode, "mode", string(api.ModeVXLAN), "how frames travel to and from it: vxlan (plain) or wireguard")
	cmd.Flags().StringVar(&key, "key", "", "mode wireguard: the peer's public key, in base64")
	cmd.Flags().StringVar(&tunnel, "tunnel", "", "mode wireguard: the peer's address inside the tunnel")
	cmd.Flags().Uint16Var(&wireguardPort, "wireguard-port", 0, "mode wireguard: the peer's WireGuard port (UDP; default 51820)")
	return cmd
}

func removePeerCommand(p *place) *cobra.Command {
	return &cobra.Command{
		Use:   "remove-peer NAME",
		Short: "Remove a silk cell",
		Args:  oneArgument("peer name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return administer(cmd.Context(), p,
				func(ctx context.Context, c *server.AdminClient) error { return c.RemovePeer(ctx, args[0]) },
				func(ctx context.Context, s store.Store) error { return s.RemovePeer(ctx, args[0]) })
		},
	}
}

// administer changes a live server's state through its admin socket, or, where
// no server runs, the database itself.
func administer(ctx context.Context, p *place, live func(context.Context, *server.AdminClient) error, still func(context.Context, store.Store) error) (err error) {
	c, err := p.load()
	if err != nil {
		return err
	}
	err = live(ctx, server.NewAdminClient(c.adminSocket()))
	if !errors.Is(err, server.ErrNoServer) {
		return err
	}
	s, err := c.open(ctx, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return still(asCommand(ctx), s)
}

// asCommand makes whoever runs this command the actor of its changes.
func asCommand(ctx context.Context) context.Context {
	return store.WithActor(ctx, store.Actor{Who: fmt.Sprintf("uid %d", os.Getuid()), From: "command"})
}
