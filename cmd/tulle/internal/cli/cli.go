package cli

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// The environment that stands in for flags; a flag goes before.
const (
	envServer    = "TULLE_SERVER"
	envToken     = "TULLE_TOKEN"
	envTokenFile = "TULLE_TOKEN_FILE"
	envCA        = "TULLE_CA"
	envSpace     = "TULLE_SPACE"
	envOrg       = "TULLE_ORG"
)

const defaultServer = "http://127.0.0.1:4002"

// program is what the commands share: streams, environment and global flags.
type program struct {
	env           func(string) string
	out, err      io.Writer
	output        string // "text" or "json"
	server        string
	tokenFile, ca string
}

// New is the command tulle with its subcommands, and extra ones beside them. env
// is asked for variables as os.Getenv is. Errors of ExecuteContext go to Report.
func New(env func(string) string, stdin io.Reader, stdout, stderr io.Writer, extra ...*cobra.Command) *cobra.Command {
	p := &program{env: env, out: stdout, err: stderr}
	root := &cobra.Command{
		Use:   "tulle",
		Short: "Container networking with policies between applications",
		Long: `Asks a Tulle policy server, or the cell daemon on this host.

  TULLE_SERVER      URL of the policy server (default ` + defaultServer + `)
  TULLE_TOKEN       token for it, or
  TULLE_TOKEN_FILE  file that holds the token
  TULLE_CA          file with the CA of an https server, beside the system's
  TULLE_SPACE, TULLE_ORG  space and org of source apps`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError(cmd, "%q is no command of tulle", args[0])
			}
			return cmd.Help()
		},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if p.output != "text" && p.output != "json" {
				wrong := p.output
				p.output = "text"
				return usageError(cmd, `--output %s: must be "text" or "json"`, wrong)
			}
			return nil
		},
	}
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError(cmd, "%v", err) })
	root.CompletionOptions.HiddenDefaultCmd = true

	flags := root.PersistentFlags()
	flags.StringVar(&p.server, "server", "", "URL of the policy server")
	flags.StringVar(&p.tokenFile, "token-file", "", "file with the token for the policy server")
	flags.StringVar(&p.ca, "ca", "", "file with the CA of an https server")
	flags.StringVar(&p.output, "output", "text", "text or json")

	root.AddCommand(p.addPolicy(), p.removePolicy(), p.listPolicies(), p.policyCommand(), p.audit(),
		p.apps(), p.cells(), p.endpoints(), p.port(), p.nat(), p.status(), p.version(), p.dev())
	root.AddCommand(p.mapRoute(), p.unmapRoute(), p.routes(), p.domains(), p.createDomain(), p.deleteDomain())
	root.AddCommand(extra...)
	return root
}

// usage is a call that does not follow the grammar.
type usage struct {
	cmd  *cobra.Command
	text string
}

func (u *usage) Error() string { return "Incorrect Usage: " + u.text }

func usageError(cmd *cobra.Command, format string, args ...any) error {
	return &usage{cmd: cmd, text: fmt.Sprintf(format, args...)}
}

// Report tells what went wrong as the cf CLI does, the error on stderr and FAILED on
// stdout, and returns the status to exit with: 1, or the error's own where it has
// an ExitCode method. With --output json, root's stdout stays empty and stderr
// gets {"error": …}. A nil error is 0 and says nothing.
func Report(root *cobra.Command, err error) int {
	if err == nil {
		return 0
	}
	status := 1
	var own interface{ ExitCode() int }
	if errors.As(err, &own) {
		status = own.ExitCode()
	}
	if o := root.PersistentFlags().Lookup("output"); o != nil && o.Value.String() == "json" {
		printJSON(root.ErrOrStderr(), map[string]string{"error": err.Error()})
		return status
	}
	fmt.Fprintln(root.ErrOrStderr(), err)
	fmt.Fprintln(root.OutOrStdout(), "FAILED")
	var u *usage
	if errors.As(err, &u) {
		fmt.Fprintf(root.ErrOrStderr(), "\n%s", u.cmd.UsageString())
	}
	return status
}
