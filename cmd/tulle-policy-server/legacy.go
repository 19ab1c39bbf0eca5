package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"tulle/policy/ca"
)

// legacyAddress is where silk-controller listens.
const legacyAddress = "127.0.0.1:4103"

func issueLegacyCommand(p *place) *cobra.Command {
	var out string
	var lifetime time.Duration
	cmd := &cobra.Command{
		Use:   "issue-legacy NAME --out DIR",
		Short: "Issue the credential of a silk-daemon or vxlan-policy-agent",
		Long: "Writes client.pem, client-key.pem and server-ca.pem into DIR, under the legacy root, which is\n" +
			"made if there is none. The server lets such clients in while its configuration has `legacy`,\n" +
			"the address of the lease API. NAME is for its log.",
		Args: oneArgument("client name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			if err := ca.CheckCellName(name); err != nil {
				return &usageError{err}
			}
			if out == "" {
				return &usageError{errors.New("--out is needed")}
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
			legacy, err := ca.OpenLegacy(c.PKI)
			if errors.Is(err, fs.ErrNotExist) {
				if legacy, err = ca.CreateLegacy(c.PKI); err == nil {
					err = give(c.PKI, filepath.Join(c.PKI, string(ca.RoleLegacy)))
				}
			}
			if err != nil {
				return err
			}
			credential, err := legacy.IssueLegacy(name, lifetime)
			if err != nil {
				return err
			}
			if err := ca.WriteLegacy(out, credential, roots.Server); err != nil {
				return fmt.Errorf("write credential of %s: %w", name, err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "legacy client %s: %s\n", name, out)
			if c.Legacy == "" && err == nil {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "the server lets it in once its configuration says legacy: %s\n", legacyAddress)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "the directory to write to")
	cmd.Flags().DurationVar(&lifetime, "lifetime", ca.CellLifetime, "how long the credential is valid")
	return cmd
}

// legacyRoot is the root of legacy clients, nil while they are not let in.
func (c *config) legacyRoot() (*ca.Authority, error) {
	if c.Legacy == "" {
		return nil, nil
	}
	root, err := ca.OpenLegacy(c.PKI)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("legacy: there is no legacy root in %s; tulle-policy-server issue-legacy makes one",
			filepath.Join(c.PKI, string(ca.RoleLegacy)))
	}
	return root, err
}
