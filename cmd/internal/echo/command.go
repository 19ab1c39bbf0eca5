package echo

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// maxPorts bounds what one range opens.
const maxPorts = 1024

// Command is `tulle echo`.
func Command() *cobra.Command {
	var (
		name      string
		tcp, udp  []string
		listening bool
	)
	cmd := &cobra.Command{
		Use:   "echo",
		Short: "Serve HTTP and echo UDP: an app to try a network with",
		Long: `Serves HTTP (GET / says who answers, GET /download?bytes=N&rate=R streams bytes
that both ends know, GET /hold answers and stays silent) and echoes UDP
datagrams. With --control it also reads requests as JSON lines on standard input and
tells what came of them on standard output; it ends when its input does.`,
		Example: `  tulle run --app web -- tulle echo --http :8080 --udp 9000-9003`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ports, err := expand(udp)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return run(ctx, name, tcp, ports, listening, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&name, "name", "echo", "who to say that answers, for example web/0")
	cmd.Flags().StringSliceVar(&tcp, "http", nil, "serve HTTP on these addresses, for example :8080")
	cmd.Flags().StringSliceVar(&udp, "udp", nil, "echo UDP on these ports or ranges, for example 9000-9003")
	cmd.Flags().BoolVar(&listening, "control", false, "take requests on standard input, tell events on standard output")
	return cmd
}

func run(ctx context.Context, name string, tcp, udp []string, control bool, in io.Reader, out io.Writer) error {
	var mu sync.Mutex // guards out
	lines := json.NewEncoder(out)
	emit := func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		lines.Encode(e)
	}
	s, err := listen(name, tcp, udp, emit)
	if err != nil {
		return err
	}
	defer s.close()
	s.serve()
	emit(Event{Kind: EventReady, At: time.Now(), Name: name, Self: describe()})
	if !control {
		<-ctx.Done()
		return nil
	}
	p := &prober{emit: emit}
	ended := make(chan error, 1)
	go func() { ended <- p.run(ctx, in) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return nil
	}
}

// expand turns ports and ranges, each with an optional host before it, into
// addresses: "9000-9001" is ":9000", ":9001".
func expand(ranges []string) ([]string, error) {
	var all []string
	for _, r := range ranges {
		host, ports := "", r
		if i := strings.LastIndexByte(r, ':'); i >= 0 {
			host, ports = r[:i], r[i+1:]
		}
		first, last, isRange := strings.Cut(ports, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || from > to || len(all)+int(to-from) >= maxPorts {
			return nil, fmt.Errorf("udp %q: not a port or a range of at most %d ports", r, maxPorts)
		}
		for p := from; p <= to; p++ {
			all = append(all, host+":"+strconv.FormatUint(p, 10))
		}
	}
	return all, nil
}
