package server

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/auth"
	"tulle/policy/store"
)

// The handlers of the networking API. Order of checks, statuses and texts are
// the original's (reference: policy-api, 4.3 and 2.1). No handler of it names a
// Content-Type, so that Go finds the original's text/plain.

func (s *Server) createPolicies(w http.ResponseWriter, r *http.Request) error {
	if _, _, err := s.storePolicies(r, version(r)); err != nil {
		return err
	}
	return write(w, []byte("{}"))
}

// storePolicies is a create but for its answer.
func (s *Server) storePolicies(r *http.Request, v api.Version) ([]policy.Policy, api.Revision, error) {
	ps, err := decodePolicies(r, v, "failed reading request body")
	if err != nil {
		return nil, 0, err
	}
	identity, _ := auth.FromContext(r.Context())
	if err := s.checkAccess(r.Context(), identity, ps); err != nil {
		return nil, 0, err
	}
	if !identity.IsAdmin() {
		if err := s.checkQuota(r, ps); err != nil {
			return nil, 0, err
		}
	}
	revision, err := s.store.AddPolicies(r.Context(), ps)
	if errors.Is(err, store.ErrTagsExhausted) {
		return nil, 0, refuse(http.StatusInternalServerError, "database create failed: "+exhaustedText(err), err)
	}
	if err != nil {
		return nil, 0, refuse(http.StatusInternalServerError, "database create failed", err)
	}
	s.log.Info("policies created", "by", identity.Name, "policies", len(ps), "revision", revision)
	return ps, revision, nil
}

func (s *Server) deletePolicies(w http.ResponseWriter, r *http.Request) error {
	if _, _, err := s.dropPolicies(r, version(r)); err != nil {
		return err
	}
	return write(w, []byte("{}"))
}

// dropPolicies is a delete but for its answer.
func (s *Server) dropPolicies(r *http.Request, v api.Version) ([]policy.Policy, api.Revision, error) {
	ps, err := decodePolicies(r, v, "invalid request body")
	if err != nil {
		return nil, 0, err
	}
	identity, _ := auth.FromContext(r.Context())
	if err := s.checkAccess(r.Context(), identity, ps); err != nil {
		return nil, 0, err
	}
	revision, err := s.store.RemovePolicies(r.Context(), ps)
	if err != nil {
		return nil, 0, refuse(http.StatusInternalServerError, "database delete failed", err)
	}
	s.log.Info("policies deleted", "by", identity.Name, "policies", len(ps), "revision", revision)
	return ps, revision, nil
}

func decodePolicies(r *http.Request, v api.Version, unreadable string) ([]policy.Policy, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, unreadable, err)
	}
	ps, err := v.DecodePolicies(body)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, err.Error(), nil)
	}
	return ps, nil
}

// checkQuota counts, for each app of the policies that the request would add,
// those it is the source of: stored, and new. What is stored already, or stands
// in the request twice, adds nothing and does not count; with the original it
// does.
func (s *Server) checkQuota(r *http.Request, ps []policy.Policy) error {
	// Those of the destinations are read too: the original's rule is about every
	// app of the request.
	stored, err := s.store.Policies(r.Context(), store.Filter{Sources: appsOf(ps)})
	if err != nil {
		return refuse(http.StatusInternalServerError, "check quota failed", err)
	}
	count := map[policy.AppID]int{}
	there := make(map[policy.Policy]bool, len(stored)+len(ps))
	for _, p := range stored {
		count[p.Source]++
		there[p] = true
	}
	var added []policy.Policy
	for _, p := range ps {
		if !there[p] {
			there[p] = true
			count[p.Source]++
			added = append(added, p)
		}
	}
	for _, app := range appsOf(added) {
		if count[app] > s.options.MaxPolicies {
			return refuse(http.StatusForbidden, "policy quota exceeded", nil)
		}
	}
	return nil
}

func (s *Server) listPolicies(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	apps := func(name string) []policy.AppID {
		values, given := query[name]
		if !given {
			return nil
		}
		ids := []policy.AppID{}
		for _, id := range strings.Split(values[0], ",") {
			ids = append(ids, policy.AppID(id))
		}
		return ids
	}
	ps, err := s.store.Policies(r.Context(), store.Filter{
		IDs: apps("id"), Sources: apps("source_id"), Destinations: apps("dest_id"),
	})
	if err != nil {
		return refuse(http.StatusInternalServerError, "database read failed", err)
	}
	identity, _ := auth.FromContext(r.Context())
	if ps, err = s.filterPolicies(r.Context(), identity, ps); err != nil {
		return err
	}
	body, err := version(r).EncodePolicies(ps)
	if err != nil {
		return refuse(http.StatusInternalServerError, "map policy as bytes failed", err)
	}
	return write(w, body)
}

func (s *Server) tags(w http.ResponseWriter, r *http.Request) error {
	tags, err := s.store.Tags(r.Context())
	if err != nil {
		return refuse(http.StatusInternalServerError, "database read failed", err)
	}
	return writeMarshalled(w, api.NewTags(tags))
}

func (s *Server) whoami(w http.ResponseWriter, r *http.Request) error {
	identity, _ := auth.FromContext(r.Context())
	return writeMarshalled(w, api.Whoami{Subject: identity.Name})
}

func writeMarshalled(w http.ResponseWriter, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return refuse(http.StatusInternalServerError, "marshaling response failed", err)
	}
	return write(w, body)
}

// exhaustedText is what the client reads of store.ErrTagsExhausted.
func exhaustedText(err error) string {
	text := err.Error()
	return text[strings.Index(text, store.ErrTagsExhausted.Error()):]
}
