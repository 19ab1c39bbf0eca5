package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/server"
	"tulle/policy/store"
)

// maxTokenValidity bounds how long a join token may lie about.
const maxTokenValidity = 30 * 24 * time.Hour

func joinTokenCommand(p *place) *cobra.Command {
	var spaces []string
	var valid, lifetime time.Duration
	cmd := &cobra.Command{
		Use:   "join-token NAME --spaces '*'",
		Short: "Make a token by which a new cell gets its credential, once",
		Long: "Prints a token. On the cell, `tulle-celld join --server URL --token TOKEN --out DIR` makes a key, which\n" +
			"stays there, and gets the credential of the cell NAME for it. The token is good once, and by it the\n" +
			"cell knows the server as well. It is a secret: whoever has it first is the cell.",
		Args: oneArgument("cell name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := ca.CheckCellName(args[0]); err != nil {
				return &usageError{err}
			}
			if may, err := parseSpaces(spaces); err != nil {
				return err
			} else if len(may) == 0 {
				return &usageError{errors.New("--spaces is needed")}
			}
			if valid < time.Second || valid > maxTokenValidity {
				return &usageError{fmt.Errorf("--valid %s: must be from 1s to %s", valid, maxTokenValidity)}
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
			token := ca.NewJoinToken(roots.Server)
			stored := store.JoinToken{Sum: ca.SecretSum(token.SecretText()), Cell: args[0], Spaces: spaces,
				Lifetime: lifetime, Expires: time.Now().Add(valid)}
			if err := administer(cmd.Context(), p,
				func(ctx context.Context, c *server.AdminClient) error { return c.AddJoinToken(ctx, stored) },
				func(ctx context.Context, s store.Store) error { return s.AddJoinToken(ctx, stored) }); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), token)
			return err
		},
	}
	cmd.Flags().StringSliceVar(&spaces, "spaces", nil, "the spaces whose apps the cell may host: '*', ORG/SPACE or GUID")
	cmd.Flags().DurationVar(&valid, "valid", 24*time.Hour, "how long the token is good")
	cmd.Flags().DurationVar(&lifetime, "lifetime", ca.JoinedLifetime, "how long the credential is valid; the cell renews it before")
	return cmd
}

// checkLifetime refuses the lifetime of a credential that would be void already.
func checkLifetime(lifetime time.Duration) error {
	if lifetime < time.Second {
		return &usageError{fmt.Errorf("--lifetime %s: must be a second or more", lifetime)}
	}
	return nil
}

func revokeCellCommand(p *place) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke-cell NAME",
		Short: "Make every credential of a cell void, at once",
		Long: "Every credential of the cell that was issued until now is void, on connections that are open as well and on\n" +
			"all servers of the database. Its lease and its containers' endpoints end: the other cells take no more of\n" +
			"its frames. Its subnet is given to nobody before the lease would have run out. A credential that is issued\n" +
			"later is good.",
		Args: oneArgument("cell name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := ca.CheckCellName(args[0]); err != nil {
				return &usageError{err}
			}
			var r api.Revocation
			err := administer(cmd.Context(), p,
				func(ctx context.Context, c *server.AdminClient) (err error) {
					r, err = c.RevokeCell(ctx, args[0])
					return err
				},
				func(ctx context.Context, s store.Store) (err error) { r, err = s.RevokeCell(ctx, args[0]); return err })
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "cell %s: credentials issued until %s are void\n", r.Cell, r.At.Format(time.RFC3339Nano))
			if r.Unknown && err == nil {
				_, err = fmt.Fprintf(cmd.ErrOrStderr(), "ATTENTION: no cell %s has had a lease here, nor a join token; if another was meant, its credentials are still good: tulle cells lists the names\n", r.Cell)
			}
			return err
		},
	}
}

func revocationsCommand(p *place) *cobra.Command {
	return &cobra.Command{
		Use:   "revocations",
		Short: "List the cells whose credentials were revoked",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list []api.Revocation
			err := administer(cmd.Context(), p,
				func(ctx context.Context, c *server.AdminClient) (err error) {
					list, err = c.Revocations(ctx)
					return err
				},
				func(ctx context.Context, s store.Store) (err error) { list, err = s.Revocations(ctx); return err })
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "cell\tcredentials are void that were issued until")
			for _, r := range list {
				fmt.Fprintf(w, "%s\t%s\n", r.Cell, r.At.Format(time.RFC3339Nano))
			}
			return w.Flush()
		},
	}
}
