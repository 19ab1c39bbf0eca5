package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"tulle/policy/auth"
)

func addTokenCommand(p *place) *cobra.Command {
	var write bool
	var spaces []string
	cmd := &cobra.Command{
		Use:   "add-token NAME [--write [--spaces ORG/SPACE,...]]",
		Short: "Make a token for the external API and print it, once",
		Long: "Prints a new token and enters its sum into the tokens file, which a live server reads again by itself. It is\n" +
			"an admin's; with --write one that may create, delete and list policies, with --spaces only of the apps of\n" +
			"these spaces, each ORG/SPACE or a space's GUID. Comments in the file are lost.",
		Args: oneArgument("token name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(spaces) > 0 && !write {
				return &usageError{errors.New("--spaces needs --write: an admin's token is for every space")}
			}
			scope := auth.Admin
			if write {
				scope = auth.Write
			}
			text, entry := auth.NewToken(args[0], scope)
			entry.Spaces = spaces
			if err := p.changeTokens(func(list []auth.Token) ([]auth.Token, error) { return append(list, entry), nil }); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), text)
			return err
		},
	}
	cmd.Flags().BoolVar(&write, "write", false, "not an admin's: for policies alone")
	cmd.Flags().StringSliceVar(&spaces, "spaces", nil, "with --write: only for apps of these spaces")
	return cmd
}

func removeTokenCommand(p *place) *cobra.Command {
	return &cobra.Command{
		Use:   "remove-token NAME",
		Short: "Take a token out of the tokens file; it is void with the next request",
		Args:  oneArgument("token name"),
		RunE: func(_ *cobra.Command, args []string) error {
			return p.changeTokens(func(list []auth.Token) ([]auth.Token, error) {
				left := slices.DeleteFunc(slices.Clone(list), func(t auth.Token) bool { return t.Name == args[0] })
				if len(left) == len(list) {
					return nil, fmt.Errorf("there is no token %q", args[0])
				}
				return left, nil
			})
		},
	}
}

func tokensCommand(p *place) *cobra.Command {
	return &cobra.Command{
		Use:   "tokens",
		Short: "List the tokens of the tokens file",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := p.load()
			if err != nil {
				return err
			}
			list, err := readTokens(c.Tokens)
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "name\tscopes\tspaces")
			for _, t := range list {
				spaces := strings.Join(t.Spaces, " ")
				if t.Spaces == nil {
					spaces = "all"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\n", t.Name, strings.Join(scopeNames(t.Scopes), " "), spaces)
			}
			return w.Flush()
		},
	}
}

func scopeNames(scopes []auth.Scope) (names []string) {
	for _, s := range scopes {
		names = append(names, string(s))
	}
	return names
}

func readTokens(path string) ([]auth.Token, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("tokens file: %w", err)
	}
	list, err := auth.ParseTokens(text)
	if err != nil {
		return nil, fmt.Errorf("tokens file %s: %w", path, err)
	}
	return list, nil
}

// changeTokens puts a new tokens file in the place of the old one, or leaves that
// as it is. Two commands at once go one after the other.
func (p *place) changeTokens(change func([]auth.Token) ([]auth.Token, error)) (err error) {
	c, err := p.load()
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(c.Tokens))
	if err != nil {
		return fmt.Errorf("tokens file: %w", err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("tokens file: %w", err)
	}
	list, err := readTokens(c.Tokens)
	if err != nil {
		return err
	}
	if list, err = change(list); err != nil {
		return err
	}
	text, err := auth.EncodeTokens(list)
	if err != nil {
		return err
	}
	if _, err := auth.ParseTokens(text); err != nil { // the same name twice, a space that is none
		return err
	}
	fresh := c.Tokens + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("tokens file: %w", err)
	}
	if err := writeNew(fresh, text); err != nil {
		return fmt.Errorf("tokens file: %w", err)
	}
	if info, err := os.Stat(c.Tokens); err == nil {
		// The server may run as another user than the one who types this.
		if owner, ok := ownerOf(info); ok && os.Geteuid() == 0 {
			err = os.Chown(fresh, owner.uid, owner.gid)
		}
		if err := errors.Join(err, os.Chmod(fresh, info.Mode().Perm())); err != nil {
			return errors.Join(fmt.Errorf("tokens file: %w", err), os.Remove(fresh))
		}
	}
	if err := os.Rename(fresh, c.Tokens); err != nil {
		return fmt.Errorf("tokens file: %w", err)
	}
	return nil
}

// give makes what root has just made in dir the directory's owner's, who is the one
// that the server runs as.
func give(dir string, made ...string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	to, ok := ownerOf(info)
	if !ok || to.uid == 0 || os.Geteuid() != 0 {
		return nil
	}
	for _, path := range made {
		err = errors.Join(err, filepath.WalkDir(path, func(path string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, to.uid, to.gid))
		}))
	}
	return err
}

type owner struct{ uid, gid int }

func ownerOf(info os.FileInfo) (owner, bool) {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return owner{}, false
	}
	return owner{int(s.Uid), int(s.Gid)}, true
}
