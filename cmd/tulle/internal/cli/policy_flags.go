package cli

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"tulle/policy/api"
)

// policyArgs is the grammar that the commands for one policy share.
type policyArgs struct {
	source, destination string
	at                  place // of the source
	to                  place // of the destination, where -s is given
	protocol            string
	ports               api.Ports
}

// policyFlags are the flags as they come.
type policyFlags struct {
	sourceSpace, sourceOrg string
	space, org             string
	protocol, port         string
}

func (f *policyFlags) add(cmd *cobra.Command) {
	f.addSource(cmd)
	flags := cmd.Flags()
	flags.StringVarP(&f.space, "space", "s", "", "space of the destination app (default: that of the source)")
	flags.StringVarP(&f.org, "org", "o", "", "org of the destination app, only together with --space")
	flags.StringVar(&f.protocol, "protocol", "", "tcp or udp")
	flags.StringVar(&f.port, "port", "", "N or N-M")
}

func (f *policyFlags) addSource(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.sourceSpace, "source-space", "", "space of source apps (default: "+envSpace+")")
	cmd.Flags().StringVar(&f.sourceOrg, "source-org", "", "org of source apps (default: "+envOrg+")")
}

// target is where source apps are looked for.
func (p *program) target(f *policyFlags) place {
	return place{first(f.sourceSpace, p.env(envSpace)), first(f.sourceOrg, p.env(envOrg))}
}

// parse checks what can be known without asking anybody, in the cf CLI's order:
// the form of each flag, the arguments, then what belongs together.
func (p *program) parse(cmd *cobra.Command, f *policyFlags, args []string) (policyArgs, error) {
	var a policyArgs
	switch a.protocol = strings.ToLower(f.protocol); {
	case a.protocol != "" && a.protocol != "tcp" && a.protocol != "udp",
		a.protocol == "" && cmd.Flags().Changed("protocol"):
		return a, usageError(cmd, `PROTOCOL must be "tcp" or "udp"`)
	}
	if cmd.Flags().Changed("port") {
		var problem string
		if a.ports, problem = parsePorts(f.port); problem != "" {
			return a, usageError(cmd, "%s", problem)
		}
	}
	if err := exactArgs(cmd, args, "SOURCE_APP", "DESTINATION_APP"); err != nil {
		return a, err
	}
	if f.org != "" && f.space == "" {
		return a, usageError(cmd, "A space must be provided when an org is provided, but the '-s' flag was not specified.")
	}
	a.source, a.destination = args[0], args[1]
	a.at = p.target(f)
	a.to = a.at
	if f.space != "" {
		a.to = place{f.space, first(f.org, a.at.org)}
	}
	return a, nil
}

// parsePorts reads N or N-M. Whether the numbers make a range is the server's to say.
func parsePorts(s string) (r api.Ports, problem string) {
	parts := strings.Split(s, "-")
	if len(parts) > 2 {
		return r, "PORT syntax must match integer[-integer]"
	}
	var numbers []int
	for _, part := range parts {
		n, err := strconv.ParseUint(part, 10, 31)
		if err != nil {
			return r, "PORT must be a positive integer"
		}
		numbers = append(numbers, int(n))
	}
	return api.Ports{Start: numbers[0], End: numbers[len(numbers)-1]}, ""
}

// exactArgs wants one argument for each name.
func exactArgs(cmd *cobra.Command, args []string, names ...string) error {
	if len(args) > len(names) {
		return usageError(cmd, "unexpected argument %q", args[len(names)])
	}
	missing := names[len(args):]
	switch len(missing) {
	case 0:
		return nil
	case 1:
		return usageError(cmd, "the required argument `%s` was not provided", missing[0])
	}
	return usageError(cmd, "the required arguments `%s` were not provided", strings.Join(missing, "` and `"))
}
