package garden

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/utils"
)

// defaultPrefix stands before an error when no configuration says another.
const defaultPrefix = "cfnetworking"

// timeout bounds a call: plugins have times of their own, shorter.
const timeout = 2 * time.Minute

// Run is one call; args are without the program's name. It returns the exit
// status. An error is one line on stderr, and stdout then stays empty.
func Run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	prefix, answer, err := do(ctx, args, stdin, stderr)
	if err == nil && answer != nil {
		err = json.NewEncoder(stdout).Encode(answer)
	}
	if err != nil {
		fmt.Fprintf(stderr, "%s: %s\n", prefix, oneLine(err))
		return 1
	}
	return 0
}

// oneLine keeps to the form also where several things went wrong.
func oneLine(err error) string {
	return strings.Join(strings.Split(strings.TrimSpace(err.Error()), "\n"), "; ")
}

func do(ctx context.Context, args []string, stdin io.Reader, log io.Writer) (prefix string, answer any, err error) {
	prefix = defaultPrefix
	if len(args) == 0 || args[0] == "-h" || args[0] == "--help" {
		return prefix, nil, errors.New("this is Garden's external networker: guardian runs it (key network_plugin), people do not")
	}
	a, err := parseArgs(args)
	if a.config.LogPrefix != "" {
		prefix = a.config.LogPrefix
	}
	if err != nil {
		return prefix, nil, fmt.Errorf("parse args: %w", err)
	}
	// It names a file and a container at the plugins.
	if err := utils.ValidateContainerID(a.handle); err != nil {
		if a.action == "down" { // up was refused, and guardian destroys what it could not create
			fmt.Fprintf(log, "down: no container was ever up by the handle %q\n", a.handle)
			return prefix, nil, nil
		}
		return prefix, nil, fmt.Errorf("handle %q: letters, digits, '_', '.' and '-', a letter or digit first", a.handle)
	}
	nets, err := loadNetworks(a.config, log)
	if err != nil {
		return prefix, nil, fmt.Errorf("load cni config: %w", err)
	}
	n := networker{config: a.config, nets: nets, ports: portFile{path: a.config.StateFile}, log: log}
	switch a.action {
	case "up":
		var in upInput
		if err := json.NewDecoder(stdin).Decode(&in); err != nil {
			return prefix, nil, fmt.Errorf("decoding stdin: %w", err)
		}
		out, err := n.up(ctx, a.handle, in)
		if err != nil {
			return prefix, nil, err
		}
		return prefix, out, nil
	case "net-in":
		var in netInInput
		if err := json.NewDecoder(stdin).Decode(&in); err != nil {
			return prefix, nil, fmt.Errorf("decoding stdin: %w", err)
		}
		out, err := n.netIn(ctx, a.handle, in)
		if err != nil {
			return prefix, nil, err
		}
		return prefix, out, nil
	case "net-out", "bulk-net-out":
		var in netOutInput
		if err := json.NewDecoder(stdin).Decode(&in); err != nil {
			return prefix, nil, fmt.Errorf("decoding stdin: %w", err)
		}
		return prefix, nil, n.netOut(ctx, a.action, a.handle, in)
	case "down":
		return prefix, nil, n.down(ctx, a.handle)
	}
	return prefix, nil, fmt.Errorf("unrecognized action: %s", a.action)
}

// networker is what a call works with.
type networker struct {
	config config
	nets   *networks
	ports  portFile
	log    io.Writer
}
