// Command testrun is what stands behind make test, race, fuzz and lint: it sets
// the machine up as far as it may, runs the go tool, says loudly what was
// skipped and why, and puts everything back, whatever happens.
//
// As root it opens /dev/net/tun to ordinary users for the time of the run, since
// many tests play an ordinary user, and installs the Debian packages that some
// tests hold us against. As an ordinary user it does neither, and the tests that
// need them say so. With CI=true a skipped test is a failed one.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	if len(args) == 2 && args[0] == guardCommand {
		return guard(args[1], os.Stdin, stderr)
	}
	if len(args) == 0 {
		fmt.Fprintln(stderr, "usage: testrun test|race|fuzz|lint [-fuzztime 5s]")
		return 2
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	fuzztime := flags.Duration("fuzztime", defaultFuzzTime, "how long each fuzz target runs")
	if err := flags.Parse(args[1:]); err != nil {
		return 2
	}

	// The children get the terminal's signals themselves; this process stays to
	// wait for them and to put things back.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()

	var err error
	switch args[0] {
	case "test":
		err = withMachine(ctx, stderr, slices.Concat(peers, runtimes), func() error {
			return errors.Join(goTest(ctx, stdout, false), fuzz(ctx, stdout, *fuzztime))
		})
	case "race":
		err = withMachine(ctx, stderr, slices.Concat(peers, runtimes, []string{"gcc", "libc6-dev"}), func() error {
			return goTest(ctx, stdout, true)
		})
	case "fuzz":
		err = fuzz(ctx, stdout, *fuzztime)
	case "lint":
		err = lint(ctx, stdout)
	default:
		err = fmt.Errorf("unknown target %q: test, race, fuzz or lint", args[0])
	}
	if err != nil {
		fmt.Fprintln(stderr, "testrun:", err)
		return 1
	}
	return 0
}
