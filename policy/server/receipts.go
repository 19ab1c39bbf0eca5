package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/auth"
	"tulle/policy/hub"
)

// Receipts: whether a change is in force on the cells that it concerns. The
// original has nothing like it; its clients wait for as long as an agent polls.

// receiptGrace is how long beyond the wait asked for this server may take to
// hear of a revision that is stored already.
const receiptGrace = 5 * time.Second

func (s *Server) changePolicies(w http.ResponseWriter, r *http.Request) error {
	return s.receipted(w, r, s.storePolicies)
}

func (s *Server) changeDeletePolicies(w http.ResponseWriter, r *http.Request) error {
	return s.receipted(w, r, s.dropPolicies)
}

// receipted answers a change with its revision, and with the receipt that was
// asked for.
func (s *Server) receipted(w http.ResponseWriter, r *http.Request,
	change func(*http.Request, api.Version) ([]policy.Policy, api.Revision, error)) error {
	wait, asked, err := waitOf(r)
	if err != nil {
		return err
	}
	ps, revision, err := change(r, api.V1)
	if err != nil {
		return err
	}
	answer := api.Changed{Revision: revision}
	if asked {
		s.addReceipt(w, r, &answer, hub.Question{Revision: revision, Policies: ps}, wait)
	}
	return answerJSON(w, answer)
}

// unnamed stands for the name of a cell, which has no spaces.
const unnamed = "a cell"

// addReceipt waits for the receipt of a stored change. Where none is to be had
// the change is still answered as stored.
func (s *Server) addReceipt(w http.ResponseWriter, r *http.Request, answer *api.Changed, q hub.Question, wait time.Duration) {
	receipt, err := s.receipt(w, r, q, wait)
	if err != nil {
		s.log.Warn("no receipt for a stored change", "revision", q.Revision, "error", err)
		return
	}
	// Who may not see the cells is told how many there are to wait for.
	if who, _ := auth.FromContext(r.Context()); !s.seesAll(who) {
		for i := range receipt.Silent {
			receipt.Silent[i].Cell = unnamed
		}
		for i := range receipt.Late {
			receipt.Late[i] = unnamed
		}
	}
	answer.Enforced = &receipt
}

// enforced answers for a revision by the cells that it concerns; without one,
// for the present revision by all cells.
func (s *Server) enforced(w http.ResponseWriter, r *http.Request) error {
	who, _ := auth.FromContext(r.Context())
	if err := unlimited(who, "see the cells"); err != nil {
		return err
	}
	wait, _, err := waitOf(r)
	if err != nil {
		return err
	}
	stats, err := s.store.Stats(r.Context())
	if err != nil {
		return err
	}
	q := hub.Question{Revision: stats.Revision, Everyone: true}
	if text := r.URL.Query().Get("revision"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		switch {
		case err != nil:
			return refuse(http.StatusBadRequest, fmt.Sprintf("revision %q is not a number", text), nil)
		case api.Revision(n) > stats.Revision:
			return refuse(http.StatusNotFound, fmt.Sprintf("revision %d does not exist, the present one is %d", n, stats.Revision), nil)
		}
		q = hub.Question{Revision: api.Revision(n)}
	}
	receipt, err := s.receipt(w, r, q, wait)
	if errors.Is(err, hub.ErrFuture) {
		return refuse(http.StatusServiceUnavailable, fmt.Sprintf("revision %d has not reached this server yet", q.Revision), err)
	}
	if err != nil {
		return err
	}
	return answerJSON(w, receipt)
}

// waitOf reads the query's wait; asked tells whether there is one.
func waitOf(r *http.Request) (wait time.Duration, asked bool, err error) {
	text := r.URL.Query().Get("wait")
	if text == "" {
		return 0, false, nil
	}
	wait, err = time.ParseDuration(text)
	if err != nil || wait < 0 || wait > api.MaxWait {
		return 0, false, refuse(http.StatusBadRequest, fmt.Sprintf("wait %q is not a time from 0s to %s", text, api.MaxWait), nil)
	}
	return wait, true, nil
}

func (s *Server) receipt(w http.ResponseWriter, r *http.Request, q hub.Question, wait time.Duration) (api.Enforced, error) {
	// The time to send a request in is over by now; it would end the wait.
	if err := http.NewResponseController(w).SetReadDeadline(time.Time{}); err != nil {
		return api.Enforced{}, fmt.Errorf("wait for a receipt: %w", err)
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait+receiptGrace)
	defer cancel()
	receipt, err := s.internal.Enforced(ctx, q, wait)
	if err != nil {
		return api.Enforced{}, err
	}
	e := api.Enforced{
		Revision: receipt.Revision, Cells: fmt.Sprintf("%d/%d", receipt.Reached, receipt.Cells),
		Milliseconds: receipt.Took.Milliseconds(), Late: receipt.Late,
	}
	for _, c := range receipt.Silent {
		e.Silent = append(e.Silent, api.SilentCell{Cell: c.Name, Since: c.Since.UTC()})
	}
	return e, nil
}
