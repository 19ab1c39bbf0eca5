// Command tulle-bench measures Tulle beside what it replaces: kernel VXLAN with
// iptables rules, wireguard-go and others, which it sets up itself, in
// namespaces of its own, with a traffic generator of its own.
//
// main maps an error to an exit code. Which scenarios there are stands in
// scenarios.go, what a scenario is in internal/bench.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"tulle/cmd/tulle-bench/internal/bench"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the program. It returns the exit status: 0, 1 for an error, 2 for a
// command line that makes no sense. A bar that is missed is shown, and no error.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := bench.Command(scenarios(), roles())
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "tulle-bench: %v\n", err)
	if errors.Is(err, bench.ErrUsage) {
		return 2
	}
	return 1
}
