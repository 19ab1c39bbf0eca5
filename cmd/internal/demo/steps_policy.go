package demo

import (
	"context"
	"fmt"
	"time"

	"tulle/cmd/internal/echo"
	"tulle/policy"
)

func port(p uint16) policy.PortRange { return policy.PortRange{Start: p, End: p} }

// denied: default deny is an answer, not a silence.
func (t *tour) denied(ctx context.Context) error {
	return t.pairs(frontend, backend, func(from, to *Instance) error {
		return t.try(ctx, echo.Refused, from, to, echo.OpDial, Port)
	})
}

// allowed measures, from the API's answer on, when each instance gets through.
// All try from before the policy is asked for until they are let in.
func (t *tour) allowed(ctx context.Context) error {
	return t.opens(ctx, func() error {
		return t.api.Allow(ctx, frontend, backend, policy.TCP, port(Port))
	}, echo.OpDial, Port)
}

// opens calls change while every instance of frontend tries every instance of
// backend, and checks that each gets through.
func (t *tour) opens(ctx context.Context, change func() error, op echo.Op, port uint16) error {
	var calls []*echo.Call
	var names []string
	err := t.pairs(frontend, backend, func(from, to *Instance) error {
		call, err := from.Start(echo.Request{Op: op, Address: to.At(port), Until: echo.OK,
			Timeout: 500 * time.Millisecond, Patience: stepPatience / 2})
		calls, names = append(calls, call), append(names, asked(op, from, to, port))
		return err
	})
	if err != nil {
		return err
	}
	begun := time.Now()
	if err := change(); err != nil {
		return err
	}
	answered := time.Now()
	t.check(true, answered.Sub(begun), "the policy server answers", "200 OK; from then on it took:")
	events, err := doneAll(ctx, calls)
	if err != nil {
		return err
	}
	for i, e := range events {
		after := max(1, e.At.Sub(answered)) // before the answer was read here: at once
		got := fmt.Sprintf("%s, at try %d", came(e), e.Attempts)
		t.check(e.Outcome == echo.OK && after < soon, after, names[i], got)
	}
	return nil
}

// othersRefused: a policy has a direction, and names two apps and no third.
func (t *tour) othersRefused(ctx context.Context) error {
	for _, p := range []struct{ from, to string }{{backend, frontend}, {other, backend}, {frontend, other}} {
		if err := t.pairs(p.from, p.to, func(from, to *Instance) error {
			return t.try(ctx, echo.Refused, from, to, echo.OpDial, Port)
		}); err != nil {
			return err
		}
	}
	return t.try(ctx, echo.Refused, t.apps[frontend][0], t.apps[backend][1], echo.OpDial, SecondPort)
}

// lastAllowedUDP is the end of the policy's range; more ports than that listen.
const lastAllowedUDP = FirstUDP + 4

// udpRange: a range of ports, its borders and what lies beyond.
func (t *tour) udpRange(ctx context.Context) error {
	err := t.opens(ctx, func() error {
		return t.api.Allow(ctx, frontend, backend, policy.UDP, policy.PortRange{Start: FirstUDP, End: lastAllowedUDP})
	}, echo.OpUDP, FirstUDP)
	if err != nil {
		return err
	}
	return t.pairs(frontend, backend, func(from, to *Instance) error {
		if err := t.try(ctx, echo.OK, from, to, echo.OpUDP, lastAllowedUDP); err != nil {
			return err
		}
		return t.try(ctx, echo.Refused, from, to, echo.OpUDP, lastAllowedUDP+1)
	})
}

// secondPort: adding one policy does not touch a connection of another.
func (t *tour) secondPort(ctx context.Context) error {
	from, to := t.apps[frontend][0], t.apps[backend][1]
	idle, err := from.Start(echo.Request{Op: echo.OpHold, Address: to.At(Port)})
	if err != nil {
		return err
	}
	if _, err := idle.Wait(ctx, echo.EventBegun); err != nil {
		return err
	}
	if err := t.opens(ctx, func() error {
		return t.api.Allow(ctx, frontend, backend, policy.TCP, port(SecondPort))
	}, echo.OpDial, SecondPort); err != nil {
		return err
	}
	if err := t.try(ctx, echo.OK, from, to, echo.OpGet, Port); err != nil {
		return err
	}
	if err := idle.Stop(); err != nil {
		return err
	}
	e, err := idle.Done(ctx)
	if err != nil {
		return err
	}
	t.check(e.Outcome == echo.Stopped, e.Took, "an idle connection to port 8080 meanwhile", "open until its client "+string(e.Outcome)+" it")
	return nil
}
