package server

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/auth"
	"tulle/policy/store"
)

// DefaultCleanupEvery is the original's time between two cleanups.
const DefaultCleanupEvery = time.Hour

// cleanup answers with the policies it deleted, in the v1 shape whatever version
// was asked.
func (s *Server) cleanup(w http.ResponseWriter, r *http.Request) error {
	who, _ := auth.FromContext(r.Context())
	stale, err := s.clean(r.Context(), who.Name)
	if err != nil {
		return refuse(http.StatusInternalServerError, "policies cleanup failed", err)
	}
	body, err := api.V1.EncodePolicies(stale)
	if err != nil {
		return refuse(http.StatusInternalServerError, "map policy as bytes failed", err)
	}
	return write(w, body)
}

// clean deletes the policies and routes of apps that are gone, and returns the
// policies. Who knows
// that is the directory; without one no app is ever gone. One cleanup runs at a
// time, so that no policy is told to have been deleted twice.
func (s *Server) clean(ctx context.Context, by string) ([]policy.Policy, error) {
	if s.options.Directory == nil {
		return nil, nil
	}
	select {
	case s.cleaning <- struct{}{}:
		defer func() { <-s.cleaning }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	ps, err := s.store.Policies(ctx, store.Filter{})
	if err != nil {
		return nil, err
	}
	rs, err := s.store.Routes(ctx, store.RouteFilter{})
	if err != nil || len(ps)+len(rs) == 0 {
		return nil, err
	}
	// A client that may not see an app gets an empty list, not a refusal.
	if err := s.options.Directory.SeesAll(ctx); err != nil {
		return nil, fmt.Errorf("nothing is cleaned up: %w", err)
	}
	known, err := s.options.Directory.Apps(ctx, append(appsOf(ps), appsOfRoutes(rs)...))
	if err != nil {
		return nil, err
	}
	if err := s.cleanRoutes(ctx, by, rs, known); err != nil {
		return nil, err
	}
	var stale []policy.Policy
	for _, p := range ps {
		_, source := known[p.Source]
		_, destination := known[p.Destination]
		if !source || !destination {
			stale = append(stale, p)
		}
	}
	if len(stale) == 0 {
		return nil, nil
	}
	revision, err := s.store.RemovePolicies(ctx, stale)
	if err != nil {
		return nil, err
	}
	s.log.Info("policies cleaned up", "by", by, "policies", len(stale), "revision", revision)
	return stale, nil
}

// cleanRoutes unmaps the apps that are gone.
func (s *Server) cleanRoutes(ctx context.Context, by string, rs []policy.Route, known map[policy.AppID]string) error {
	var stale []policy.Route
	for _, r := range rs {
		if _, there := known[r.App]; r.App != "" && !there {
			stale = append(stale, r)
		}
	}
	if len(stale) == 0 {
		return nil
	}
	revision, err := s.store.RemoveRoutes(ctx, stale)
	if err == nil {
		s.log.Info("routes cleaned up", "by", by, "routes", len(stale), "revision", revision)
	}
	return err
}

// cleanRegularly cleans up until ctx ends. A cleanup that fails is left to the
// next one.
func (s *Server) cleanRegularly(ctx context.Context) error {
	ticker := time.NewTicker(s.options.CleanupEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if _, err := s.clean(ctx, "timer"); err != nil && ctx.Err() == nil {
			s.log.Error("clean up policies", "error", err)
		}
	}
}
