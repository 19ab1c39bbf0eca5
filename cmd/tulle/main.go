// Command tulle is the command line of Tulle: policies, lists, `tulle run` for
// containers of one's own, and the demo. See tulle help.
package main

import (
	"context"
	"errors"
	"io"
	"os"

	"tulle/cmd/internal/demo"
	"tulle/cmd/internal/echo"
	"tulle/cmd/tulle/internal/cli"
	"tulle/cmd/tulle/internal/run"
	"tulle/overlay/contain"
)

func main() {
	contain.Reexec() // the stages of `tulle run` are this program too
	os.Exit(tulle(os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr))
}

// tulle runs one command line and returns the status to exit with.
func tulle(args []string, env func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := cli.New(env, stdin, stdout, stderr, run.Command(), echo.Command(), demo.Command())
	root.SetArgs(args)
	err := root.ExecuteContext(context.Background())
	// A contained command has said itself what it had to say.
	var status run.Status
	if errors.As(err, &status) {
		return int(status)
	}
	return cli.Report(root, err)
}
