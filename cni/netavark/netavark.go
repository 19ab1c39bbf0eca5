// Package netavark is podman's newer network plugin protocol around package
// attach: create, setup, teardown and info of netavark's plugin API 1.0.0.
//
// Run is one call, over injected arguments, environment and streams. What a
// network is comes with each call, in its options; nothing is kept.
package netavark

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"tulle/cni/attach"
)

// apiVersion is the only one there is.
const apiVersion = "1.0.0"

// timeout bounds a call: the daemon waits at most 5 s for its server.
const timeout = 30 * time.Second

const usage = "usage: tulle-netavark create | setup NETNS | teardown NETNS | info (netavark calls it)"

// Run does what args say, which are without the program's name, and returns the
// exit status. An error goes to stdout as the protocol has it.
func Run(args []string, env func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	answer, err := do(ctx, args, env, stdin)
	if err != nil {
		if len(args) == 0 {
			fmt.Fprintln(stderr, usage)
		}
		answer = failure{err.Error()}
	}
	if answer != nil {
		if werr := json.NewEncoder(stdout).Encode(answer); werr != nil {
			fmt.Fprintln(stderr, errors.Join(err, werr))
			return 1
		}
	}
	if err != nil {
		return 1
	}
	return 0
}

type failure struct {
	Error string `json:"error"`
}

type info struct {
	Version string `json:"version"`
	API     string `json:"api_version"`
}

func do(ctx context.Context, args []string, env func(string) string, stdin io.Reader) (any, error) {
	command, netns := "", ""
	if len(args) > 0 {
		command = args[0]
	}
	want := 1
	switch command {
	case "info":
		return info{version(), apiVersion}, nil
	case "create":
	case "setup", "teardown":
		want = 2
	default:
		return nil, fmt.Errorf("unknown command %q; %s", command, usage)
	}
	if len(args) != want {
		return nil, fmt.Errorf("%s takes %d arguments, not %d; %s", command, want-1, len(args)-1, usage)
	}
	b, err := io.ReadAll(stdin)
	if err != nil {
		return nil, fmt.Errorf("read what %s is about: %w", command, err)
	}
	if command == "create" {
		return create(b)
	}
	netns = args[1]
	r, err := parse(b)
	if err != nil {
		return nil, err
	}
	if command == "teardown" {
		return nil, attach.Del(ctx, r.container(netns))
	}
	return setup(ctx, r, netns, env)
}

func version() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "unknown"
}

func setup(ctx context.Context, r *request, netns string, env func(string) string) (any, error) {
	conf, err := r.conf()
	if err != nil {
		return nil, err
	}
	wish, err := conf.Wish(r.args(), r.ContainerID, env)
	if err != nil {
		return nil, err
	}
	got, err := attach.Add(ctx, r.container(netns), wish)
	if err != nil {
		return nil, err
	}
	mac := r.NetworkOptions.StaticMAC
	if mac == "" {
		mac = attach.MadeUpMAC(got.Address.Addr())
	}
	names := conf.Names(got.Resolver)
	addresses := []address{{got.Address}}
	if got.Address6.IsValid() {
		addresses = append(addresses, address{got.Address6})
	}
	return status{
		Search: orEmpty(names.Search), Servers: orEmpty(names.Nameservers),
		Interfaces: map[string]networkInterface{r.device(): {MAC: mac, Subnets: addresses}},
	}, nil
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
