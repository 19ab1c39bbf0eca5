package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"tulle/overlay/control"
)

// trafficSwitches are the traffic log's, by their keys in the configuration less
// "log_".
func trafficSwitches(s *control.TrafficLogSet) map[string]**bool {
	return map[string]**bool{"all": &s.Allowed, "refused": &s.Denied, "c2c": &s.ContainersAllowed, "c2c_refused": &s.ContainersDenied}
}

func parseSwitches(args []string) (s control.TrafficLogSet, err error) {
	to := trafficSwitches(&s)
	for _, arg := range args {
		name, value, _ := strings.Cut(arg, "=")
		if to[name] == nil || value != "on" && value != "off" {
			return s, fmt.Errorf("%q: must be all, refused, c2c or c2c_refused, and =on or =off", arg)
		}
		on := value == "on"
		*to[name] = &on
	}
	return s, nil
}

func trafficLogCommand(config *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "traffic-log [all|refused|c2c|c2c_refused=on|off]...",
		Short: "Show or switch what this cell writes to its traffic log",
		Long: `Shows what this cell writes to its traffic log, or switches it until the daemon starts
again. The words are the configuration's keys under egress, less log_:

  all          what is allowed to leave the overlay, not only what a rule wants logged
  refused      what is not
  c2c          what policies allow between containers
  c2c_refused  what they do not`,
		Example: `  tulle-celld traffic-log --config /etc/tulle/celld.yaml c2c=on c2c_refused=on`,
	}
	var s control.TrafficLogSet
	asker(config, c, func(ctx context.Context, client *control.Client, w io.Writer, asJSON bool) error {
		got, err := client.TrafficLog(ctx, s)
		if err != nil {
			return err
		}
		if asJSON {
			return indented(w, got)
		}
		if got.File == "" {
			_, err := fmt.Fprintln(w, "this cell has no traffic log: name a file (egress.log) in its configuration and start it again")
			return err
		}
		word := func(on bool) string {
			if on {
				return "on"
			}
			return "off"
		}
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintf(tw, "file\t%s\nall\t%s\nrefused\t%s\nc2c\t%s\nc2c_refused\t%s\nlines\t%d written, %d over the limit of a container, %d lost, %d could not be written\n",
			got.File, word(got.Allowed), word(got.Denied), word(got.ContainersAllowed), word(got.ContainersDenied), got.Written, got.Limited, got.Lost, got.Failed)
		return tw.Flush()
	})
	c.Args = func(_ *cobra.Command, args []string) (err error) {
		if s, err = parseSwitches(args); err != nil {
			return &usageError{err}
		}
		return nil
	}
	return c
}
