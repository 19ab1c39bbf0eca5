package server

import "github.com/gorilla/mux"

// Routers are the external and the internal API's, for the test that walks them.
func Routers(s *Server) []*mux.Router {
	return []*mux.Router{s.external().(*mux.Router), s.internal.(*Internal).router}
}
