package server

import (
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/gorilla/mux"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/auth"
	"tulle/policy/hub"
	"tulle/policy/store"
)

// Internal routes and their domains. The original has them from the Cloud
// Controller, by way of route emitters.

func (s *Server) routes(w http.ResponseWriter, r *http.Request) error {
	f := store.RouteFilter{App: policy.AppID(r.URL.Query().Get("app"))}
	if text := r.URL.Query().Get("name"); text != "" {
		name, err := policy.ParseHostname(text)
		if err != nil {
			return refuse(http.StatusBadRequest, "name: "+err.Error(), nil)
		}
		f.Name = name
	}
	list, err := s.store.Routes(r.Context(), f)
	if err != nil {
		return err
	}
	see, err := s.visibleTo(r, appsOfRoutes(list))
	if err != nil {
		return err
	}
	who, _ := auth.FromContext(r.Context())
	all := s.seesAll(who)
	kept := make([]policy.Route, 0, len(list))
	for _, route := range list {
		if all || route.App != "" && see(route.App) {
			kept = append(kept, route)
		}
	}
	return answerJSON(w, api.Routes{Routes: kept})
}

// appsOfRoutes are the apps of the routes, each once, in order.
func appsOfRoutes(rs []policy.Route) []policy.AppID {
	var apps []policy.AppID
	seen := map[policy.AppID]bool{}
	for _, r := range rs {
		if r.App != "" && !seen[r.App] {
			seen[r.App] = true
			apps = append(apps, r.App)
		}
	}
	return apps
}

func (s *Server) mapRoutes(w http.ResponseWriter, r *http.Request) error {
	return s.changeNames(w, r, func() (api.Revision, error) {
		rs, err := s.routesOf(r)
		if err != nil {
			return 0, err
		}
		beside, err := s.mayJoin(r, rs)
		if err != nil {
			return 0, err
		}
		revision, err := s.store.AddRoutes(r.Context(), rs, beside)
		if errors.Is(err, store.ErrNotYours) {
			return 0, refuse(http.StatusForbidden, err.Error(), nil)
		}
		return s.logged(r, "routes mapped", len(rs), revision, err)
	})
}

func (s *Server) unmapRoutes(w http.ResponseWriter, r *http.Request) error {
	return s.changeNames(w, r, func() (api.Revision, error) {
		rs, err := s.routesOf(r)
		if err != nil {
			return 0, err
		}
		revision, err := s.store.RemoveRoutes(r.Context(), rs)
		return s.logged(r, "routes unmapped", len(rs), revision, err)
	})
}

// routesOf reads the request's routes, whose apps must be the caller's to change.
func (s *Server) routesOf(r *http.Request) ([]policy.Route, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "failed reading request body", err)
	}
	rs, err := api.DecodeRoutes(body)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, err.Error(), nil)
	}
	who, _ := auth.FromContext(r.Context())
	// The directory is asked about apps, in the shape of policies to themselves.
	var apps []policy.Policy
	for _, app := range appsOfRoutes(rs) {
		apps = append(apps, policy.Policy{Source: app, Destination: app})
	}
	return rs, s.checkAccess(r.Context(), who, apps)
}

// mayJoin says beside which apps the caller may put one on a name: beside any
// where no app is kept from the caller (nil), else beside those of the caller's
// spaces. So nobody's name is joined by a stranger's app.
func (s *Server) mayJoin(r *http.Request, rs []policy.Route) (func(policy.AppID) bool, error) {
	who, _ := auth.FromContext(r.Context())
	if s.seesAll(who) {
		return nil, nil
	}
	there := rs
	for _, route := range rs {
		same, err := s.store.Routes(r.Context(), store.RouteFilter{Name: route.Name})
		if err != nil {
			return nil, err
		}
		there = append(there, same...)
	}
	return s.visibleTo(r, appsOfRoutes(there))
}

func (s *Server) domains(w http.ResponseWriter, r *http.Request) error {
	list, err := s.store.Domains(r.Context())
	if err != nil {
		return err
	}
	return answerJSON(w, api.Domains{Domains: list})
}

func (s *Server) addDomain(w http.ResponseWriter, r *http.Request) error {
	return s.changeDomain(w, r, "internal domain added", s.store.AddDomain)
}

func (s *Server) removeDomain(w http.ResponseWriter, r *http.Request) error {
	return s.changeDomain(w, r, "internal domain removed", s.store.RemoveDomain)
}

func (s *Server) changeDomain(w http.ResponseWriter, r *http.Request, what string,
	change func(context.Context, policy.Hostname) (api.Revision, error)) error {
	return s.changeNames(w, r, func() (api.Revision, error) {
		domain, err := policy.ParseDomain(mux.Vars(r)["domain"])
		if err != nil {
			return 0, refuse(http.StatusBadRequest, "domain: "+err.Error(), nil)
		}
		revision, err := change(r.Context(), domain)
		return s.logged(r, what, 1, revision, err)
	})
}

func (s *Server) logged(r *http.Request, what string, n int, revision api.Revision, err error) (api.Revision, error) {
	if err == nil {
		who, _ := auth.FromContext(r.Context())
		s.log.Info(what, "by", who.Name, "count", n, "revision", revision)
	}
	return revision, err
}

// changeNames answers a change that concerns every cell.
func (s *Server) changeNames(w http.ResponseWriter, r *http.Request, change func() (api.Revision, error)) error {
	wait, asked, err := waitOf(r)
	if err != nil {
		return err
	}
	revision, err := change()
	if err != nil {
		return err
	}
	answer := api.Changed{Revision: revision}
	if asked {
		s.addReceipt(w, r, &answer, hub.Question{Revision: revision, Everyone: true}, wait)
	}
	return answerJSON(w, answer)
}
