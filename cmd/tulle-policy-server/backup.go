package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tulle/policy/api"
	"tulle/policy/server"
	"tulle/policy/store"
	"tulle/policy/store/cfdump"
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
	var from foundationFiles
	cmd := &cobra.Command{
		Use:   "import BACKUP | import --dump FILE ... | import --policies FILE --tags FILE [--leases FILE]",
		Short: "Fill an empty store from a backup, or from a Cloud Foundry policy server",
		Long: "Puts a backup, as `export` wrote it, into an empty store, which gets an epoch of its own: cells that\n" +
			"know another history take a new snapshot.\n\n" +
			"With --dump, takes over what is in plain dumps (mysqldump, pg_dump) of a Cloud Foundry policy server's\n" +
			"database and of its silk-controller's: policies, tags, security groups and leases. With --policies,\n" +
			"--tags and --leases, takes over what the two answer at /networking/v1/external/policies,\n" +
			"/networking/v1/external/tags and /leases. Tags and leases stay as they are.",
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := p.load()
			if err != nil {
				return err
			}
			b, err := readImport(args, from, c.LeaseLifetime)
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
	cmd.Flags().StringSliceVar(&from.dumps, "dump", nil, "file with a dump of a policy server's or silk-controller's database; may be given twice")
	cmd.Flags().StringVar(&from.policies, "policies", "", "file with the policies of a Cloud Foundry policy server")
	cmd.Flags().StringVar(&from.tags, "tags", "", "file with its tags")
	cmd.Flags().StringVar(&from.leases, "leases", "", "file with the leases of its silk-controller")
	return cmd
}

// foundationFiles are what the command line names of a Cloud Foundry.
type foundationFiles struct {
	dumps                  []string
	policies, tags, leases string
}

// readImport reads what the command line names.
func readImport(args []string, from foundationFiles, lifetime time.Duration) (*store.Backup, error) {
	answers := from.policies != "" || from.tags != "" || from.leases != ""
	switch {
	case len(args) == 1 && len(from.dumps) == 0 && !answers:
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
	case len(args) == 0 && len(from.dumps) > 0 && !answers:
		f, err := readDumps(from.dumps)
		if err != nil {
			return nil, err
		}
		return taken(f, lifetime, from.dumps...)
	case len(args) == 0 && len(from.dumps) == 0 && from.policies != "" && from.tags != "":
		var f store.Foundation
		if err := errors.Join(readAnswer(from.policies, &f.Policies), readAnswer(from.tags, &f.Tags)); err != nil {
			return nil, err
		}
		files := []string{from.policies, from.tags}
		if from.leases != "" {
			var answer api.SilkLeases
			if err := readAnswer(from.leases, &answer); err != nil {
				return nil, err
			}
			var err error
			if f.Leases, err = store.SilkLeasesOf(answer, time.Now()); err != nil {
				return nil, fmt.Errorf("%s: %w", from.leases, err)
			}
			files = append(files, from.leases)
		}
		return taken(f, lifetime, files...)
	}
	return nil, &usageError{errors.New("name one backup, or --dump, or both --policies and --tags")}
}

// readDumps puts several dumps together: the two databases may be dumped each by
// itself.
func readDumps(paths []string) (all store.Foundation, err error) {
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return all, err
		}
		f, err := cfdump.Read(string(text))
		if err != nil {
			return all, fmt.Errorf("%s: %w", path, err)
		}
		all.Policies.Policies = append(all.Policies.Policies, f.Policies.Policies...)
		all.Tags.Tags = append(all.Tags.Tags, f.Tags.Tags...)
		all.SecurityGroups = append(all.SecurityGroups, f.SecurityGroups...)
		all.Leases = append(all.Leases, f.Leases...)
	}
	return all, nil
}

func taken(f store.Foundation, lifetime time.Duration, files ...string) (*store.Backup, error) {
	b, err := store.FromFoundation(f, lifetime, time.Now())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(files, ", "), err)
	}
	return b, nil
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
