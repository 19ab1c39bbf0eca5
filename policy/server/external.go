package server

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/mux"

	"tulle/policy/api"
	"tulle/policy/auth"
)

// operation is one method of one path; name is its handler's in the metrics.
type operation struct {
	method, path, name string
	handle             handler
}

// external is the external API's router.
func (s *Server) external() http.Handler {
	policies := []auth.Scope{auth.Admin, auth.Write}
	admin := []auth.Scope{auth.Admin}
	if s.options.SelfService {
		policies = nil // what a developer may name is the Directory's word
	}
	cells := policies
	if s.options.Directory != nil {
		cells = admin // hosts are no business of a space's developers
	}
	routes := []operation{
		{http.MethodGet, "/", "uptime", s.uptime},
		{http.MethodGet, "/networking", "uptime", s.uptime},
		{http.MethodGet, "/health", "health", s.health},
		{http.MethodGet, api.PathWhoami, "whoami", versioned(s.authorised(s.whoami, admin...))},
		{http.MethodPost, api.PathPolicies, "create_policies", versioned(s.authorised(s.createPolicies, policies...))},
		{http.MethodGet, api.PathPolicies, "list_policies", versioned(s.authorised(s.listPolicies, policies...))},
		{http.MethodPost, api.PathDelete, "delete_policies", versioned(s.authorised(s.deletePolicies, policies...))},
		{http.MethodPost, api.PathCleanup, "cleanup", versioned(s.authorised(s.cleanup, admin...))},
		{http.MethodGet, api.PathTags, "tags", versioned(s.authorised(s.tags, admin...))},
		{http.MethodGet, api.PathApps, "apps", s.authorised(s.apps, policies...)},
		{http.MethodPost, api.PathApps, "register_app", s.authorised(s.registerApp, policies...)},
		{http.MethodDelete, api.PathApp, "remove_app", s.authorised(s.removeApp, policies...)},
		{http.MethodGet, api.PathCells, "cells", s.authorised(s.cells, cells...)},
		{http.MethodPost, api.PathChange, "change_policies", s.authorised(s.changePolicies, policies...)},
		{http.MethodPost, api.PathChangeDelete, "change_delete_policies", s.authorised(s.changeDeletePolicies, policies...)},
		{http.MethodGet, api.PathEnforced, "enforced", s.authorised(s.enforced, cells...)},
		{http.MethodGet, api.PathOpenAPI, "openapi", s.openapi},
		{http.MethodGet, api.PathAudit, "audit", s.authorised(s.audit, admin...)},
		{http.MethodGet, api.PathAllEndpoints, "endpoints", s.authorised(s.endpoints, policies...)},
		{http.MethodGet, api.PathRoutes, "routes", s.authorised(s.routes, policies...)},
		{http.MethodPost, api.PathRoutes, "map_routes", s.authorised(s.mapRoutes, policies...)},
		{http.MethodPost, api.PathRoutesDelete, "unmap_routes", s.authorised(s.unmapRoutes, policies...)},
		{http.MethodGet, api.PathDomains, "domains", s.authorised(s.domains, policies...)},
		{http.MethodPut, api.PathDomain, "add_domain", s.authorised(s.addDomain, admin...)},
		{http.MethodDelete, api.PathDomain, "remove_domain", s.authorised(s.removeDomain, admin...)},
		{http.MethodGet, api.PathSecurityGroups, "security_groups", s.authorised(s.securityGroups, admin...)},
		{http.MethodGet, api.PathSecurityGroup, "security_group", s.authorised(s.securityGroup, admin...)},
		{http.MethodPut, api.PathSecurityGroup, "put_security_group", s.authorised(s.putSecurityGroup, admin...)},
		{http.MethodDelete, api.PathSecurityGroup, "delete_security_group", s.authorised(s.deleteSecurityGroup, admin...)},
	}
	var paths []string
	methods := map[string][]string{}
	for _, r := range routes {
		if methods[r.path] == nil {
			paths = append(paths, r.path)
		}
		methods[r.path] = append(methods[r.path], r.method)
	}
	for _, path := range paths {
		methods[path] = append(methods[path], http.MethodOptions)
		routes = append(routes, operation{http.MethodOptions, path, "options", preflight(methods[path])})
	}

	// Paths match exactly as they come; the original cleans and redirects none.
	router := mux.NewRouter().SkipClean(true)
	for _, r := range routes {
		router.Methods(r.method).Path(pattern(r.path)).Handler(s.dress(r.name, r.handle))
	}
	// Behind all others, so it takes the methods that are left.
	for _, path := range paths {
		router.Path(pattern(path)).Handler(s.instrument("external", "method_not_allowed", notAllowed(methods[path])))
	}
	router.NotFoundHandler = s.instrument("external", "not_found", http.NotFoundHandler())
	return router
}

// pattern is the router's for a path. A GUID is what stands at the path's end,
// whatever it is: they need not be UUIDs, and one with a slash that can be
// registered must be one that can be removed.
func pattern(path string) string { return strings.Replace(path, "{guid}", "{guid:(?s:.+)}", 1) }

func notAllowed(methods []string) http.Handler {
	allow := strings.Join(methods, ", ")
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Allow", allow)
		http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
	})
}

// versioned refuses versions that are not served, before anything else looks at
// the request.
func versioned(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if _, err := api.ParseVersion(mux.Vars(r)["version"]); err != nil {
			return refuse(http.StatusNotAcceptable, err.Error(), nil)
		}
		return h(w, r)
	}
}

// version is the request's; versioned has checked it.
func version(r *http.Request) api.Version { return api.Version(mux.Vars(r)["version"]) }

func (s *Server) uptime(w http.ResponseWriter, _ *http.Request) error {
	return write(w, fmt.Appendf(nil, "Network policy server, up for %v\n", time.Since(s.started)))
}

func (s *Server) health(_ http.ResponseWriter, r *http.Request) error {
	if err := s.store.Ping(r.Context()); err != nil {
		// The original's status, also where others are answered 503.
		return refuse(http.StatusInternalServerError, "check database failed", errors.New(err.Error()))
	}
	return nil
}

// write sends a complete body, the end of a handler. Its error is always nil: a
// client that is gone does not hear the answer, and there is no other to give.
func write(w http.ResponseWriter, body []byte) error {
	_, _ = w.Write(body)
	return nil
}
