package attach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"tulle/cmd/internal/demo"
)

// storm is what a runtime does after a reboot: n containers, 16 at a time, each by
// an execution of the CNI plugin, which makes the device and configures it. Then
// all of them go the same way.
func (s *site) storm(ctx context.Context, n int) (up, down float64, err error) {
	c, err := s.freshCell(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, s.end(ctx, c)) }()
	spaces, err := newSpaces(n)
	if err != nil {
		return 0, 0, err
	}
	defer spaces.close()
	run := func(command string) (float64, error) {
		begun := time.Now()
		next := make(chan int)
		errs := make(chan error, n)
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				for i := range next {
					errs <- s.plugin(ctx, c, command, i, spaces)
				}
			})
		}
		for i := range n {
			next <- i
		}
		close(next)
		wg.Wait()
		took := time.Since(begun).Seconds()
		close(errs)
		for err := range errs {
			if err != nil {
				return 0, err
			}
		}
		return took, nil
	}
	if up, err = run("ADD"); err != nil {
		return 0, 0, err
	}
	if err := s.has(ctx, c, n); err != nil {
		return 0, 0, err
	}
	if down, err = run("DEL"); err != nil {
		return 0, 0, err
	}
	if err := s.has(ctx, c, 0); err != nil {
		return 0, 0, err
	}
	return up, down, spaces.empty()
}

func (s *site) plugin(ctx context.Context, c *demo.Cell, command string, i int, spaces spaces) error {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "tulle-cni"))
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "bench", "type": "tulle-cni", "socket": %q, "app": {"guid": %q}}`, c.Socket, s.app(i)))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, fmt.Sprint("CNI_CONTAINERID=c", i), "CNI_NETNS="+spaces.path(i), "CNI_IFNAME=eth0", "CNI_PATH="+s.bin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("tulle-cni %s: %w: %s", command, err, out)
	}
	return nil
}

// has fails unless the cell has n containers.
func (s *site) has(ctx context.Context, c *demo.Cell, n int) error {
	status, err := c.Status(ctx)
	if err == nil && len(status.Endpoints) != n {
		err = fmt.Errorf("the cell has %d containers, not %d", len(status.Endpoints), n)
	}
	return err
}
