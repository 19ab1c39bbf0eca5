package server

import (
	"net/http"

	"tulle/docs"
)

// openapi answers with the API's description, to anybody: it tells nothing that
// is not in the program.
func (s *Server) openapi(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/json")
	return write(w, docs.OpenAPI)
}
