package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tulle/overlay/control"
)

var errNotFollowed = errors.New("followed no longer: the rotation goes on in the daemon, and the same command follows it again")

func rotateKeyCommand(config *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "rotate-key",
		Short: "Give the cell another WireGuard key, without the loss of a packet",
		Long: `Gives the cell another WireGuard key. Peers hear of it from the policy server and
begin sessions with it; the old one is forgotten when all of them have. Nothing that
is on its way is lost.

Returns when the rotation is done. It goes on in the daemon when the command is
interrupted, and over a restart of the daemon; the same command follows it again.`,
	}
	return following(config, c, rotateKey)
}

// rotateKey begins or joins a rotation and follows it to its end.
func rotateKey(ctx context.Context, client *control.Client, w io.Writer, asJSON bool) error {
	var told control.Rotation
	var request control.RotateKey
	for {
		s, err := client.RotateKey(ctx, request)
		switch {
		case err != nil && ctx.Err() != nil:
			return errNotFollowed
		case err != nil && told.Serial != 0:
			return fmt.Errorf("%w; when the daemon runs again it goes on by itself, and rotate-key again follows it", err)
		case err != nil:
			return err
		case asJSON && s.Serial != told.Serial:
			if err := json.NewEncoder(w).Encode(s); err != nil {
				return err
			}
		case !asJSON:
			tellRotation(w, told, s)
		}
		if s.Step == control.RotationFailed {
			return errors.New(s.Error)
		}
		if s.Step.Ended() {
			return nil
		}
		told, request = s, control.RotateKey{Follow: s.Serial}
	}
}

// tellRotation says what is new since before.
func tellRotation(w io.Writer, before, s control.Rotation) {
	if s.Joined {
		fmt.Fprintf(w, "a rotation is under way since %s; this follows it\n", s.Since.Local().Format(time.DateTime))
	}
	if s.New != before.New {
		fmt.Fprintf(w, "the key %s is replaced by %s\n", s.Old, s.New)
	}
	for _, peer := range s.Static {
		if before.New != s.New || len(before.Static) == 0 {
			fmt.Fprintf(w, "ATTENTION: nobody tells peer %s, which was entered by hand: give it this cell's new key in its own configuration, now:\n  PublicKey = %s\n", peer, s.New)
		}
	}
	for _, step := range between(before.Step, s.Step) { // it went faster than this asks
		switch step {
		case control.RotationTells:
			fmt.Fprintln(w, "both keys are published")
		case control.RotationMoves:
			fmt.Fprintln(w, "the new key is in use")
		case control.RotationPublishes:
			fmt.Fprintln(w, "the new key is published alone")
		}
	}
	until := ""
	if !s.Until.IsZero() {
		until = ", until " + s.Until.Local().Format(time.TimeOnly) + " at most"
	}
	waiting := strings.Join(s.Waiting, ", ")
	switch {
	case s.Step == before.Step && waiting == strings.Join(before.Waiting, ", "):
	case s.Step == control.RotationTells:
		fmt.Fprintf(w, "both keys are published; waiting until every cell has them%s\n", until)
	case s.Step == control.RotationMoves && waiting != "":
		fmt.Fprintf(w, "the new key is in use; waiting for peers that use the old one%s: %s\n", until, waiting)
	case s.Step == control.RotationMoves:
		fmt.Fprintln(w, "the new key is in use, and no peer uses the old one")
	case s.Step == control.RotationPublishes:
		fmt.Fprintf(w, "the new key is published alone; waiting until every cell has that%s\n", until)
	case s.Step == control.RotationDone:
		fmt.Fprintln(w, "done: the old key is forgotten")
	}
}

// between are the steps that lie between two, without both.
func between(before, now control.RotationStep) []control.RotationStep {
	order := []control.RotationStep{control.RotationBegins, control.RotationTells, control.RotationMoves, control.RotationPublishes, control.RotationDone}
	from, to := slices.Index(order, before), slices.Index(order, now)
	if from < 0 || to < from+1 { // the first news, or a failure
		return nil
	}
	return order[from+1 : to]
}
