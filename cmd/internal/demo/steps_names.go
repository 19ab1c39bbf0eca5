package demo

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	"tulle/cmd/internal/echo"
	"tulle/policy"
)

// named: an app is found by name, in containers that know nothing of Tulle but
// the resolver in their resolv.conf.
func (t *tour) named(ctx context.Context) error {
	app, err := t.api.AppID(ctx, backend)
	if err != nil {
		return err
	}
	name := policy.Hostname(backend) + "." + policy.DefaultDomain
	begun := time.Now()
	if err := t.api.MapRoutes(ctx, policy.Route{Name: name, App: app}); err != nil {
		return err
	}
	t.check(true, time.Since(begun), "the policy server answers", "in force on every cell")
	at := net.JoinHostPort(string(name), strconv.Itoa(Port))
	for _, from := range t.apps[frontend] {
		e, err := from.Do(ctx, echo.Request{Op: echo.OpDial, Address: at, Timeout: 3 * time.Second})
		if err != nil {
			return fmt.Errorf("%s asks %s: %w", from, at, err)
		}
		t.check(e.Outcome == echo.OK && e.Took < soon, e.Took, fmt.Sprintf("%s -> %s", from, at), came(e))
	}
	return nil
}
