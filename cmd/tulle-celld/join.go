package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"tulle/policy/client"
)

// maxToken bounds what is read of a token, in bytes.
const maxToken = 4096

func joinCommand() *cobra.Command {
	var server, token, out string
	c := &cobra.Command{
		Use:   "join --server https://HOST:PORT --token TOKEN --out DIR",
		Short: "Get this cell's credential for a join token",
		Long: "Makes a key, which never leaves this host, and gets the cell's credential for it: cell.pem, cell-key.pem and\n" +
			"server-ca.pem in DIR, which `credentials` in the daemon's configuration then names. The daemon renews it\n" +
			"there before it expires, so DIR must be the daemon's to write.\n\n" +
			"`tulle-policy-server join-token NAME` makes the token. With --token - it is read from the standard input.",
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if server == "" || token == "" || out == "" {
				return &usageError{errors.New("--server, --token and --out are needed")}
			}
			if token == "-" {
				text, err := io.ReadAll(io.LimitReader(c.InOrStdin(), maxToken))
				if err != nil {
					return fmt.Errorf("read token: %w", err)
				}
				token = strings.TrimSpace(string(text))
			}
			name, err := client.Join(c.Context(), server, token, out)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "cell %s: %s\n", name, out)
			return err
		},
	}
	c.Flags().StringVar(&server, "server", "", "the policy server's internal API")
	c.Flags().StringVar(&token, "token", "", "the join token; - reads it from the standard input")
	c.Flags().StringVar(&out, "out", "", "the directory to write the credential to")
	return c
}
