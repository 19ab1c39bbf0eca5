package contain

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"tulle/policy/api"
)

// The test binary is also the supervisor, as a process that can be killed and
// have another uid, and the command inside, which looks around.
func TestMain(m *testing.M) {
	Reexec()
	if len(os.Args) > 1 {
		switch mode := os.Args[1]; {
		case mode == "supervise":
			os.Exit(superviseMain())
		case strings.HasPrefix(mode, "probe-"):
			os.Exit(probe(strings.TrimPrefix(mode, "probe-"), os.Args[2:]))
		}
	}
	os.Exit(m.Run())
}

const optionsVar = "TULLE_TEST_OPTIONS"

// supervised are the options that a test's supervisor gets.
type supervised struct {
	Container, Socket, Dir string
	User                   uint32
	MaskDirs, Command      []string
}

// superviseMain is what `tulle run` does.
func superviseMain() int {
	var in supervised
	if err := json.Unmarshal([]byte(os.Getenv(optionsVar)), &in); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	o := Options{App: api.AppRef{Name: "web"}, Container: in.Container, User: in.User, Socket: in.Socket,
		MaskDirs: in.MaskDirs, Dir: in.Dir, Command: in.Command}
	o.Stdin, o.Stdout, o.Stderr = os.Stdin, os.Stdout, os.Stderr
	signals, stop := NotifySignals()
	defer stop()
	o.Signals = signals
	status, err := Run(context.Background(), o)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return status
}
