package server

import (
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/google/uuid"

	"tulle/policy/api"
	"tulle/policy/auth"
	"tulle/policy/store"
)

const headerRequestID = "X-VCAP-Request-ID"

// handler is an external endpoint; what it returns becomes the answer in
// writeError.
type handler func(w http.ResponseWriter, r *http.Request) error

// dress wraps a route in what every routed answer has: the request's id, the
// frame headers, the CORS origin and its metrics. 404 and 405 have none of them,
// as with the original.
func (s *Server) dress(name string, h handler) http.Handler {
	inner := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		nameRequest(header, r)
		header.Set("X-XSS-Protection", "1; mode=block")
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("X-Frame-Options", "deny")
		header.Set("Content-Security-Policy", "frame-ancestors 'none'")
		if s.options.ExternalTLS != nil {
			header.Set("Strict-Transport-Security", "max-age=31536000")
		}
		if origin, ok := s.corsOrigin(r.Header.Get("Origin")); ok {
			header.Set("Access-Control-Allow-Origin", origin)
		}
		if err := h(w, r); err != nil {
			writeError(w, r, s.log, err)
		}
	})
	return s.instrument("external", name, inner)
}

// nameRequest gives the answer the request's id, by which the log tells of it:
// the one that the request came with, if any, and one of its own.
func nameRequest(answer http.Header, r *http.Request) {
	id := uuid.NewString()
	if came := r.Header.Get(headerRequestID); came != "" {
		id = came + "::" + id
	}
	answer.Set(headerRequestID, id)
}

// corsOrigin is the entry of the allowed domains that the origin falls under.
func (s *Server) corsOrigin(origin string) (string, bool) {
	i := slices.IndexFunc(s.options.AllowedCORSDomains, func(d string) bool { return d == "*" || d != "" && d == origin })
	if i < 0 {
		return "", false
	}
	return s.options.AllowedCORSDomains[i], true
}

// preflight answers OPTIONS, for anybody.
func preflight(methods []string) handler {
	allow := strings.Join(methods, ",")
	return func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Access-Control-Allow-Methods", allow)
		w.Header().Set("Access-Control-Allow-Headers", "authorization")
		return nil
	}
}

// authorised lets requests through that carry a token with one of the scopes, or
// any good token where none is named, puts the identity into their context and
// caps their body.
func (s *Server) authorised(h handler, scopes ...auth.Scope) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		token, err := auth.Bearer(r.Header.Get("Authorization"))
		if err != nil {
			return refuse(http.StatusUnauthorized, err.Error(), nil)
		}
		identity, err := s.options.Auth.Authenticate(r.Context(), token)
		if err != nil {
			if !errors.Is(err, auth.ErrUnknownToken) && r.Context().Err() == nil {
				s.log.Error("whose a token is cannot be found out", "request_id", w.Header().Get(headerRequestID), "error", err)
			}
			// The original's text, whoever is asked: clients show it.
			return refuse(http.StatusUnauthorized, "failed to verify token with uaa", err)
		}
		if len(scopes) > 0 {
			if err := identity.Require(scopes...); err != nil {
				return refuse(http.StatusForbidden, err.Error(), nil)
			}
		}
		r.Body = http.MaxBytesReader(w, r.Body, api.MaxBody)
		ctx := store.WithActor(auth.NewContext(r.Context(), identity), store.Actor{Who: identity.Name, From: from(r)})
		return h(w, r.WithContext(ctx))
	}
}
