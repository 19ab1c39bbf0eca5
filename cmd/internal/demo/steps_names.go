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
// the resolver in their resolv.conf, and its certificate is of that name.
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
	for _, from := range t.apps[frontend] {
		for _, ask := range []struct {
			scheme string
			op     echo.Op
			port   uint16
		}{{"http", echo.OpGet, Port}, {"https", echo.OpGetTLS, TLSPort}} {
			at := net.JoinHostPort(string(name), strconv.Itoa(int(ask.port)))
			// The name has to come into the certificates first.
			e, err := from.Do(ctx, echo.Request{Op: ask.op, Address: at, Until: echo.OK, Timeout: 3 * time.Second, Patience: stepPatience / 2})
			if err != nil {
				return fmt.Errorf("%s asks %s: %w", from, at, err)
			}
			t.check(e.Outcome == echo.OK && e.Took < soon, e.Took, fmt.Sprintf("%s -> %s://%s/", from, ask.scheme, at), came(e))
		}
	}
	return nil
}
