package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"tulle/policy/api"
	"tulle/policy/server"
	"tulle/policy/store"
)

func exportCommand(p *place) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "export [--out FILE]",
		Short: "Write a backup of everything that is stored",
		Long: "Writes all that is stored, at one revision, as JSON: to FILE, which must not exist yet, or to the\n" +
			"standard output. A server that runs goes on meanwhile. Keys, tokens and the configuration are\n" +
			"files of their own and not in it.",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var b *store.Backup
			err := administer(cmd.Context(), p,
				func(ctx context.Context, c *server.AdminClient) (err error) { b, err = c.Export(ctx); return err },
				func(ctx context.Context, s store.Store) (err error) { b, err = s.Export(ctx); return err })
			if err != nil {
				return err
			}
			text, err := json.MarshalIndent(b, "", " ")
			if err != nil {
				return err
			}
			text = append(text, '\n')
			if out == "" {
				_, err = cmd.OutOrStdout().Write(text)
				return err
			}
			if err := writeNew(out, text); err != nil {
				return fmt.Errorf("write backup: %w", err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "revision %d, %d policies: %s\n", b.Revision, len(b.Policies), out)
			return err
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "the file to write (default: standard output)")
	return cmd
}

func importCommand(p *place) *cobra.Command {
	var policies, tags string
	cmd := &cobra.Command{
		Use:   "import BACKUP | import --policies FILE --tags FILE",
		Short: "Fill an empty store from a backup, or from a Cloud Foundry policy server",
		Long: "Puts a backup, as `export` wrote it, into an empty store, which gets an epoch of its own: cells that\n" +
			"know another history take a new snapshot.\n\n" +
			"With --policies and --tags, takes over what a Cloud Foundry policy server answers at\n" +
			"/networking/v1/external/policies and /networking/v1/external/tags. The tags stay as they are.",
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := readImport(args, policies, tags)
			if err != nil {
				return err
			}
			err = administer(cmd.Context(), p,
				func(ctx context.Context, c *server.AdminClient) error { return c.Import(ctx, b) },
				func(ctx context.Context, s store.Store) error { return s.Import(ctx, b) })
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d policies, %d cells and peers\n", len(b.Policies), len(b.Cells))
			return err
		},
	}
	cmd.Flags().StringVar(&policies, "policies", "", "file with the policies of a Cloud Foundry policy server")
	cmd.Flags().StringVar(&tags, "tags", "", "file with its tags")
	return cmd
}

// readImport reads what the command line names.
func readImport(args []string, policies, tags string) (*store.Backup, error) {
	switch {
	case len(args) == 1 && policies == "" && tags == "":
		f, err := os.Open(args[0])
		if err != nil {
			return nil, err
		}
		defer f.Close()
		b, err := store.ReadBackup(f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", args[0], err)
		}
		return b, nil
	case len(args) == 0 && policies != "" && tags != "":
		var ps api.Policies
		var ts api.Tags
		if err := errors.Join(readAnswer(policies, &ps), readAnswer(tags, &ts)); err != nil {
			return nil, err
		}
		b, err := store.FromFoundation(ps, ts, time.Now())
		if err != nil {
			return nil, fmt.Errorf("%s, %s: %w", policies, tags, err)
		}
		return b, nil
	}
	return nil, &usageError{errors.New("name one backup, or both --policies and --tags")}
}

// readAnswer reads a file that holds one answer of a policy server.
func readAnswer(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	d := json.NewDecoder(f)
	d.DisallowUnknownFields() // the other file, or an error's text
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: something follows the answer", path)
	}
	return nil
}
