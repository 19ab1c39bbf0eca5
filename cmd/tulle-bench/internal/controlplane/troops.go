package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"tulle/cmd/tulle-bench/internal/bench"
	"tulle/policy/api"
)

// many is how many cells a scenario has, and instances how many instances each
// of its apps.
const (
	many      = 1000
	instances = 2
)

// troops is the other process, which plays the cells.
type troops struct {
	orders  *json.Encoder
	answers *json.Decoder
	in      io.Closer
	wait    func() error
}

// newTroops starts it. Its cells reach the server at address.
func (s *site) newTroops(ctx context.Context, address string, cells, apps int) (*troops, error) {
	text, err := json.Marshal(placement{Server: address, PKI: s.Server.PKI(), Cells: cells, Apps: apps, Instances: instances})
	if err != nil {
		return nil, err
	}
	cmd, err := bench.Play(ctx, cellsRole, string(text))
	if err != nil {
		return nil, err
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the cells: %w", err)
	}
	return &troops{orders: json.NewEncoder(in), answers: json.NewDecoder(out), in: in, wait: cmd.Wait}, nil
}

// close ends the cells.
func (t *troops) close() error { return errors.Join(t.in.Close(), t.wait()) }

func (t *troops) do(o order) (report, error) {
	if err := t.orders.Encode(o); err != nil {
		return report{}, err
	}
	var r report
	if err := t.answers.Decode(&r); err != nil {
		return r, fmt.Errorf("the cells, asked to %s: %w", o.Do, err)
	}
	if r.Error != "" {
		return r, fmt.Errorf("the cells, asked to %s: %s", o.Do, r.Error)
	}
	return r, nil
}

// muster has so many cells registered and watching a server with the policies,
// and says what that took.
func (s *site) muster(ctx context.Context, r *bench.Run, cells, apps int) (*troops, error) {
	t, err := s.newTroops(ctx, s.Server.Internal, cells, apps)
	if err != nil {
		return nil, err
	}
	registered, err := t.do(order{Do: "register"})
	if err != nil {
		return nil, errors.Join(err, t.close())
	}
	r.Note("%d cells with %d endpoints registered in %.1f s", cells, registered.Endpoints, registered.Milliseconds/1000)
	return t, nil
}

// complete fails unless every cell has exactly what concerns it, by the
// server's own full list.
func (s *site) complete(ctx context.Context, t *troops) error {
	u := s.user()
	defer u.close()
	body, err := u.do(ctx, "GET", pathPolicies, nil)
	if err != nil {
		return err
	}
	file := filepath.Join(s.Dir, "all.json")
	if err := os.WriteFile(file, body, 0o600); err != nil {
		return err
	}
	r, err := t.do(order{Do: "check", Policies: file})
	if err == nil && len(r.Wrong) > 0 {
		err = fmt.Errorf("%d cells have not what concerns them: %s", len(r.Wrong), r.Wrong[0])
	}
	return err
}

// change creates a policy and gives its revision and how long it took. wait: also
// until it is in force on all cells that it concerns, which are to be so many
// at least.
func change(ctx context.Context, u *user, p api.Policy, wait bool, concerned int) (api.Revision, time.Duration, error) {
	body, err := encode(p)
	if err != nil {
		return 0, 0, err
	}
	path := api.PathChange
	if wait {
		path += "?wait=30s"
	}
	begun := time.Now()
	text, err := u.do(ctx, "POST", path, body)
	took := time.Since(begun)
	if err != nil {
		return 0, 0, err
	}
	var got api.Changed
	if err := json.Unmarshal(text, &got); err != nil {
		return 0, 0, err
	}
	if !wait {
		return got.Revision, took, nil
	}
	if got.Enforced == nil {
		return 0, 0, fmt.Errorf("no receipt: %s", text)
	}
	var reached, of int
	if _, err := fmt.Sscanf(got.Enforced.Cells, "%d/%d", &reached, &of); err != nil {
		return 0, 0, fmt.Errorf("receipt %q: %w", got.Enforced.Cells, err)
	}
	if reached != of || of < concerned {
		return 0, 0, fmt.Errorf("in force on %d of %d cells, want all and %d at least: %s", reached, of, concerned, text)
	}
	return got.Revision, took, nil
}
