package server

import (
	"net/http"

	"github.com/gorilla/mux"

	"tulle/policy/api"
	"tulle/policy/store"
)

// Routers are the external and the internal API's, for the test that walks them.
func Routers(s *Server) []*mux.Router {
	return []*mux.Router{s.external().(*mux.Router), s.internal.(*Internal).router}
}

// Admin is what the admin socket serves.
func Admin(s *Server) http.Handler { return s.admin() }

// Remembers is what the server would answer about apps, and as of which revision
// at least, were its database away now.
func Remembers(s *Server) ([]store.App, api.Revision) {
	m := &s.store.(*steadyStore).memory
	apps, _ := recall(m, func(k *known) []store.App { return k.apps })
	stats, _ := recall(m, func(k *known) store.Stats { return k.stats })
	return apps, stats.Revision
}
